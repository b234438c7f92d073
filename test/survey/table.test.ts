// The data of lib/survey says what is there, and the table of docs/adapters.md is written from it. After a change `npm run methods`
// writes the table.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { SurveyChapter, SurveyRow, SurveyRun } from '../../lib/index.js';
import * as lowrank from '../../lib/index.js';

const { surveyGroups, surveyMethods: rows } = lowrank;
const page = join(import.meta.dirname, '..', '..', 'docs', 'adapters.md');

const CHAPTERS: Readonly<Record<SurveyChapter, string>> = {
  background: 'LoRA and beyond fine-tuning',
  improving: 'Variants that improve the result',
  'cross-task': 'Generalisation across tasks',
  efficiency: 'Efficiency',
  privacy: 'Federated learning and privacy',
  applications: 'Applications',
  later: 'After the survey',
};

const code = (text: string): string => `\`${text}\``;

function partsOf({ adapter, init, optimizer, rules = [], settings = {}, options = {} }: SurveyRun) {
  const parts = [
    ...(init === undefined ? [] : [`the start ${code(init)}`]),
    ...(optimizer === undefined ? [] : [`the optimiser ${code(optimizer)}`]),
    ...rules.map((rule) => `the rule ${code(rule)}`),
    ...Object.entries(settings).map(([name, value]) => code(`--set ${name}=${value}`)),
    ...Object.entries(options).map(([name, value]) =>
      code(value === true ? `--${name}` : `--${name} ${value}`),
    ),
  ];
  return `${code(adapter)}${parts.length === 0 ? '' : ` with ${parts.join(', ')}`}`;
}

function line(row: SurveyRow): string {
  const { title, year, arxiv = [], primitives, run, note, use, outside, waits } = row;
  const command = lowrank.surveyCommand(row);
  const here = [run === undefined ? undefined : partsOf(run), note, outside ?? waits]
    .filter((text) => text !== undefined)
    .join('; ');
  const state = outside !== undefined ? 'outside' : 'waits';
  const uses = [command === undefined ? undefined : code(command), use].filter(
    (text) => text !== undefined,
  );
  const cells = [
    title,
    year,
    arxiv.map((id) => `[${id}](https://arxiv.org/abs/${id})`).join(', ') || '—',
    primitives,
    here || '—',
    uses.join('; ') || state,
  ];
  return `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
}

const sections = surveyGroups.map(({ chapter, title, rows: own }) => {
  const first = surveyGroups.find((group) => group.chapter === chapter)?.title === title;
  const text = `#### ${title}

| System | Year | arXiv | Primitives | Here | Command or function |
| --- | --- | --- | --- | --- | --- |
${own.map(line).join('\n')}
`;
  return first ? `### ${CHAPTERS[chapter]}\n\n${text}` : text;
});

/** Names of the library in Markdown: methods, ways to merge, starts, optimisers, rules, and exports. */
const NAMES = new Set([
  ...lowrank.adapterMethods.map(({ method }) => method),
  ...Object.keys(lowrank.adapters).map((name) => `adapters.${name}`),
  ...lowrank.mergeMethods.map(({ merge }) => merge),
  ...lowrank.startMethods.map(({ start }) => start),
  ...lowrank.optimizerList.map(({ optimizer }) => optimizer),
  ...lowrank.ruleList.map(({ rule }) => rule),
  ...Object.keys(lowrank),
]);

/** Their parts name the paper that came first. */
const LATER = new Set([
  'ffa-lora',
  'moral',
  'mola',
  'llava-mole',
  'sira',
  'mtlora',
  'qoft',
  'qdylora',
]);

describe('the methods of the survey', () => {
  it('are the table of docs/adapters.md', async () => {
    const text = readFileSync(page, 'utf8');
    const between = /(<!-- survey: npm run methods -->\n)[\s\S]*(<!-- end of survey -->)/;
    expect(text).toMatch(between);
    const table = `\n${sections.join('\n')}\n`;
    await expect(text.replace(between, (_, begin, end) => begin + table + end)).toMatchFileSnapshot(
      page,
    );
  });

  it('have names and titles of their own', () => {
    expect(rows.length).toBeGreaterThanOrEqual(159);
    expect(new Set(rows.map(({ method }) => method)).size).toBe(rows.length);
    expect(new Set(rows.map(({ title }) => title)).size).toBe(rows.length);
  });

  it('are usable, or say why not; eight at most are outside, and two wait', () => {
    for (const { method, run, use, outside, waits } of rows) {
      const usable = run !== undefined || use !== undefined;
      expect([usable, outside !== undefined, waits !== undefined].filter(Boolean), method).toEqual([
        true,
      ]);
    }
    expect(rows.filter(({ outside }) => outside !== undefined).length).toBeLessThanOrEqual(8);
    expect(rows.flatMap(({ waits, method }) => (waits === undefined ? [] : [method]))).toEqual([
      'byom',
      'nvfp4-merge-aware',
    ]);
  });

  it('name nothing that is not there', () => {
    for (const { method, use = '', note = '', outside = '', waits = '' } of rows) {
      for (const [, text = ''] of `${use} ${note} ${outside} ${waits}`.matchAll(/`([^`]+)`/g)) {
        const name = text.replace(/\(.*/, '');
        const option = /^(lowrank (finetune|merge|aggregate) |--[a-z])|^null$/.test(text);
        expect(option || NAMES.has(name), `${method}: ${text}`).toBe(true);
      }
    }
  });

  it('have the parts of the library under the papers that they name', () => {
    const papers = (part: { readonly reference: string } | undefined) =>
      part?.reference.match(/\d{4}\.\d{5}/g) ?? [];
    for (const { method, arxiv = [], run } of rows) {
      if (run === undefined || arxiv.length === 0) continue;
      const parts = [
        ...lowrank.startMethods.filter(({ start }) => start === run.init),
        ...lowrank.optimizerList.filter(({ optimizer }) => optimizer === run.optimizer),
        ...lowrank.ruleList.filter(({ rule }) => run.rules?.includes(rule)),
      ];
      const adapter = lowrank.adapterMethods.find((each) => each.method === run.adapter);
      const named = [...parts, adapter?.definition].flatMap(papers);
      // The plain method serves many papers.
      if (run.adapter === 'lora' && parts.length === 0) continue;
      if (LATER.has(method)) continue;
      if (named.length > 0)
        expect(
          named.some((id) => arxiv.includes(id)),
          method,
        ).toBe(true);
    }
  });

  it('are found by name, with the nearest one for a name that is mistyped', () => {
    expect(lowrank.surveyMethod('lora_plus').run).toEqual({
      adapter: 'lora',
      optimizer: 'lora-plus',
    });
    expect(() => lowrank.surveyMethod('pisa')).toThrow(
      'surveyMethod: name must be a name that "lowrank methods" lists, got "pisa" (did you mean pissa?)',
    );
  });
});
