// docs/adapters.md says what is there: methods, API names, and the papers that the methods name.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import * as lowrank from '../../lib/index.js';

const root = join(import.meta.dirname, '..', '..');
const text = readFileSync(join(root, 'docs', 'adapters.md'), 'utf8');

interface Line {
  readonly system: string;
  readonly arxiv: readonly string[];
  readonly primitives: readonly string[];
  readonly here: string;
  readonly names: readonly string[];
  readonly state: string;
}

const lines: Line[] = text
  .split('\n')
  .filter((line) => line.startsWith('| ') && line.split('|').length === 8)
  .filter((line) => !/^\| (System|---)/.test(line))
  .map((line) => {
    const cells = line.split('|').slice(1, -1);
    const [system = '', , arxiv = '', primitives = '', here = '', state = ''] = cells.map((cell) =>
      cell.trim(),
    );
    return {
      system,
      arxiv: arxiv.match(/\d{4}\.\d{5}/g) ?? [],
      primitives: primitives.split(' '),
      here,
      names: [...here.matchAll(/`([^`]+)`/g)].map(([, name = '']) => name.replace(/\(.*/, '')),
      state,
    };
  });

const methods = new Map(
  lowrank.adapterMethods.map(({ method, definition }) => [method, definition]),
);
/** Words of the API that are no exports: operands, commands, ways to merge, starts, optimisers, and rules. */
const WORDS = new Set([
  ...['needs', 'dx', 'finetune'],
  ...lowrank.mergeMethods.map(({ merge }) => merge),
  ...lowrank.startMethods.map(({ start }) => start),
  ...lowrank.optimizerList.map(({ optimizer }) => optimizer),
  ...lowrank.ruleList.map(({ rule }) => rule),
]);

describe('the table of docs/adapters.md', () => {
  it('has a row for each of the survey’s systems and the later ones, once', () => {
    expect(lines.length).toBeGreaterThanOrEqual(150);
    expect(new Set(lines.map(({ system }) => system)).size).toBe(lines.length);
  });

  it('names nothing that is not there', () => {
    for (const { system, names } of lines) {
      for (const name of names) {
        const known = methods.has(name) || name in lowrank || WORDS.has(name);
        expect(known, `${system}: ${name}`).toBe(true);
      }
    }
  });

  it('has a state for each row that its text bears out', () => {
    for (const { system, state, here, names } of lines) {
      expect(['works', 'trainer', 'waits', 'outside'], system).toContain(state);
      if (state === 'waits') expect(here, system).toMatch(/P\d|the format/);
      if (state === 'works' && !here.includes('own'))
        expect(names.length, system).toBeGreaterThan(0);
    }
  });

  it('says of no system that needs only what is here that it waits', () => {
    const here = new Set(['P1', 'P2', 'P5', 'P6', 'P7', 'P8', 'P9', 'P10']);
    for (const { system, primitives, state } of lines) {
      if (primitives.every((p) => here.has(p))) expect(state, system).not.toBe('waits');
    }
  });

  it('has the methods that it names under the papers that they name', () => {
    for (const [method, { reference }] of methods) {
      const own = lines.filter(({ names }) => names.includes(method));
      const paper = /arXiv:(\d{4}\.\d{5})/.exec(reference)?.[1];
      if (paper === undefined || own.length === 0) continue;
      const listed = own.flatMap(({ arxiv }) => arxiv);
      const anonymous = own.some(({ arxiv }) => arxiv.length === 0);
      expect(listed.includes(paper) || anonymous, `${method}: ${paper}`).toBe(true);
    }
  });
});
