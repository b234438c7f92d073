// The public types, by the compiler: public-types.ts must compile, and a compiler that would let
// anything pass is caught by a file that must not.
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { describe, expect, it } from 'vitest';

const folder = dirname(fileURLToPath(import.meta.url));
const root = join(folder, '..', '..');

/** Errors of one file under the project's own options; `text` replaces what the file holds. */
function errorsOf(path: string, text?: string): string[] {
  const { config } = ts.readConfigFile(join(root, 'tsconfig.json'), ts.sys.readFile);
  const { options } = ts.parseJsonConfigFileContent({ ...config, include: [] }, ts.sys, root);
  const host = ts.createCompilerHost(options);
  const read = host.readFile.bind(host);
  host.readFile = (name) => (name === path && text !== undefined ? text : read(name));
  const program = ts.createProgram([path], options, host);
  const file = program.getSourceFile(path);
  return ts
    .getPreEmitDiagnostics(program, file)
    .map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, '\n'));
}

describe('public types', () => {
  const path = join(folder, 'public-types.ts');

  it('allow and refuse what public-types.ts says', () => {
    expect(errorsOf(path)).toEqual([]);
  });

  it('would not pass if a refusal were lost or a type were wrong', () => {
    const source = ts.sys.readFile(path) ?? '';
    const lost = source.replace("dtype: 'f64'", "dtype: 'f16'");
    expect(errorsOf(path, lost)).toEqual([expect.stringContaining("Unused '@ts-expect-error'")]);
    const wrong = source.replace('<typeof x.disposed, boolean>', '<typeof x.disposed, number>');
    expect(errorsOf(path, wrong).length).toBe(1);
  });
});
