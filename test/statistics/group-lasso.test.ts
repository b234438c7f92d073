// Group penalties: the proximal step against its defining minimum, GS-LoRA's optimiser, LoRA-drop's choice of layers.
import { describe, expect, it } from 'vitest';
import {
  groupLasso,
  leadingLayers,
  optimizers,
  scope,
  shrinkGroups,
  Tensor,
  Trainer,
  type TrainPass,
} from '../../lib/index.js';
import { randomValues } from '../finetune/setup.js';

const tensor = (values: ArrayLike<number>, shape: number[]) =>
  Tensor.from(Float32Array.from(values), shape, { device: 'cpu' });

const norm = (...all: ArrayLike<number>[]) =>
  Math.hypot(...all.flatMap((each) => Array.from(each)));

describe('the group lasso', () => {
  it('is the sum of norms, with its gradients', () => {
    scope(() => {
      const [a, b, zero] = [randomValues(6, 1), randomValues(4, 2), [0, 0]];
      const tensors = [tensor(a, [2, 3]), tensor(b, [2, 2]), tensor(zero, [2])] as const;
      const { loss, norms, gradients } = groupLasso([[tensors[0], tensors[1]], [tensors[2]]], 0.5);
      expect(loss).toBeCloseTo(0.5 * norm(a, b), 10);
      expect(norms).toEqual([norm(a, b), 0].map((each) => expect.closeTo(each, 10)));
      // By finite differences.
      const at = (i: number, change: number) => {
        const moved = a.slice();
        moved[i] = (moved[i] as number) + change;
        return 0.5 * norm(moved, b);
      };
      gradients
        .get(tensors[0])
        ?.readSync()
        .forEach((value, i) => {
          expect(Math.abs(value - (at(i, 0.5 ** 8) - at(i, -(0.5 ** 8))) * 2 ** 7)).toBeLessThan(
            1e-4,
          );
        });
      expect([...(gradients.get(tensors[2]) as Tensor).readSync()]).toEqual([0, 0]);
    });
  });

  it('shrinks to what minimises distance and penalty together', () => {
    scope(() => {
      const [a, b, small] = [randomValues(6, 3), randomValues(4, 4), [0.1, -0.1]];
      const [ta, tb, ts] = [tensor(a, [6]), tensor(b, [4]), tensor(small, [2])];
      const threshold = 0.4;
      expect(shrinkGroups([[ta, tb], [ts]], threshold)).toBe(1);
      expect([...ts.readSync()]).toEqual([0, 0]);
      const found = [...ta.readSync(), ...tb.readSync()];
      const start = [...a, ...b];
      const objective = (p: readonly number[]) =>
        threshold * norm(p) +
        0.5 * p.reduce((sum, v, i) => sum + (v - (start[i] as number)) ** 2, 0);
      const least = objective(found);
      for (let seed = 0; seed < 50; seed++) {
        const away = randomValues(10, 100 + seed);
        const other = found.map((v, i) => v + 0.03 * (away[i] as number));
        expect(objective(other)).toBeGreaterThan(least);
      }
      expect(objective(start)).toBeGreaterThan(least);
    });
  });

  it('rejects what is no group', () => {
    scope(() => {
      const a = tensor([1], [1]);
      expect(() => groupLasso([a] as never, 1)).toThrow('groups[0] must be an array of tensors');
      expect(() => groupLasso([[a], [a]], 1)).toThrow('groups must be without a tensor twice');
      expect(() => groupLasso([[1 as never]], 1)).toThrow('groups[0][0] must be a Tensor');
      expect(() => groupLasso([[a]], -1)).toThrow('strength must be at least 0, got -1');
      expect(() => shrinkGroups([[a]], Number.NaN)).toThrow('threshold must be finite');
      expect([...a.readSync()]).toEqual([1]);
    });
  });
});

describe('gs-lora', () => {
  /** Two layers in each of two blocks, with gradients from outside. */
  function trained(settings: object, steps: number) {
    return scope(() => {
      const names = ['0.q', '0.v', '1.q', '1.v'];
      const parameters = names.flatMap((name, i) => {
        const layer = `model.layers.${name}`;
        const scale = i === 3 ? 0.02 : 1;
        const values = (seed: number) => randomValues(4, seed).map((v) => scale * v);
        return [
          {
            name: `${layer}.loraA`,
            role: 'down' as const,
            layer,
            tensor: tensor(values(2 * i), [1, 4]),
          },
          {
            name: `${layer}.loraB`,
            role: 'up' as const,
            layer,
            tensor: tensor(values(2 * i + 1), [4, 1]),
          },
        ];
      });
      const start = parameters.map((p) => p.tensor.readSync());
      const trainer = new Trainer(parameters, {
        ...{ optimizer: optimizers.gsLora, lr: 0.01, weightDecay: 0.5 },
        settings: { beta1: 0, beta2: 0, ...settings },
      });
      const gradients: Float32Array[][] = [];
      for (let step = 0; step < steps; step++) {
        const own = parameters.map((_, p) => randomValues(4, 1000 + 50 * step + p));
        gradients.push(own);
        const pass: TrainPass = (tape) => ({
          loss: tape.own(tensor([0], [1])),
          added: parameters.map(
            (p, i) => [p.tensor, tensor(own[i] as Float32Array, [...p.tensor.shape])] as const,
          ),
        });
        trainer.step(pass);
      }
      return { start, gradients, end: parameters.map((p) => p.tensor.readSync()) };
    });
  }

  /** Signs of gradients, the decay, and the proximal step over these groups of parameters. */
  function oracle(
    start: Float32Array[],
    gradients: Float32Array[][],
    groups: number[][],
    shrinks: (step: number) => number,
  ) {
    let all = start.map((values) => Float64Array.from(values));
    for (const [step, own] of gradients.entries()) {
      all = all.map((values, p) =>
        values.map((v, i) => {
          const g = own[p]?.[i] as number;
          return v * (1 - 0.01 * 0.5) - (0.01 * g) / (Math.abs(g) + 1e-8);
        }),
      );
      for (const group of groups) {
        const size = norm(...group.map((p) => all[p] as Float64Array));
        const factor = Math.max(0, 1 - shrinks(step + 1) / size);
        for (const p of group) all[p] = (all[p] as Float64Array).map((v) => factor * v);
      }
    }
    return all;
  }

  it.each([
    [
      'block',
      [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
      ],
    ],
    [
      'layer',
      [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
      ],
    ],
    ['factor', [[0], [1], [2], [3], [4], [5], [6], [7]]],
  ])('takes the proximal step over groups by %s', (groups, members) => {
    const { start, gradients, end } = trained({ group: groups, strength: 8 }, 4);
    const expected = oracle(start, gradients, members, () => 0.08);
    end.forEach((values, p) => {
      values.forEach((v, i) => {
        expect(Math.abs(v - (expected[p]?.[i] as number))).toBeLessThan(1e-5);
      });
    });
    // The small layer is gone as a whole, unless its block holds it.
    const gone = [6, 7].every((p) => (end[p] as Float32Array).every((v) => v === 0));
    expect(gone).toBe(groups !== 'block');
  });

  it('waits for the warm-up', () => {
    const { start, gradients, end } = trained({ group: 'layer', strength: 8, warmup: 2 }, 4);
    const members = [
      [0, 1],
      [2, 3],
      [4, 5],
      [6, 7],
    ];
    const expected = oracle(start, gradients, members, (step) => (step > 2 ? 0.08 : 0));
    end.forEach((values, p) => {
      values.forEach((v, i) => {
        expect(Math.abs(v - (expected[p]?.[i] as number))).toBeLessThan(1e-5);
      });
    });
  });

  it('rejects settings that are none', () => {
    expect(() => trained({ group: 'head' }, 1)).toThrow('one of block, layer, factor');
    expect(() => trained({ strength: -1 }, 1)).toThrow('at least 0, got -1');
    expect(() => trained({ warmup: 0.5 }, 1)).toThrow('an integer of at least 0, got 0.5');
  });
});

describe('leadingLayers', () => {
  it('takes the largest until their share is reached', () => {
    const found = new Map([
      ['a', 1],
      ['b', 5],
      ['c', 3],
      ['d', 1],
    ]);
    expect(leadingLayers(found, 0.5)).toEqual(['b']);
    expect(leadingLayers(found, 0.51)).toEqual(['b', 'c']);
    expect(leadingLayers(found, 0.81)).toEqual(['b', 'c', 'a']);
    expect(leadingLayers(found, 1)).toEqual(['b', 'c', 'a', 'd']);
    expect(leadingLayers(new Map(), 1)).toEqual([]);
  });

  it('rejects what is no statistic', () => {
    expect(() => leadingLayers({} as never, 1)).toThrow('statistics must be a Map');
    expect(() => leadingLayers(new Map([['a', undefined]]), 1)).toThrow(
      'statistics of a must be a number',
    );
    expect(() => leadingLayers(new Map([['a', -1]]), 1)).toThrow('at least 0, got -1');
    expect(() => leadingLayers(new Map(), 0)).toThrow('share must be above 0, up to 1, got 0');
  });
});
