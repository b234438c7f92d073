// DropBP: the gradient past a block against differences of the loss with the block's output held, rates, and draws.
import { describe, expect, it } from 'vitest';
import { ModelTape } from '../../lib/autograd/model/model-tape.js';
import { full } from '../../lib/core/full.js';
import { type AnyRule, rules, scope, Tensor } from '../../lib/index.js';
import { randomValues, setValues, tinyTrainer, valuesOf } from '../finetune/setup.js';
import { mockRun } from './mock-run.js';
import { named, tensorOf } from './setup.js';

const SIZES = {
  hiddenSize: 32,
  intermediateSize: 48,
  numKeyValueHeads: 2,
  headDim: 8,
  numHiddenLayers: 2,
};

describe('a block that the backward pass skips', () => {
  it.each([
    ['layers.0.attention', 'model.layers.0.self_attn.o_proj', false],
    ['layers.0.mlp', 'model.layers.0.mlp.down_proj', false],
    ['layers.1.attention', 'model.layers.1.self_attn.o_proj', true],
    ['layers.1.mlp', 'model.layers.1.mlp.down_proj', false],
  ] as const)('%s adds a constant', (block, output, recompute) => {
    const { trainer, decoder, dispose } = tinyTrainer(SIZES, { format: 'none' });
    setValues(
      trainer,
      valuesOf(trainer).map((v, i) => v + 0.05 * Math.sin(i)),
    );
    const { ids, targets } = trainer.data.train.batch([0, 1, 2]);
    const { T } = trainer.data.train;
    const { byModule } = trainer.adapters;
    const B = 3;
    let held: Float32Array | undefined;
    const lossWith = () =>
      scope(() => {
        const tape = new ModelTape({ recording: false });
        const call = {
          adapters: byModule,
          observe: (module: string, _: unknown, y: Parameters<typeof tape.reshape>[0]) => {
            if (module !== output) return y;
            held ??= y.tensor.readSync();
            return tape.own(Tensor.from(held, y.shape, { device: 'cpu' }));
          },
        };
        const { features } = decoder.forward(tape, { ids, B, T }, call);
        return decoder
          .loss(tape, features, targets, { scale: 1 / targets.length })
          .loss.tensor.readSync()[0] as number;
      });
    const gradients = (skip: ReadonlySet<string>) =>
      scope(() => {
        const tape = new ModelTape();
        const call = { adapters: byModule, skip, recompute };
        const { features } = decoder.forward(tape, { ids, B, T }, call);
        const { loss } = decoder.loss(tape, features, targets, { scale: 1 / targets.length });
        const parameters = trainer.trainer.parameters.map(
          ({ tensor }) => tape.variables.get(tensor)?.[0],
        );
        const known = parameters.flatMap((value) => value ?? []);
        const found = [
          ...tape.gradients('test', loss, full(loss.shape, 1, { device: 'cpu' }), known),
        ];
        return trainer.trainer.parameters.map(({ name }, i) => {
          const at = known.indexOf(parameters[i] as never);
          return [name, at < 0 ? undefined : found[at]?.readSync()] as const;
        });
      });
    lossWith();
    const whole = gradients(new Set());
    const past = gradients(new Set([block]));
    const inside = (name: string) => {
      const at = block.replace('attention', 'self_attn');
      return name.startsWith(`model.${at}.`);
    };
    let checked = 0;
    for (const [i, [name, g]] of past.entries()) {
      if (inside(name)) {
        expect(g?.every((v) => v === 0) ?? true, name).toBe(true);
        continue;
      }
      if (g === undefined || !name.endsWith('loraB')) continue;
      const size = Math.sqrt(g.reduce((sum, v) => sum + v * v, 0));
      const values = tensorOf(trainer, name);
      const { tensor } = trainer.trainer.parameters[i] as { tensor: Tensor };
      const at = (h: number) => {
        tensor.write(values.map((v, k) => v + (h * (g[k] as number)) / size));
        return lossWith();
      };
      const slope = (at(0.02) - at(-0.02)) / 0.04;
      tensor.write(values);
      expect(Math.abs(slope - size), name).toBeLessThan(2e-4 + 0.03 * size);
      checked++;
    }
    expect(checked).toBeGreaterThan(6);
    const changed = past.filter(([name, g], i) => {
      const other = whole[i]?.[1];
      return !inside(name) && g?.some((v, k) => v !== other?.[k]);
    });
    // Blocks before it have other gradients, blocks after it the same.
    const earlier = block === 'layers.0.attention' ? 0 : 1;
    expect(Math.min(1, changed.length)).toBe(earlier);
    dispose();
  });
});

describe('dropbp', () => {
  const blocks = [4, 1, 4, 1, 4, 1].map((cost, i) => ({ name: `layers.${i}`, cost }));
  const make = (settings: object) =>
    mockRun(rules.dropbp as AnyRule, {
      ...{ layers: {}, blocks, steps: 10, settings: { ...settings } },
      gradientsOf: (_, skip = new Set()) => {
        const g = randomValues(6, 3);
        const found = g.map((value, i) => (skip.has(`layers.${i}`) ? 0 : value));
        return new Map([['p', found]]);
      },
    });

  it('gives insensitive blocks a higher rate, until the share of the products is left out', () => {
    const run = make({ rate: 0.4, measure: 2 });
    rules.dropbp.prepare?.(run as never);
    expect(Array.from(run.state.rates as Float64Array)).toEqual(blocks.map(() => 0.4));
    run.step = 2;
    rules.dropbp.after?.(run as never);
    const c = Array.from(randomValues(6, 3), (value) => value * value);
    const rates = c.map(() => 0);
    const saved = () => rates.reduce((sum, p, i) => sum + p * (blocks[i]?.cost as number), 0);
    while (saved() < 0.4 * 15 - 1e-9) {
      const next = c
        .map((own, i) => ({ i, loss: own * ((rates[i] as number) + 0.1) }))
        .filter(({ i }) => (rates[i] as number) < 0.89)
        .sort((a, b) => a.loss - b.loss)[0] as { i: number };
      rates[next.i] = (rates[next.i] as number) + 0.1;
    }
    const own = Array.from(run.state.rates as Float64Array);
    for (const [i, p] of own.entries()) expect(p).toBeCloseTo(rates[i] as number, 9);
    expect(new Set(own.map((p) => p.toFixed(1))).size).toBeGreaterThan(2);
  });

  it('draws each block with its rate, anew in each pass', () => {
    const run = make({ rate: 0.3 });
    rules.dropbp.prepare?.(run as never);
    (run.state.rates as Float64Array)[1] = 0;
    const count = blocks.map(() => 0);
    const all = 3000;
    for (let step = 0; step < all; step++) {
      run.step = step;
      const skipped = rules.dropbp.skip?.(run as never, step % 2) as ReadonlySet<string>;
      blocks.forEach(({ name }, i) => {
        if (skipped.has(name)) count[i] = (count[i] as number) + 1;
      });
    }
    expect(count[1]).toBe(0);
    for (const i of [0, 2, 3, 4, 5])
      expect(Math.abs((count[i] as number) / all - 0.3)).toBeLessThan(0.04);
    run.step = 0;
    const first = rules.dropbp.skip?.(run as never, 0);
    expect(rules.dropbp.skip?.(run as never, 0)).toEqual(first);
  });

  it('goes on where a step skips everything', async () => {
    const { trainer, dispose } = tinyTrainer(
      SIZES,
      { format: 'none' },
      {
        ...{ steps: 6, adapter: { targets: ['q_proj'] } },
        rules: [{ rule: named('dropbp'), settings: { rate: 0.9, measure: 0 } }],
      },
    );
    const before = valuesOf(trainer);
    const norms: number[] = [];
    for (let i = 0; i < 6; i++) norms.push((await trainer.train()).gradientNorm);
    expect(norms).toContain(0);
    expect(valuesOf(trainer)).not.toEqual(before);
    dispose();
  });

  it('has blocks with the costs of their layers', () => {
    const { trainer, decoder, dispose } = tinyTrainer(
      SIZES,
      { format: 'none' },
      {
        rules: [{ rule: named('dropbp'), settings: {} }],
      },
    );
    const rates = trainer.stored.find(({ name }) => name === 'rules/dropbp/rates');
    expect(rates?.shape).toEqual([2 * decoder.weights.layers.length]);
    dispose();
  });
});
