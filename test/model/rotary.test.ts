/** Rotary tables against the float64 oracle, which computes them by other formulas. */
import { describe, expect, it } from 'vitest';
import type { RotaryConfig, RotaryScaling } from '../../lib/index.js';
import { rotaryTable } from '../../lib/model/rotary.js';
import { codeOf } from '../checkpoint/raw-file.js';
import { anglesOf } from '../oracle/decoder/rotary.js';

const config = (scaling: RotaryScaling, dims = 16, theta = 10_000): RotaryConfig => ({
  theta,
  dims,
  scaling,
});
const yarn = {
  type: 'yarn',
  factor: 8,
  betaFast: 4,
  betaSlow: 1,
  originalMaxPositionEmbeddings: 32,
  truncate: false,
  attentionFactor: 0.1 * Math.log(8) + 1,
} as const;
const longrope = {
  type: 'longrope',
  shortFactors: [1, 1.5, 2],
  longFactors: [1.1, 3, 7],
  originalMaxPositionEmbeddings: 8,
  attentionFactor: 1.25,
} as const;

describe('rotaryTable', () => {
  it.each<[string, RotaryConfig]>([
    ['plain', config({ type: 'default' })],
    ['linear', config({ type: 'linear', factor: 2.5 }, 8)],
    [
      'llama3, all three ranges',
      config(
        {
          type: 'llama3',
          factor: 8,
          lowFreqFactor: 1,
          highFreqFactor: 4,
          originalMaxPositionEmbeddings: 32,
        },
        64,
        500_000,
      ),
    ],
    ['yarn', config(yarn, 32, 150_000)],
    ['yarn of whole dimensions', config({ ...yarn, truncate: true }, 32, 150_000)],
    ['yarn of one dimension', config({ ...yarn, betaFast: 1 }, 32)],
    ['longrope', config(longrope, 6)],
  ])('%s: cos, then sin, rounded once', (_, rotary) => {
    for (const positions of [
      [0, 1, 2, 7],
      [5, 0, 300, 8],
      Array.from({ length: 40 }, (_, p) => p),
    ]) {
      const table = rotaryTable(rotary, positions);
      const half = rotary.dims / 2;
      expect(table).toHaveLength(positions.length * rotary.dims);
      const angles = anglesOf(rotary, Math.max(...positions));
      positions.forEach((position, p) => {
        for (let i = 0; i < half; i++) {
          const [cos, sin] = angles.of(position, i);
          const at = p * rotary.dims + i;
          expect(Math.abs((table[at] as number) - cos)).toBeLessThan(1.2e-7);
          expect(Math.abs((table[at + half] as number) - sin)).toBeLessThan(1.2e-7);
        }
      });
    }
  });

  it('longrope takes the long factors for all tokens of a call that is longer than the original', () => {
    const rotary = config(longrope, 6);
    const frequency = (positions: number[], p: number) => {
      const row = rotaryTable(rotary, positions).subarray(p * 6, (p + 1) * 6);
      return Math.atan2(row[4] as number, row[1] as number) / (positions[p] as number);
    };
    const plain = 10_000 ** (-1 / 3);
    expect(frequency([1, 7], 0)).toBeCloseTo(plain / 1.5, 6);
    expect(frequency([1, 8], 0)).toBeCloseTo(plain / 3, 6);
    // A packed row of short documents is a short call.
    expect(frequency([0, 1, 2, 3, 4, 0, 1, 2, 3, 4], 6)).toBeCloseTo(plain / 1.5, 6);
  });

  it('multiplies cos and sin by the factor of attention', () => {
    const table = rotaryTable(config(longrope, 6), [0]);
    expect([...table]).toEqual([1.25, 1.25, 1.25, 0, 0, 0]);
  });

  it.each([[-1], [1.5], [Number.NaN], [2 ** 53]])('refuses the position %s', (position) => {
    const call = () => rotaryTable(config({ type: 'default' }), [0, position]);
    expect(codeOf(call)).toBe('ERR_VALUE');
    expect(call).toThrow(`positions[1] must be a whole number from 0 on, got ${position}`);
  });
});
