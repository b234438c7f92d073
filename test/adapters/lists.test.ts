// What lists the methods follows from their files: lib/adapters/methods/all.ts, and docs/adapter-methods.md.
// After a change of a method `npm run methods` writes both.
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { AdapterMethod, type AnyMethod } from '../../lib/adapters/definition/method.js';
import { CASES, FORMULAS, TEST_FILES } from './settings.js';

const root = join(import.meta.dirname, '..', '..');
const folder = join(root, 'lib', 'adapters', 'methods');

interface MethodFile {
  readonly family: string;
  /** In the folder of the family, without its ending. */
  readonly name: string;
  /** The methods that it exports, by the names of the exports. */
  readonly methods: readonly (readonly [name: string, method: AnyMethod])[];
}

const byName = (a: string, b: string): number => (a < b ? -1 : Number(a > b));

async function methodFile(family: string, file: string): Promise<MethodFile> {
  const exports = (await import(join(folder, family, file))) as Readonly<Record<string, unknown>>;
  const methods = Object.entries(exports).flatMap(([name, value]) =>
    value instanceof AdapterMethod ? [[name, value as AnyMethod] as const] : [],
  );
  return {
    family,
    name: file.replace(/\.ts$/, ''),
    methods: methods.sort(([a], [b]) => byName(a, b)),
  };
}

const families = readdirSync(folder, { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .map(({ name }) => name)
  .sort(byName);
const files = (
  await Promise.all(
    families.flatMap((family) =>
      readdirSync(join(folder, family))
        .filter((file) => file.endsWith('.ts'))
        .map((file) => methodFile(family, file)),
    ),
  )
)
  .filter(({ methods }) => methods.length > 0)
  .sort((a, b) => byName(a.family, b.family) || byName(a.name, b.name));
const methods = files.flatMap((file) => file.methods.map(([, method]) => method));

/** As Biome formats it. */
function exportLine({ family, name, methods: exported }: MethodFile): string {
  const names = exported.map(([each]) => each);
  const line = `export { ${names.join(', ')} } from './${family}/${name}.js';`;
  if (line.length <= 100) return line;
  return `export {\n${names.map((each) => `  ${each},\n`).join('')}} from './${family}/${name}.js';`;
}

const listOfExports = `/** Every method that comes with the library, by name: one line per file, written by \`npm run methods\`. */

${files.map(exportLine).join('\n')}
`;

const code = (text: string): string => `\`${text.replaceAll('|', '\\|')}\``;
const setting = ([name, value]: readonly [string, unknown]): string =>
  `${name} ${typeof value === 'string' ? `'${value}'` : JSON.stringify(value)}`;

function row([name, { definition }]: readonly [string, AnyMethod]): string {
  const { method, reference, defaults, trained, inputs = [], peft } = definition;
  const paper = reference.replace(/arXiv:(\d{4}\.\d{5})/g, '[$1](https://arxiv.org/abs/$1)');
  const settings = Object.entries(defaults).map(setting).join(', ');
  const command = inputs.length === 0 ? 'yes' : `needs ${inputs.map(code).join(', ')}`;
  const cells = [
    code(method),
    code(`adapters.${name}`),
    paper,
    settings === '' ? 'none' : code(settings),
    trained.map(code).join(', '),
    peft === undefined ? 'own' : code(peft.type),
    command,
  ];
  return `| ${cells.join(' | ')} |`;
}

const page = `# Methods of the library

\`npm run methods\` writes this page from the definitions in \`lib/adapters/methods/\`. [adapters.md](adapters.md) explains how to use
a method, and says which published systems it serves.

A method's settings stand with their defaults. "PEFT" is the \`peft_type\` of the folder that \`writeAdapterFolder\` writes; "own" is a
type of this library, which PEFT does not know. \`lowrank finetune --adapter\` takes every method that needs no input beside x.
${families
  .map((family) => {
    const own = files.filter((file) => file.family === family);
    return `
## ${family}

| Method | Export | Paper | Settings | Trained | PEFT | \`finetune\` |
| --- | --- | --- | --- | --- | --- | --- |
${own.flatMap((file) => file.methods.map(row)).join('\n')}
`;
  })
  .join('')}`;

describe('what lists the methods', () => {
  it('exports what the files of methods define', async () => {
    await expect(listOfExports).toMatchFileSnapshot(join(folder, 'all.ts'));
  });

  it('documents it', async () => {
    await expect(page).toMatchFileSnapshot(join(root, 'docs', 'adapter-methods.md'));
  });

  it('has tests beside every file of methods, for the methods of that file', () => {
    expect(TEST_FILES).toEqual(files.map(({ family, name }) => `${family}/${name}.ts`).sort());
    const names = methods.map(({ method }) => method).sort();
    expect(new Set(names).size).toBe(names.length);
    expect(Object.keys(FORMULAS).sort()).toEqual(names);
    const tested = new Set(Object.keys(CASES).map((name) => name.split('/')[0]));
    expect([...tested].sort()).toEqual(names);
  });
});
