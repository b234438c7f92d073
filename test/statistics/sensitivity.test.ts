// Smoothed sensitivities against their formulas in float64.
import { describe, expect, it } from 'vitest';
import {
  type Device,
  memoryUsage,
  Sensitivities,
  scope,
  synchronize,
  Tensor,
  tripletScores,
} from '../../lib/index.js';
import { randomValues } from '../finetune/setup.js';

const [beta1, beta2] = [0.7, 0.9];
const tensor = (values: Float32Array, shape: number[], device: Device = 'cpu') =>
  Tensor.from(values, shape, { device });

describe.each(['cpu', 'reference'] as const)('sensitivities on %s', (device) => {
  it('smooth |p ⊙ g| and its deviations', () => {
    scope(() => {
      using own = new Sensitivities({ beta1, beta2 });
      const [mean, deviation] = [new Float64Array(6), new Float64Array(6)];
      for (let step = 0; step < 5; step++) {
        const [p, g] = [randomValues(6, 10 + step), randomValues(6, 20 + step)];
        own.update('w', tensor(p, [2, 3], device), tensor(g, [2, 3], device));
        for (let i = 0; i < 6; i++) {
          const size = Math.abs((p[i] as number) * (g[i] as number));
          mean[i] = beta1 * (mean[i] as number) + (1 - beta1) * size;
          const away = Math.abs(size - (mean[i] as number));
          deviation[i] = beta2 * (deviation[i] as number) + (1 - beta2) * away;
        }
        const pairs: readonly [Tensor, (i: number) => number][] = [
          [own.sensitivity('w'), (i) => mean[i] as number],
          [own.uncertainty('w'), (i) => deviation[i] as number],
          [own.score('w'), (i) => (mean[i] as number) * (deviation[i] as number)],
        ];
        for (const [found, expected] of pairs) {
          expect(found.shape).toEqual([2, 3]);
          found.readSync().forEach((value, i) => {
            expect(Math.abs(value - expected(i))).toBeLessThan(1e-6);
          });
        }
      }
      expect(own.names).toEqual(['w']);
    });
  });
});

describe('sensitivities', () => {
  it('go on from stored means with the same bits', () => {
    scope(() => {
      const run = (own: Sensitivities, from: number, to: number) => {
        for (let step = from; step < to; step++) {
          own.update(
            'w',
            tensor(randomValues(4, step), [4]),
            tensor(randomValues(4, 50 + step), [4]),
          );
        }
      };
      const [whole, first, second] = [
        new Sensitivities(),
        new Sensitivities(),
        new Sensitivities(),
      ];
      run(whole, 0, 6);
      run(first, 0, 3);
      const stored = { sensitivity: first.sensitivity('w'), uncertainty: first.uncertainty('w') };
      second.restore('w', stored);
      first.dispose();
      run(second, 3, 6);
      expect(second.score('w').readSync()).toEqual(whole.score('w').readSync());
    });
  });

  it('score the ranks of a triple', () => {
    scope(() => {
      const [a, e, b] = [randomValues(6, 1), randomValues(2, 2), randomValues(8, 3)];
      const found = tripletScores({
        loraA: tensor(a, [2, 3]),
        loraE: tensor(e, [2, 1]),
        loraB: tensor(b, [4, 2]),
      });
      for (const i of [0, 1]) {
        const row = [0, 1, 2].reduce((sum, k) => sum + (a[3 * i + k] as number), 0) / 3;
        const column = [0, 1, 2, 3].reduce((sum, n) => sum + (b[2 * n + i] as number), 0) / 4;
        expect(found[i]).toBeCloseTo((e[i] as number) + row + column, 12);
      }
    });
  });

  it('keep nothing, and reject what does not fit', async () => {
    const live = async () => {
      await synchronize('cpu');
      return memoryUsage('cpu').liveTensors;
    };
    const before = await live();
    const own = new Sensitivities();
    scope(() => {
      const ones = tensor(Float32Array.from([1, 2]), [2]);
      for (let i = 0; i < 3; i++) own.update('w', ones, ones);
      expect(() => own.update('w', ones, Tensor.zeros([3]))).toThrow(
        'gradient must be of shape [2], got [3]',
      );
      const wide = Tensor.zeros([3], { device: 'cpu' });
      expect(() => own.add('w', wide)).toThrow(
        'the sensitivity of w must be of shape [2], got [3]',
      );
      expect(() => own.add(3 as never, ones)).toThrow('name must be a string');
      expect(() => own.update('w', undefined as never, ones)).toThrow('parameter must be a Tensor');
      expect(() => own.score('v')).toThrow('name must be one that was added, got "v"');
      expect(() => own.restore('w', { sensitivity: ones, uncertainty: wide })).toThrow(
        'uncertainty must be',
      );
      expect(() => tripletScores({ loraA: ones, loraE: ones, loraB: ones })).toThrow(
        'the scores must be',
      );
      expect(() => new Sensitivities({ beta1: 1 })).toThrow('beta1 must be in [0, 1), got 1');
      expect(() => new Sensitivities({ beta: 1 } as never)).toThrow('beta');
    });
    expect(await live()).toBe(before + 2);
    own.dispose();
    own.dispose();
    expect(await live()).toBe(before);
  });
});
