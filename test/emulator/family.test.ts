/**
 * The cases of families of products: each launches the family that it is for, without which a case would say
 * nothing; and two launches that have the same workspace, one after the other and beside it, under the checks.
 */
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { outputFolder } from './build-folder.js';
import { emulated } from './cards.js';
import { CaseRunner, DEVICES, type EmulatedDevice } from './case-runs.mjs';

const folder = mkdtempSync(path.join(tmpdir(), 'lowrank-families-'));
const runner = new CaseRunner(folder, path.join(outputFolder(), 'lowrank.node'));
afterAll(() => rmSync(folder, { recursive: true }));

const PLAIN = { schedule: { order: 'forward', copies: 'late' } } as const;
const card = (name: string) => DEVICES.find((one) => one.name === name) as EmulatedDevice;

describe.runIf(emulated)('the cases of families of products', () => {
  beforeAll(() => runner.prepare());

  it('launch what they are for', async () => {
    let cases = 0;
    for (const device of DEVICES.slice(1)) {
      const trace = path.join(folder, `trace-${device.name}`);
      // What an op launches follows from shapes: kernels need not run to know it.
      const { status, lines, err } = await runner.run({
        ...PLAIN,
        library: 'source',
        device,
        check: false,
        filter: '^family ',
        more: ['--measure'],
        env: { LOWRANK_EMULATOR_TRACE: trace, LOWRANK_EMULATOR_RUN: '0' },
      });
      expect({ status, err }).toEqual({ status: 0, err: '' });
      const wrong = lines.filter(([outcome = '']) => outcome.startsWith('error: it launches'));
      expect(wrong.map(([outcome, name]) => `${name}: ${outcome}`)).toEqual([]);
      cases += lines.length - 1;
    }
    expect(cases).toBeGreaterThan(70);
  }, 600_000);

  const checked = path.join(outputFolder(), 'lowrank-emulator-check.so');
  it.runIf(existsSync(checked))(
    'that share workspace between overlapping launches have no finding',
    async () => {
      for (const order of ['forward', 'reverse']) {
        const { status, lines, err } = await runner.run({
          schedule: { order, copies: 'late' },
          library: 'check',
          device: card('sm_90 of 4 multiprocessors'),
          check: true,
          filter: '^family (wgmma of 64 tokens, segments|tiles, apart):',
        });
        expect({ status, err }).toEqual({ status: 0, err: '' });
        const outcomes = lines.slice(0, -1).map(([outcome = '']) => outcome);
        expect(outcomes).toEqual([
          expect.not.stringContaining('error'),
          expect.not.stringContaining('error'),
        ]);
      }
    },
    600_000,
  );
});
