// Optimisers without a recorded case, against what their papers say of a step, in float64.
import { describe, expect, it } from 'vitest';
import { hash32 } from '../../lib/core/random.js';
import {
  type AnyOptimizer,
  defineOptimizer,
  optimizers,
  scope,
  Tensor,
  type TrainedParameter,
  Trainer,
  type TrainPass,
} from '../../lib/index.js';
import { floraProjection } from '../../lib/optim/dense/flora.js';
import { randomValues } from '../finetune/setup.js';

const device = 'cpu';
const random = (shape: readonly number[], seed: number) =>
  Tensor.from(
    randomValues(
      shape.reduce((a, b) => a * b, 1),
      seed,
    ),
    shape,
    { device },
  );

/** A pass without a loss, whose gradients are given. */
const given =
  (...gradients: (readonly [Tensor, Tensor])[]): TrainPass =>
  (tape) => ({ loss: tape.own(Tensor.from([0], [1], { device })), added: gradients });

type Matrix = readonly (readonly number[])[];
const matrix = (t: Tensor): Matrix => {
  const [rows = 0, cols = 0] = t.shape;
  const values = t.readSync();
  return Array.from({ length: rows }, (_, i) => [...values.subarray(i * cols, (i + 1) * cols)]);
};
const turned = (a: Matrix): Matrix =>
  (a[0] as number[]).map((_, k) => a.map((row) => row[k] as number));
const times = (a: Matrix, b: Matrix): Matrix => {
  const columns = turned(b);
  return a.map((row) =>
    columns.map((column) => row.reduce((sum, x, k) => sum + x * (column[k] as number), 0)),
  );
};
const combine = (a: Matrix, b: Matrix, f: (x: number, y: number) => number): Matrix =>
  a.map((row, i) => row.map((x, k) => f(x, (b[i] as number[])[k] as number)));
const scaled = (a: Matrix, s: number): Matrix => a.map((row) => row.map((x) => s * x));
const flat = (a: Matrix): number[] => a.flat();
const largest = (a: Matrix): number => Math.max(...flat(a).map(Math.abs));

/** A layer's factors. */
function pairOf(N: number, K: number, r: number) {
  const [a, b] = [random([r, K], 1), random([N, r], 2)];
  const of = (name: string, role: 'down' | 'up', tensor: Tensor): TrainedParameter => ({
    ...{ name, role, tensor, layer: 'lin', scaling: 2 },
  });
  return { a, b, parameters: [of('lin.loraA', 'down', a), of('lin.loraB', 'up', b)] };
}

/** The gradients that reach the step of an optimiser. */
function spied(optimizer: AnyOptimizer, seen: Matrix[]): AnyOptimizer {
  const { step: _, update: __, ...rest } = optimizer as unknown as Record<string, unknown>;
  return defineOptimizer({
    ...(rest as unknown as AnyOptimizer),
    capturable: false,
    state: () => ({}),
    step: ({ updates }) => seen.push(...updates.map(({ gradient }) => matrix(gradient))),
  });
}

describe('lora-pro', () => {
  it('changes the weight as near to the full gradient as its factors can, with the smallest gradients', () => {
    scope(() => {
      const [N, K, r, s] = [9, 7, 3, 2];
      const { a, b, parameters } = pairOf(N, K, r);
      const [A, B] = [matrix(a), matrix(b)];
      const full = matrix(random([N, K], 3));
      const [gA, gB] = [scaled(times(turned(B), full), s), scaled(times(full, turned(A)), s)];
      const seen: Matrix[] = [];
      const trainer = new Trainer(parameters, { optimizer: spied(optimizers.loraPro, seen) });
      const tensor = (m: Matrix) => Tensor.from(flat(m), [m.length, (m[0] as number[]).length]);
      trainer.step(given([a, tensor(gA)], [b, tensor(gB)]));
      const [mineA, mineB] = seen as [Matrix, Matrix];
      const change = scaled(
        combine(times(B, mineA), times(mineB, A), (x, y) => x + y),
        s,
      );
      const rest = combine(change, full, (x, y) => x - y);
      // Where the distance is least, what is left has no part in the factors' spans.
      expect(largest(times(turned(B), rest))).toBeLessThan(1e-4);
      expect(largest(times(rest, turned(A)))).toBeLessThan(1e-4);
      // Along (X A, −B X), which changes no weight, their size is least where its slope is 0.
      const slope = combine(times(mineA, turned(A)), times(turned(B), mineB), (x, y) => x - y);
      const size = largest(times(mineA, turned(A)));
      expect(largest(slope)).toBeLessThan(1e-4 * Math.max(1, size));
    });
  });
});

describe('flora', () => {
  it('keeps a momentum in a random projection and carries it over to the next', () => {
    scope(() => {
      const [N, K, rank, lr, beta] = [5, 11, 3, 0.1, 0.9];
      const p = random([N, K], 4);
      let expected = matrix(p);
      const trainer = new Trainer([{ name: 'w', role: 'other', tensor: p }], {
        ...{ optimizer: optimizers.flora, settings: { rank, kappa: 2, seed: 3 }, lr },
        weightDecay: 0.1,
      });
      const projection = (period: number): Matrix => {
        const values = floraProjection(hash32(3, 'w', period), rank, K);
        return Array.from({ length: rank }, (_, i) => [...values.subarray(i * K, (i + 1) * K)]);
      };
      let m: Matrix = Array.from({ length: N }, () => new Array<number>(rank).fill(0));
      for (let step = 0; step < 5; step++) {
        const g = random([N, K], 10 + step);
        trainer.step(given([p, g]));
        const period = Math.floor(step / 2);
        const a = projection(period);
        if (step > 0 && step % 2 === 0) m = times(times(m, projection(period - 1)), turned(a));
        m = combine(m, times(matrix(g), turned(a)), (x, y) => beta * x + (1 - beta) * y);
        const moved = times(m, a);
        expected = combine(expected, moved, (w, d) => w - lr * (d + 0.1 * w));
      }
      expect(largest(combine(matrix(p), expected, (x, y) => x - y))).toBeLessThan(1e-5);
      // The entries of a projection have the variance 1 / rank.
      const many = floraProjection(7, 64, 256);
      const mean = many.reduce((sum, x) => sum + x, 0) / many.length;
      const square = many.reduce((sum, x) => sum + x * x, 0) / many.length;
      expect(Math.abs(mean)).toBeLessThan(0.01);
      expect(Math.abs(square * 64 - 1)).toBeLessThan(0.05);
    });
  });
});

/** The values of both factors after some steps with the same gradients. */
function trained(optimizer: AnyOptimizer, settings: object, weightDecay = 0) {
  const { a, b, parameters } = pairOf(6, 8, 2);
  const gate = random([2], 5);
  const trainer = new Trainer([...parameters, { name: 'lin.gate', role: 'other', tensor: gate }], {
    ...{ optimizer, settings: settings as Record<string, unknown>, lr: 0.01, weightDecay },
  });
  for (let step = 0; step < 3; step++) {
    const all = [a, b, gate].map((t, i) => [t, random(t.shape, 20 + 3 * step + i)] as const);
    trainer.step(given(...all));
  }
  return { a: [...a.readSync()], b: [...b.readSync()], gate: [...gate.readSync()], trainer };
}

describe('lora-sp', () => {
  it('moves the others as AdamW, and keeps a share of the entries with states of 0', () => {
    scope(() => {
      const whole = trained(optimizers.adamw, {}, 0.1);
      const { a, b, trainer } = trained(optimizers.loraSp, { frozen: 0.5, seed: 2 }, 0.1);
      const { a: startA, b: startB } = pairOf(6, 8, 2);
      const start = [...startA.readSync(), ...startB.readSync()];
      const moments = ['lin.loraA', 'lin.loraB'].flatMap((name) => [
        ...(trainer.state.get(name)?.v?.readSync() ?? []),
      ]);
      let kept = 0;
      for (const [i, value] of [...a, ...b].entries()) {
        const frozen = value === start[i];
        if (frozen) kept++;
        else expect(value).toBe([...whole.a, ...whole.b][i]);
        expect(moments[i] === 0).toBe(frozen);
      }
      expect(kept).toBeGreaterThan(7);
      expect(kept).toBeLessThan(21);
    });
  });
});

describe('star', () => {
  it('is AdamW with weight decay for loraB alone', () => {
    scope(() => {
      const [mine, plain, decayed] = [
        trained(optimizers.star, { decay: 0.5 }, 0.3),
        trained(optimizers.adamw, {}, 0),
        trained(optimizers.adamw, {}, 0.5),
      ] as const;
      expect([mine.a, mine.b]).toEqual([plain.a, decayed.b]);
    });
  });
});

describe('sora', () => {
  it('takes the threshold from the gates after AdamW, and nothing from other parameters', () => {
    scope(() => {
      const first = (optimizer: AnyOptimizer, settings: object) => {
        const gate = Tensor.from([0.5, -0.5, 0.004, -0.02], [4], { device });
        const other = random([4], 6);
        const trainer = new Trainer(
          [
            { name: 'lin.gate', role: 'other', tensor: gate },
            { name: 'lin.loraA', role: 'down', tensor: other },
          ],
          { optimizer, settings: settings as Record<string, unknown>, lr: 0.001 },
        );
        trainer.step(given([gate, random([4], 7)], [other, random([4], 8)]));
        return [gate.readSync(), other.readSync()] as const;
      };
      const [gates, others] = first(optimizers.sora, { threshold: 0.01 });
      const [plainGates, plainOthers] = first(optimizers.adamw, {});
      const soft = plainGates.map((x) => Math.sign(x) * Math.max(0, Math.abs(x) - 0.01));
      expect([...gates]).toEqual([...soft]);
      expect(gates[2]).toBe(0);
      expect(Math.abs(gates[3] as number)).toBeGreaterThan(0.005);
      expect(others).toEqual(plainOthers);
    });
  });
});
