/**
 * The mutation proof as a list, one row per mutant (mutation-proof.md), and its summary by kernel file
 * (docs/mutation-proof.md).
 *
 *   node test/emulator/mutants-markdown.mjs
 *
 * writes the summary into the page from the rows of the list.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const root = join(import.meta.dirname, '..', '..');
export const listFile = join(root, 'test', 'emulator', 'mutation-proof.md');
export const pageFile = join(root, 'docs', 'mutation-proof.md');

const INTRO = `# Every mutant of the CUDA kernels

Written by \`npm run test:mutants -- --markdown test/emulator/mutation-proof.md\`; do not edit it by hand.
[docs/mutation-proof.md](../../docs/mutation-proof.md) says how to read it.
`;

const cell = (text) => text.replaceAll('|', '\\|').replaceAll('\n', ' ');
const code = (text) => `\`${cell(text)}\``;

export function markdownOf(results, total) {
  const files = [...new Set(results.map(({ file }) => file))];
  const tables = files.map((file) => {
    const rows = results
      .filter((result) => result.file === file)
      .map(
        ({ line, kind, what, outcome }) =>
          `| ${line} | ${kind} | ${code(what)} | ${cell(outcome)} |`,
      );
    return `## ${file}\n\n| line | kind | taken out | outcome |\n| --- | --- | --- | --- |\n${rows.join('\n')}\n`;
  });
  return `${INTRO}\n${total}.\n\n${tables.join('\n')}`;
}

/** {file, kind, what, outcome} of each row of the list. */
export function rowsOf(list) {
  let file = '';
  return list.split('\n').flatMap((line) => {
    file = /^## (cuda\/\S+)/.exec(line)?.[1] ?? file;
    const [, kind, what, outcome] = /^\| \d+ \| ([\w-]+) \| `(.*?)` \| (.*) \|$/.exec(line) ?? [];
    return kind === undefined ? [] : [{ file, kind, what: what.replaceAll('\\|', '|'), outcome }];
  });
}

/** The summary: how many mutants a kernel file has, and what became of them. */
export function summaryOf(list) {
  const rows = rowsOf(list);
  const line = (name, own) => {
    const caught = own.filter(({ outcome }) => outcome.startsWith('caught')).length;
    const equivalent = own.filter(({ outcome }) => outcome.startsWith('equivalent')).length;
    const missed = own.length - caught - equivalent;
    return `| ${name} | ${own.length} | ${caught} | ${equivalent} | ${missed} |`;
  };
  const files = [...new Set(rows.map(({ file }) => file))];
  return [
    '| file | mutants | caught | equivalent | missed |',
    '| --- | --- | --- | --- | --- |',
    ...files.map((file) =>
      line(
        `\`${file}\``,
        rows.filter((row) => row.file === file),
      ),
    ),
    line('all', rows),
  ].join('\n');
}

/** `page` with the summary of `list` between its marks. */
export function withSummary(page, list) {
  const [begin, end] = ['<!-- summary -->\n', '\n<!-- end of summary -->'].map((mark) => {
    const at = page.indexOf(mark);
    if (at < 0) throw new Error(`the page lacks the mark ${mark.trim()}`);
    return at + (mark.endsWith('\n') ? mark.length : 0);
  });
  return page.slice(0, begin) + summaryOf(list) + page.slice(end);
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const page = readFileSync(pageFile, 'utf8');
  writeFileSync(pageFile, withSummary(page, readFileSync(listFile, 'utf8')));
}
