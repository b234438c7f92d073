/** Trainer: its step against torch's formula, accumulation, optimisers of one's own, and what it rejects. */
import { describe, expect, it } from 'vitest';
import {
  adamw,
  defineOptimizer,
  flushSync,
  memoryUsage,
  multiplyAdd,
  type OptimizerDefinition,
  scope,
  Tensor,
  Trainer,
  type TrainerOptions,
  type TrainPass,
} from '../../lib/index.js';
import { codeOf } from '../checkpoint/raw-file.js';

const device = 'cpu';
const row = (...values: number[]) => Tensor.from(values, [values.length], { device });
const parameter = (name: string, tensor: Tensor) => ({ name, role: 'other' as const, tensor });

/** half of Σ (p − goal)², whose gradient is p − goal. */
const distance =
  (p: Tensor, goal: Tensor, share = 1): TrainPass =>
  (tape) => {
    const difference = tape.add(tape.variable(p), tape.constant(goal), 1, -1);
    const flat = tape.reshape(difference, [1, p.size]);
    return tape.reshape(tape.sum(tape.multiply(flat, flat, share / 2), 1), [1]);
  };

/** AdamW of torch, in float64. */
function oracle(p: number[], goal: readonly number[], steps: number, options: TrainerOptions) {
  const { lr = 1e-3, weightDecay = 0, clip = Number.POSITIVE_INFINITY } = options;
  const [m, v] = [p.map(() => 0), p.map(() => 0)];
  for (let t = 1; t <= steps; t++) {
    const g = p.map((value, i) => value - (goal[i] as number));
    const factor = Math.min(1, clip / (Math.hypot(...g) + 1e-6));
    p.forEach((value, i) => {
      const gi = factor * (g[i] as number);
      m[i] = 0.9 * (m[i] as number) + 0.1 * gi;
      v[i] = 0.999 * (v[i] as number) + 0.001 * gi * gi;
      const mean = (m[i] as number) / (1 - 0.9 ** t);
      const root = Math.sqrt((v[i] as number) / (1 - 0.999 ** t)) + 1e-8;
      p[i] = value * (1 - lr * weightDecay) - (lr * mean) / root;
    });
  }
  return p;
}

describe('a step', () => {
  it.each<[string, TrainerOptions]>([
    ['plain', { lr: 0.1 }],
    ['with decay and clipping', { lr: 0.05, weightDecay: 0.3, clip: 0.7 }],
  ])('is that of AdamW: %s', (_, options) => {
    scope(() => {
      const [start, goal] = [
        [1, -2, 0.5],
        [0.2, 3, 0.5],
      ] as const;
      const [p, aim] = [row(...start), row(...goal)];
      const trainer = new Trainer([parameter('p', p)], options);
      for (let i = 0; i < 7; i++) trainer.step(distance(p, aim));
      const expected = oracle([...start], goal, 7, options);
      for (const [i, value] of p.readSync().entries()) {
        expect(value).toBeCloseTo(expected[i] as number, 5);
      }
      expect(trainer.steps).toBe(7);
    });
  });

  it('adds up its passes, and the uses of what layers share', () => {
    scope(() => {
      const [p, aim] = [row(1, 2, 3, 4), row(0, 0, 1, 1)];
      const view = p.reshape([2, 2]);
      const trainer = new Trainer([{ ...parameter('p', p), views: [view] }]);
      const twice: TrainPass = (tape) => {
        const all = tape.reshape(tape.variable(view), [1, 4]);
        const other = tape.reshape(tape.variable(p), [1, 4]);
        return tape.reshape(tape.sum(tape.multiply(all, other), 1), [1]);
      };
      const { loss, gradients } = trainer.rehearse([distance(p, aim), twice, distance(p, aim, 2)]);
      const values = [1, 2, 3, 4];
      const goal = [0, 0, 1, 1];
      const apart = values.map((value, i) => value - (goal[i] as number));
      const squares = apart.reduce((sum, d) => sum + d * d, 0);
      expect(loss.readSync()[0]).toBeCloseTo(1.5 * squares + 30, 4);
      expect(Array.from(gradients[0]?.readSync() ?? [])).toEqual(
        values.map((value, i) => 3 * (apart[i] as number) + 2 * value),
      );
      expect(p.readSync()).toEqual(Float32Array.from(values));
    });
  });

  it('adds gradients that do not follow from its loss', () => {
    scope(() => {
      const [p, aim] = [row(1, 1), row(0, 0)];
      const trainer = new Trainer([parameter('p', p)]);
      const pass: TrainPass = (tape, place) => ({
        loss: distance(p, aim)(tape, place) as never,
        added: [[p, row(5, -5)]],
      });
      expect(Array.from(trainer.rehearse(pass).gradients[0]?.readSync() ?? [])).toEqual([6, -4]);
    });
  });

  it.each([
    ['a loss', Number.NaN, 1],
    ['a loss that is infinite', Number.POSITIVE_INFINITY, 1],
    ['a gradient', 0, Number.NaN],
  ])('changes nothing for %s that is not finite', async (_, shift, factor) => {
    const [p, aim] = [row(1, 2), row(0, 0)];
    const trainer = new Trainer([parameter('p', p)], { lr: 1 });
    const pass: TrainPass = (tape, place) => {
      const loss = distance(p, aim)(tape, place) as never;
      return {
        loss: tape.add(loss, tape.own(row(shift))),
        added: [[p, row(factor - 1, factor - 1)]],
      };
    };
    const { gradientNorm } = await trainer.step(pass).read();
    expect(Number.isFinite(gradientNorm)).toBe(false);
    expect(Array.from(p.readSync())).toEqual([1, 2]);
    for (const state of trainer.state.values()) {
      for (const tensor of Object.values(state)) {
        expect(Array.from(tensor.readSync())).toEqual([0, 0]);
      }
    }
    await trainer.step(distance(p, aim)).read();
    expect(p.readSync()[0]).toBeLessThan(1);
    for (const each of [trainer, p, aim]) each.dispose();
  });

  it('leaves nothing behind once it was read', async () => {
    const [p, aim] = [row(1, 2), row(0, 0)];
    const trainer = new Trainer([parameter('p', p)]);
    const live = () => {
      flushSync(device);
      return memoryUsage(device).liveTensors;
    };
    await trainer.step(distance(p, aim)).read();
    const before = live();
    await trainer.step([distance(p, aim), distance(p, aim)]).read();
    expect(live()).toBe(before);
    trainer.dispose();
    trainer.dispose();
    expect(live()).toBe(before - 2);
    for (const each of [p, aim]) each.dispose();
  });
});

describe('an optimiser of one’s own', () => {
  const sgd = (change: Partial<OptimizerDefinition<{ momentum: number }>> = {}) =>
    defineOptimizer<{ momentum: number }>({
      optimizer: 'sgd',
      reference: 'Robbins and Monro, 1951',
      defaults: { momentum: 0 },
      state: () => ({}),
      group: ({ role }) => ({ rate: role === 'up' ? 10 : 1 }),
      step: ({ updates, lr, settings }) => {
        for (const {
          parameter: { tensor },
          gradient,
          rate,
        } of updates) {
          const alpha = -lr * rate * (1 - settings.momentum);
          tensor.write(multiplyAdd({ a: gradient, alpha, c: tensor }).readSync());
        }
      },
      ...change,
    });

  it('steps in place, with its groups and settings', () => {
    scope(() => {
      const [a, b, aim] = [row(1), row(1), row(0)];
      const parameters = [parameter('a', a), { ...parameter('b', b), role: 'up' as const }];
      const settings = { momentum: 0.5 };
      const trainer = new Trainer(parameters, { optimizer: sgd(), settings, lr: 0.02 });
      trainer.step([distance(a, aim), distance(b, aim)]);
      expect(a.readSync()[0]).toBeCloseTo(0.99, 6);
      expect(b.readSync()[0]).toBeCloseTo(0.9, 6);
    });
  });

  it.each<[string, unknown, string, RegExp]>([
    [
      'a name that is no text',
      { ...sgd(), optimizer: 3 },
      'ERR_TYPE',
      /optimizer must be a string/,
    ],
    ['an empty reference', { ...sgd(), reference: '' }, 'ERR_VALUE', /reference must be a text/],
    ['no defaults', { ...sgd(), defaults: null }, 'ERR_TYPE', /defaults must be an object/],
    ['a step that is no function', { ...sgd(), step: 1 }, 'ERR_TYPE', /step must be a function/],
    [
      'a group that is no function',
      { ...sgd(), group: {} },
      'ERR_TYPE',
      /group must be a function/,
    ],
  ])('is rejected with %s', (_, definition, code, message) => {
    const call = () => defineOptimizer(definition as OptimizerDefinition<object>);
    expect(codeOf(call)).toBe(code);
    expect(call).toThrow(message);
  });
});

describe('a trainer rejects', () => {
  const p = Tensor.from([1], [1], { device });
  const elsewhere = Tensor.from([1], [1], { device: 'reference' });
  const one = [parameter('p', p)];

  it.each<[string, unknown, object | undefined, string, RegExp]>([
    ['no list', {}, undefined, 'ERR_TYPE', /parameters must be an array/],
    ['an empty list', [], undefined, 'ERR_VALUE', /parameters must be at least one, got none/],
    ['a name twice', [...one, ...one], undefined, 'ERR_VALUE', /distinct names, got "p" twice/],
    [
      'no tensor',
      [{ name: 'p', tensor: 1 }],
      undefined,
      'ERR_TYPE',
      /\[0\]\.tensor must be a Tensor/,
    ],
    [
      'two devices',
      [...one, parameter('q', elsewhere)],
      undefined,
      'ERR_DEVICE',
      /cpu, got reference/,
    ],
    ['a rate below 0', one, { lr: -1 }, 'ERR_VALUE', /lr must be at least 0, got -1/],
    ['a norm of 0', one, { clip: 0 }, 'ERR_VALUE', /clip must be above 0, got 0/],
    ['another option', one, { rate: 1 }, 'ERR_VALUE', /rate/],
    [
      'another setting',
      one,
      { settings: { beta3: 1 } },
      'ERR_VALUE',
      /beta1, beta2, eps\), got "beta3"/,
    ],
    [
      'a setting of another type',
      one,
      { settings: { eps: 'x' } },
      'ERR_TYPE',
      /eps must be a number/,
    ],
  ])('%s', (_, parameters, options, code, message) => {
    const call = () => new Trainer(parameters as never, options as never);
    expect(codeOf(call)).toBe(code);
    expect(call).toThrow(message);
  });

  it.each<[string, unknown, string, RegExp]>([
    ['no passes', [], 'ERR_VALUE', /passes must be at least one, got none/],
    ['a pass that is no function', [1], 'ERR_TYPE', /passes must be functions/],
    [
      'a loss of two values',
      (tape: never) => (tape as { variable(t: Tensor): unknown }).variable(row(1, 2)),
      'ERR_SHAPE',
      /loss of a pass must be \[1\], got \[2\]/,
    ],
    [
      'gradients of other tensors',
      () => ({ loss: { tensor: p }, added: [[elsewhere, p]] }),
      'ERR_TYPE',
      /./,
    ],
  ])('%s, and goes on', (_, passes, code, message) => {
    scope(() => {
      const q = row(2);
      const trainer = new Trainer([parameter('q', q)], { lr: 0.1, optimizer: adamw });
      const call = () => trainer.step(passes as never);
      expect(codeOf(call)).toBe(code);
      expect(call).toThrow(message);
      expect([trainer.steps, q.readSync()[0]]).toEqual([0, 2]);
      trainer.step(distance(q, row(0)));
      expect(q.readSync()[0]).toBeLessThan(2);
    });
  });
});
