/** What the tests of starts share: dense matrices in float64, and tiny models with a start. */
import { type Adapter, type BaseWeight, dequantize, Tensor } from '../../lib/index.js';
import type { BaseFormat } from '../../lib/model/base-format.js';
import { Decoder } from '../../lib/model/decoder.js';
import { DecoderWeights } from '../../lib/model/decoder-weights.js';
import { openHfModel } from '../../lib/model/hf-model.js';
import type { CalibrationData } from '../../lib/starts/definition/calibration-data.js';
import { startNamed } from '../../lib/starts/start-methods.js';
import { needsData, Starter } from '../../lib/starts/starter.js';
import { SequenceSet } from '../../lib/text/text-data.js';
import { AdapterSet, methodNamed } from '../../lib/train/adapter-set.js';
import { ModelTrainer, type TrainOptions } from '../../lib/train/model-trainer.js';
import { randomValues, temporaryFolder } from '../finetune/setup.js';
import { writeTinyCheckpoint } from '../finetune/tiny-checkpoint.js';

/** [N, K] row by row, in float64. */
export const valuesOf = (w: BaseWeight): Float64Array =>
  Float64Array.from(
    (Tensor.is(w) ? w.to({ dtype: 'f32' }) : dequantize(w, { dtype: 'f32' })).readSync(),
  );

/** `scaling · loraB · core · loraA` of an adapter, in float64. */
export function updateOf(
  { parameters, buffers, inFeatures: K, outFeatures: N }: Adapter,
  scaling: number,
) {
  const tensors: Readonly<Record<string, Tensor>> = { ...parameters, ...buffers };
  const a = (tensors.loraA as Tensor).readSync();
  const b = (tensors.loraB as Tensor).readSync();
  const r = a.length / K;
  const core = tensors.core?.readSync();
  const right = core === undefined ? Float64Array.from(a) : product(core, a, r, r, K);
  return product(b, right, N, r, K).map((value) => scaling * value);
}

/** a [n, p] · b [p, m] */
export function product(
  a: ArrayLike<number>,
  b: ArrayLike<number>,
  n: number,
  p: number,
  m: number,
) {
  const out = new Float64Array(n * m);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < p; j++) {
      const x = a[i * p + j] as number;
      for (let k = 0; k < m; k++)
        out[i * m + k] = (out[i * m + k] as number) + x * (b[j * m + k] as number);
    }
  }
  return out;
}

export const turned = (a: ArrayLike<number>, n: number, m: number) =>
  Float64Array.from({ length: n * m }, (_, at) => a[(at % n) * m + Math.floor(at / n)] as number);

export const minus = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Float64Array.from(a, (value, i) => value - (b[i] as number));

export const norm = (a: ArrayLike<number>) =>
  Math.sqrt(Array.from(a).reduce((sum, value) => sum + value * value, 0));

export const worst = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Array.from(a).reduce((most, value, i) => Math.max(most, Math.abs(value - (b[i] as number))), 0);

/** A tiny model whose adapters a start has made, and its trainer. */
export async function startedTrainer(
  name: string,
  given: {
    readonly method?: string;
    readonly settings?: Readonly<Record<string, unknown>>;
    readonly config?: Readonly<Record<string, unknown>>;
    readonly format?: BaseFormat;
    readonly targets?: readonly string[];
    readonly train?: Partial<TrainOptions>;
    /** Instead of random tokens. */
    readonly seen?: Pick<CalibrationData, 'batches' | 'T'>;
  } = {},
) {
  const folder = temporaryFolder();
  const sizes = { hiddenSize: 64, intermediateSize: 96, numKeyValueHeads: 2, headDim: 16 };
  writeTinyCheckpoint(folder, sizes);
  const model = openHfModel(folder);
  const start = startNamed('test', 'start', name);
  const { method = start.adapters?.[0] ?? 'lora', format = { format: 'nf4' } } = given;
  const { settings = {}, targets = ['q_proj', 'k_proj', 'down_proj'] } = given;
  const chosen = {
    method: methodNamed('test', method),
    config: { r: 4, ...(method === 'shira' ? {} : { loraAlpha: 8 }), ...given.config },
  };
  const common = { start, settings, format, device: 'cpu', seed: 3 } as const;
  using starter = new Starter(model, { ...common, ...chosen, targets });
  const store = starter.store === undefined ? {} : { store: starter.store };
  const weights = DecoderWeights.load(model, { format, device: 'cpu', ...store });
  const decoder = new Decoder(model.decoder, weights);
  const T = 7;
  const tokens = (count: number, seed: number) =>
    Int32Array.from(randomValues(count * T + 1, seed), (v) => Math.floor(((v + 1) / 2) * 257));
  const data = {
    train: new SequenceSet(tokens(9, 5), T),
    heldOut: new SequenceSet(tokens(3, 6), T),
    tokens: 12 * T,
  };
  const batches = [data.train.batch([0, 1]), data.train.batch([2, 3, 4])];
  const seen = needsData(start) ? { batches, T, dtype: 'f32' as const, ...given.seen } : undefined;
  const adapters = await starter.finish(decoder, seen);
  const config = {
    method: chosen.method,
    settings: chosen.config,
    targets,
    start: { start, settings },
  };
  const set = new AdapterSet(decoder, config, 3, adapters);
  const trainer = new ModelTrainer(decoder, set, data, {
    steps: 8,
    batch: 2,
    accumulate: 1,
    lr: 1e-2,
    warmup: 1,
    weightDecay: 0,
    clip: 1,
    seed: 3,
    dtype: 'f32',
    recompute: false,
    ...given.train,
  });
  const dispose = () => {
    trainer.dispose();
    set.dispose();
    decoder.dispose();
  };
  return { model, decoder, set, trainer, batches, T, dispose };
}
