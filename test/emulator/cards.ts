/** The same kernel cases on several emulated cards, in source mode. */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { expect } from 'vitest';
import { outputFolder } from './build-folder.js';
import { CaseRunner, DEVICES, LATER_DEVICES } from './case-runs.mjs';

const library = path.join(outputFolder(), 'lowrank-emulator.so');
export const emulated = existsSync(library);
if (!emulated) console.warn(`not run: no file ${library} (npm run build:emulator)`);

/** The hashes of the cases of a card, and how often it launched a kernel. */
export interface CardRun {
  readonly lines: string[][];
  launches(kernel: string): number;
  /** The same, of all kernels of such names. */
  launched(kernels: RegExp): number;
}

/** @param filter a pattern of case names */
export async function runOnCards(filter: string, cards: readonly string[]): Promise<CardRun[]> {
  const folder = mkdtempSync(path.join(tmpdir(), 'lowrank-cards-'));
  try {
    const runner = new CaseRunner(folder, path.join(outputFolder(), 'lowrank.node'));
    await runner.prepare();
    const runs: CardRun[] = [];
    for (const card of cards) {
      const file = path.join(folder, `trace-${runs.length}`);
      const { status, lines, err } = await runner.run({
        library: 'source',
        device: [...DEVICES, ...LATER_DEVICES].find(({ name }) => name === card),
        schedule: { order: 'forward', copies: 'late' },
        check: false,
        filter,
        env: { LOWRANK_EMULATOR_TRACE: file },
      });
      expect({ status, err }).toEqual({ status: 0, err: '' });
      const trace = readFileSync(file, 'utf8');
      runs.push({
        lines: lines.slice(0, -1),
        launches: (kernel) => trace.split(`"${kernel}"`).length - 1,
        launched: (kernels) =>
          [...trace.matchAll(/"(\w+_kernel)"/g)].filter(([, name]) => kernels.test(name as string))
            .length,
      });
    }
    return runs;
  } finally {
    rmSync(folder, { recursive: true });
  }
}
