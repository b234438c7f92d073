/**
 * The list of mutants matches the kernels: each mutant has its row in test/emulator/mutation-proof.md, and
 * each entry of mutants-equivalent.json names a mutant, and docs/mutation-proof.md counts them. Judging the mutants takes hours (npm run
 * test:mutants); a stale list shows here at once.
 */

import fs from 'node:fs';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { temporaryFolder } from '../finetune/setup.js';
import { type Mutant, writeMutants } from './mutants.mjs';
import { rowsOf, withSummary } from './mutants-markdown.mjs';

const root = path.join(import.meta.dirname, '..', '..');
const read = (file: string) => fs.readFileSync(path.join(root, file), 'utf8');
const mutants = writeMutants(root, temporaryFolder());

interface Equivalent {
  readonly file: string;
  readonly what: string;
  /** Absent: all of this text. */
  readonly nth?: number;
  readonly reason: string;
}
const equivalents: Equivalent[] = JSON.parse(read('test/emulator/mutants-equivalent.json'));
const isOf = (entry: Equivalent, { file, what, nth }: Mutant) =>
  entry.file === file && entry.what === what && (entry.nth ?? nth) === nth;

describe('the mutants of the kernels', () => {
  const list = read('test/emulator/mutation-proof.md');
  const rows = rowsOf(list);

  it('have a row each in test/emulator/mutation-proof.md, in order', () => {
    expect(mutants.length).toBeGreaterThan(500);
    expect(rows.map(({ file, kind, what }) => `${file} ${kind} ${what}`)).toEqual(
      mutants.map(({ file, kind, what }) => `${file} ${kind} ${what}`),
    );
  });

  it('are caught, or equivalent for the reason in mutants-equivalent.json', () => {
    const odd = rows.filter(({ outcome }, i) => {
      const entry = equivalents.find((one) => isOf(one, mutants[i] as Mutant));
      return entry === undefined
        ? !outcome.startsWith('caught: ')
        : outcome !== `equivalent: ${entry.reason.replaceAll('|', '\\|')}`;
    });
    expect(odd).toEqual([]);
  });

  it('are counted by file in docs/mutation-proof.md', () => {
    const page = read('docs/mutation-proof.md');
    expect(withSummary(page, list)).toBe(page);
    expect(withSummary(page, list.replace('| caught: ', '| MISSED: '))).not.toBe(page);
  });

  it('are there for each reason in mutants-equivalent.json', () => {
    expect(equivalents.filter((entry) => !mutants.some((one) => isOf(entry, one)))).toEqual([]);
  });
});
