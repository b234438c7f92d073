import type { Adapter } from '../../../adapters/definition/adapter.js';
import { ModelTape } from '../../../autograd/model/model-tape.js';
import { hash32 } from '../../../core/random.js';
import { scope } from '../../../core/scope.js';
import type { Tensor } from '../../../core/tensor.js';
import { tokensOf } from '../../../model/decoder-tokens.js';
import { type LayerWeights, linearsOf } from '../../../model/decoder-weights.js';
import { freezeGrid } from '../../../ops/quantizers/freeze-grid.js';
import { groupsOf } from '../../../quantizers/group-ranges.js';
import type { CalibrationData } from '../../definition/calibration-data.js';
import { defineStart, type StartFactors, type StartModel } from '../../definition/definition.js';
import { clippedGrid, clippedLora } from '../../parts/clipped-lora.js';
import { integerIn, numberIn } from '../../parts/settings.js';
import { FactorTraining, meanSquares } from '../../parts/train-factors.js';

interface ApiqSettings {
  readonly bits: number;
  readonly groupSize: number;
  readonly rounds: number;
  readonly lr: number;
  readonly clipLr: number;
}

/** A block's output for each batch, without a gradient. */
function outputs(
  decoder: StartModel['stored'],
  block: number,
  xs: readonly Tensor[],
  adapters: ReadonlyMap<string, Adapter>,
  data: CalibrationData,
): Tensor[] {
  return xs.map((x, i) =>
    scope(() => {
      const tape = new ModelTape({ recording: false });
      const call = { adapters, ...documentsOf(data, i, x) };
      return decoder.block(tape, block, tape.constant(x), call).tensor;
    }),
  );
}

/** Where documents begin in a batch, whose rows are x. */
function documentsOf({ batches, T }: CalibrationData, i: number, { device }: Tensor) {
  const { documents } = tokensOf(batches[i] as CalibrationData['batches'][number], T, device);
  return documents === undefined ? {} : { documents };
}

/** Trains the layers of a block to give its output in the dense model. */
async function trainBlock(
  { stored, data, onBatch }: StartModel,
  block: number,
  own: ReadonlyMap<string, Adapter>,
  seen: readonly Tensor[],
  wanted: readonly Tensor[],
  { rounds, lr, clipLr }: ApiqSettings,
  turn: () => readonly [done: number, total: number],
): Promise<void> {
  const all = [...own.values()].map(({ parameters }) => parameters);
  const named = (names: readonly string[]) =>
    all.flatMap((parameters) => names.map((name) => parameters[name] as Tensor));
  using training = new FactorTraining([
    { tensors: named(['loraA', 'loraB']), lr },
    { tensors: named(['clipHigh', 'clipLow']), lr: clipLr },
  ]);
  for (let round = 0; round < rounds; round++) {
    for (let i = 0; i < data.batches.length; i++) {
      await onBatch(...turn());
      training.step(
        () => new ModelTape(),
        1,
        (tape) => {
          const x = seen[i] as Tensor;
          const call = { adapters: own, ...documentsOf(data, i, x) };
          const y = stored.block(tape, block, tape.constant(x), call);
          return meanSquares(tape, y, wanted[i] as Tensor);
        },
      );
    }
  }
}

/** What a trained layer becomes: its codes, and its factors. */
function frozen({ parameters, buffers }: Adapter, bits: number): StartFactors {
  const tensors = { ...parameters, ...buffers } as Readonly<Record<string, Tensor>> & {
    readonly clipHigh: Tensor;
    readonly clipLow: Tensor;
    readonly high: Tensor;
    readonly low: Tensor;
  };
  const { scale, zero } = clippedGrid(tensors, bits);
  const base = freezeGrid(tensors.dense as Tensor, { bits, first: 0, scale, zero });
  scale.dispose();
  zero.dispose();
  const copy = (name: string) => (tensors[name] as Tensor).to({});
  return { loraA: copy('loraA'), loraB: copy('loraB'), base };
}

/**
 * Block after block, the clips of the quantiser and the factors are trained together with Adam, so that the block over what the
 * quantised blocks before it give has the output that it has in the dense model: `‖block(X) − block_q(X_q)‖²` (ApiQ-bw). The base is
 * of integers with a step and a zero-point a group, in place of the run's format. A range always has 0 in it, other than in the
 * authors' program.
 */
export const apiq = defineStart({
  start: 'apiq',
  reference:
    'Liao et al., ApiQ: Finetuning of 2-Bit Quantized Large Language Model, 2024, arXiv:2402.05147',
  from: 'model',
  defaults: { bits: 4, groupSize: 32, rounds: 10, lr: 1e-3, clipLr: 5e-3 } as ApiqSettings,
  replacesBase: true,
  ownFormat: true,
  check: (settings) =>
    integerIn(settings, 'bits', 1, 8) ??
    integerIn(settings, 'groupSize', 1, 65536) ??
    integerIn(settings, 'rounds', 1, 100_000) ??
    numberIn(settings, 'lr', 0, 1) ??
    numberIn(settings, 'clipLr', 0, 1),
  together: async (model, { settings, r, scaling, seed }) => {
    const { dense, stored, layers, data } = model;
    const { bits, groupSize } = settings;
    for (const { K } of layers) groupsOf('start apiq', K, groupSize);
    const { T, dtype, batches } = data;
    const blocks = stored.weights.layers.length;
    const total = blocks * batches.length * settings.rounds;
    let done = 0;
    const embedded = (): Tensor[] =>
      batches.map(({ ids }) =>
        scope(() => {
          const tape = new ModelTape({ recording: false });
          return dense.embed(tape, { ids, B: ids.length / T, T }, dtype).tensor;
        }),
      );
    let [exact, seen] = [embedded(), embedded()];
    const found = new Map<string, StartFactors>();
    const free = (list: readonly Tensor[]) => {
      for (const each of list) each.dispose();
    };
    try {
      for (let block = 0; block < blocks; block++) {
        const modules = linearsOf(stored.weights.layers[block] as LayerWeights).map(
          ({ place }) => place.module,
        );
        const own = new Map(
          layers.flatMap(({ module, N, K, w, device }, i) => {
            if (!modules.includes(module)) return [];
            const place = {
              inFeatures: K,
              outFeatures: N,
              device,
              weight: w,
              seed: hash32(seed, 'apiq', i),
            };
            const own = { r, loraAlpha: scaling * r, bits, groupSize };
            const made = clippedLora.create({ ...place, ...own });
            return [[module, made as unknown as Adapter] as const];
          }),
        );
        const wanted = outputs(dense, block, exact, new Map(), data);
        const targets = wanted.map((each) => each.to({ dtype: 'f32' }));
        try {
          const turn = () => [done++, total] as const;
          await trainBlock(model, block, own, seen, targets, settings, turn);
          for (const [module, adapter] of own) found.set(module, frozen(adapter, bits));
          const next = outputs(stored, block, seen, own, data);
          const before = [...exact, ...seen];
          [exact, seen] = [wanted, next];
          free(before);
        } finally {
          free(targets);
          if (exact !== wanted) free(wanted);
          for (const adapter of own.values()) adapter.dispose();
        }
      }
    } catch (error) {
      for (const { loraA, loraB, base } of found.values()) free([loraA, loraB, base] as Tensor[]);
      throw error;
    } finally {
      free([...exact, ...seen]);
    }
    return found;
  },
});
