// Two levels: the hypergradient of a quadratic problem in closed form, and what AutoLoRA and BiLoRA do with it.
import { describe, expect, it } from 'vitest';
import { rules } from '../../lib/index.js';
import { hypergradient } from '../../lib/rules/parts/bilevel.js';
import { randomValues, tinyTrainer } from '../finetune/setup.js';
import { worst } from '../starts/setup.js';
import { type MockRun, mockRun } from './mock-run.js';
import { named, tensorOf } from './setup.js';

const [R, N, K] = [3, 2, 2];
const size = R * (N + K);
/** L_tr = ½ ‖W − M α‖², L_val = ½ ‖W − c‖² + ½ ‖α‖², with W the factors of one layer in a row. */
const M = randomValues(size * R, 5);
const c = randomValues(size, 6);

function problem(rule: typeof rules.bilora | typeof rules.autolora, settings: object) {
  const layers = {
    one: {
      loraA: { shape: [R, K], values: randomValues(R * K, 1) },
      loraB: { shape: [N, R], values: randomValues(N * R, 2) },
      loraE: { shape: [R, 1], values: randomValues(R, 3) },
    },
  };
  const at = (name: string) => Array.from(run.parameters.get(`one.${name}`)?.values() ?? []);
  const state = () => ({ w: [...at('loraA'), ...at('loraB')], alpha: at('loraE') });
  const residual = () => {
    const { w, alpha } = state();
    return w.map(
      (value, i) => value - alpha.reduce((s, x, j) => s + (M[i * R + j] as number) * x, 0),
    );
  };
  const split = (w: number[], alpha: number[]) =>
    new Map([
      ['one.loraA', Float32Array.from(w.slice(0, R * K))],
      ['one.loraB', Float32Array.from(w.slice(R * K))],
      ['one.loraE', Float32Array.from(alpha)],
    ]);
  const passes: string[] = [];
  const gradientsOf = ({ part }: { readonly part: number }) => {
    passes.push(part === 0 ? 'training' : 'validation');
    const { w, alpha } = state();
    if (part !== 0)
      return split(
        w.map((value, i) => value - (c[i] as number)),
        alpha,
      );
    const e = residual();
    const down = alpha.map(
      (_, j) => -e.reduce((s, value, i) => s + value * (M[i * R + j] as number), 0),
    );
    return split(e, down);
  };
  const run: MockRun = mockRun(rule, {
    ...{ layers, settings: { ...settings }, lr: 0.1, steps: 10 },
    gradientsOf,
  });
  const setGradients = () => {
    for (const [name, gradient] of gradientsOf({ part: 0 })) {
      const parameter = run.parameters.get(name);
      if (parameter !== undefined) parameter.gradient = gradient;
    }
    passes.length = 0;
  };
  /** d L_val(W − ξ (W − M α), α) / dα. */
  const exact = (rate: number) => {
    const { w, alpha } = state();
    const e = residual();
    const moved = w.map((value, i) => value - rate * (e[i] as number) - (c[i] as number));
    return alpha.map(
      (own, j) =>
        own + rate * moved.reduce((s, value, i) => s + value * (M[i * R + j] as number), 0),
    );
  };
  return { run, setGradients, exact, passes };
}

describe('hypergradient', () => {
  it.each([0, 0.3])('is exact for a quadratic problem, at ξ = %f', (rate) => {
    const { run, setGradients, exact } = problem(rules.bilora, { orthogonal: 0 });
    setGradients();
    const upper = [run.parameters.get('one.loraE')].flatMap((own) => own ?? []);
    const lower = [...run.parameters.values()].filter((own) => !upper.includes(own));
    const before = [...run.parameters.values()].map((own) => own.values());
    const levels = {
      lower,
      upper,
      training: { part: 0, parts: 2 },
      validation: { part: 1, parts: 2 },
      rate,
    };
    const found = hypergradient(run, levels);
    expect(worst(found.get('one.loraE') ?? [], exact(rate))).toBeLessThan(2e-4);
    expect([...run.parameters.values()].map((own) => own.values())).toEqual(before);
  });
});

describe('bilora', () => {
  it('gives the values between the vectors the gradient of the validation loss after a step', () => {
    const { run, setGradients, exact, passes } = problem(rules.bilora, { orthogonal: 0 });
    setGradients();
    const own = run.parameters.get('one.loraA')?.gradient?.slice();
    rules.bilora.gradients?.(run as never);
    expect(worst(run.parameters.get('one.loraE')?.gradient ?? [], exact(0.1))).toBeLessThan(1e-4);
    expect(run.parameters.get('one.loraA')?.gradient).toEqual(own);
    expect(passes).toEqual(['validation', 'training', 'training']);
    const flat = problem(rules.bilora, { orthogonal: 0, unrolled: false });
    flat.setGradients();
    rules.bilora.gradients?.(flat.run as never);
    const direct = flat.run.parameters.get('one.loraE');
    expect(worst(direct?.gradient ?? [], direct?.values() ?? [])).toBeLessThan(1e-6);
    expect(flat.passes).toEqual(['validation']);
  });

  it('sees other sequences on the two levels of a run', () => {
    const { trainer, dispose } = tinyTrainer(
      { hiddenSize: 32, intermediateSize: 48, numKeyValueHeads: 2, headDim: 8 },
      { format: 'none' },
      { adapter: { method: 'adalora', r: 2 }, rules: [{ rule: named('bilora'), settings: {} }] },
    );
    const seen = Array.from({ length: 6 }, (_, step) => trainer.sequencesOfStep(step)).flat();
    expect(seen.every((i) => i % 10 < 8)).toBe(true);
    dispose();
  });
});

describe('autolora', () => {
  it('moves its gates by Adam on the parameters of a softmax', () => {
    const { run, setGradients, exact } = problem(rules.autolora, { search: 8, gateRate: 0.05 });
    rules.autolora.prepare?.(run as never);
    const gate = run.parameters.get('one.loraE');
    expect(worst(gate?.values() ?? [], [1 / 3, 1 / 3, 1 / 3])).toBeLessThan(1e-7);
    expect(
      run.parameters
        .get('one.loraB')
        ?.values()
        .every((value) => value === 0),
    ).toBe(true);
    let theta = [0, 0, 0];
    let m = [0, 0, 0];
    let v = [0, 0, 0];
    for (let t = 1; t <= 3; t++) {
      run.step = t - 1;
      setGradients();
      const g = exact(0.1);
      rules.autolora.gradients?.(run as never);
      expect(gate?.gradient).toBeUndefined();
      run.step = t;
      rules.autolora.after?.(run as never);
      const sum = theta.reduce((s, x) => s + Math.exp(x), 0);
      const p = theta.map((x) => Math.exp(x) / sum);
      // The Jacobian of the softmax, entry by entry.
      const slope = p.map((pi, i) =>
        p.reduce((s, pj, j) => s + pj * ((i === j ? 1 : 0) - pi) * (g[j] as number), 0),
      );
      m = m.map((value, i) => 0.5 * value + 0.5 * (slope[i] as number));
      v = v.map((value, i) => 0.999 * value + 0.001 * (slope[i] as number) ** 2);
      theta = theta.map((value, i) => {
        const up = (m[i] as number) / (1 - 0.5 ** t);
        return value - (0.05 * up) / (Math.sqrt((v[i] as number) / (1 - 0.999 ** t)) + 1e-8);
      });
      const next = theta.reduce((s, x) => s + Math.exp(x), 0);
      const expected = theta.map((x) => Math.exp(x) / next);
      expect(worst(gate?.values() ?? [], expected), `step ${t}`).toBeLessThan(1e-4);
    }
  });

  it('keeps the ranks above the threshold, at least one, and trains new factors of them', () => {
    for (const [threshold, kept] of [
      [1, [0, 1, 1]],
      [2.9, [0, 1, 0]],
      [0, [1, 1, 1]],
    ] as const) {
      const { run, setGradients } = problem(rules.autolora, { search: 1, gateRate: 0, threshold });
      rules.autolora.prepare?.(run as never);
      const theta = run.state['theta/one'] as Float64Array;
      theta.set([-2, 0.1, 0]);
      setGradients();
      rules.autolora.gradients?.(run as never);
      run.step = 1;
      rules.autolora.after?.(run as never);
      expect(Array.from(run.parameters.get('one.loraE')?.values() ?? [])).toEqual(kept);
      expect(run.restarts).toBe(1);
      // The gates stay from here on.
      setGradients();
      rules.autolora.gradients?.(run as never);
      expect(run.parameters.get('one.loraE')?.gradient).toBeUndefined();
      run.step = 2;
      rules.autolora.after?.(run as never);
      rules.autolora.finish?.(run as never);
      expect(run.kept.get('one')).toEqual(kept);
    }
  });

  it('ends with factors between gates of 1, on all sequences', async () => {
    const { trainer, dispose } = tinyTrainer(
      { hiddenSize: 32, intermediateSize: 48, numKeyValueHeads: 2, headDim: 8 },
      { format: 'none' },
      {
        ...{ adapter: { method: 'sora', r: 3 }, steps: 8, warmup: 0 },
        rules: [{ rule: named('autolora'), settings: { search: 4 } }],
      },
    );
    const rates: number[] = [];
    for (let i = 0; i < 8; i++) rates.push((await trainer.train()).lr);
    expect(rates.slice(4)).toEqual(rates.slice(0, 4));
    trainer.finish();
    let ranks = 0;
    for (const { place } of trainer.adapters.layers) {
      const gates = Array.from(tensorOf(trainer, `${place.module}.gate`));
      expect(gates.every((gate) => gate === 0 || gate === 1)).toBe(true);
      ranks += gates.reduce((a, b) => a + b, 0);
      expect(Array.from(trainer.rules?.kept.get(place.module) ?? [])).toEqual(gates);
    }
    expect(ranks).toBeLessThan(3 * trainer.adapters.layers.length);
    dispose();
  });
});
