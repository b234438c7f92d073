/** What a run of a decoder will take on its device, before anything is read. */

import type { DType } from '../core/dtype.js';
import { formatOf, wholeInt4Blocks } from '../core/formats.js';
import type { BaseFormat } from '../model/base-format.js';
import type { DecoderConfig } from '../model/config/decoder-config.js';
import {
  type DecoderPlaces,
  type LinearPlace,
  layerLinears,
  moduleOf,
  tensorShapes,
} from '../model/decoder-tensors.js';
import type { ModelFiles } from '../model/model-files.js';
import type { AnyOptimizer } from '../optim/definition/definition.js';
import { optimizerSettings as optimizerSettingsOf } from '../optim/definition/settings.js';
import { adamw } from '../optim/elementwise/adamw.js';
import { stateBytesEach } from '../optim/run/state-bytes.js';

/** The settings of a run that decide its memory. */
export interface RunSize {
  /** Sequences of a pass. */
  readonly batch: number;
  /** Tokens of a sequence. */
  readonly seqLen: number;
  readonly dtype: DType;
  readonly recompute: boolean;
  readonly format: BaseFormat;
  /** Number of trained values. */
  readonly parameters: number;
  /** Are gradients of single sequences clipped? Default false. */
  readonly perExample?: boolean;
  /** Default `adamw`. */
  readonly optimizer?: AnyOptimizer;
  /** Settings of the optimiser that differ from its defaults. */
  readonly optimizerSettings?: Readonly<Record<string, unknown>>;
}

/** Bytes of the parts of a run. */
export interface RunMemory {
  /** Linear layers, embedding, head and norms. */
  readonly base: number;
  /** Trained values in f32. */
  readonly adapters: number;
  /** Gradients in f32, and the states of the optimiser: two moments in f32 for AdamW. */
  readonly optimizer: number;
  /** What the forward pass keeps for the backward pass. */
  readonly activations: number;
  /** What one block computes beside it, the loss, and what waits for the queue. */
  readonly work: number;
  readonly total: number;
}

const kBytes: Readonly<Record<DType, number>> = { f32: 4, bf16: 2, f16: 2 };
/** Disposed tensors that may wait for queued ops. */
const kWaiting = 64 << 20;
/** Rows of the vocabulary that the loss computes at a time, for all tokens. */
const kLossRows = 256;

/**
 * The memory of a run. The adapters are taken for low-rank ones: a method that keeps more of a layer takes more.
 * @example
 * const { total } = memoryOfRun(openHfModel('my-model'), { batch: 4, seqLen: 1024, dtype: 'bf16',
 *   recompute: true, format: { format: 'nf4' }, parameters: 4e6 });
 */
export function memoryOfRun(model: ModelFiles, size: RunSize): RunMemory {
  const { batch, seqLen, dtype, recompute, parameters } = size;
  const tokens = batch * seqLen;
  const element = kBytes[dtype];
  const { decoder: config } = model;
  const blocks = config.layers.map((layer) => blockBytes(layer, config.hiddenSize, element));
  const largest = Math.max(...blocks.map(({ kept }) => kept));
  const stream = element * config.hiddenSize;
  const kept = recompute
    ? blocks.length * stream + largest
    : blocks.reduce((sum, block) => sum + block.kept, 0);
  const loss = tokens * (2 * stream + 4 * Math.min(kLossRows, config.vocabSize));
  const backward = tokens * Math.max(...blocks.map((block) => block.backward));
  const { optimizer = adamw, optimizerSettings } = size;
  const settings = optimizerSettingsOf('memoryOfRun', optimizer, optimizerSettings);
  // The gradients of all outputs, and of one layer's factors for each sequence: twice, as a product needs zeros to add to.
  const linears = model.places.layers.flatMap(layerLinears);
  const outputs = linears.reduce((sum, { N }) => sum + N, 0);
  const own =
    size.perExample === true ? { rows: element * outputs, factors: 8 * batch } : undefined;
  const states = stateBytesEach(optimizer, settings, config.hiddenSize);
  const parts = {
    base: baseBytes(model, size.format),
    adapters: 4 * parameters,
    optimizer: (4 + states) * parameters,
    activations: tokens * (kept + (own?.rows ?? 0)),
    work:
      backward + loss + kWaiting + Math.ceil(((own?.factors ?? 0) * parameters) / linears.length),
  };
  return { ...parts, total: Object.values(parts).reduce((a, b) => a + b, 0) };
}

/** What a block keeps of each token, and what its backward pass holds beside that. */
function blockBytes(
  { attention, mlp, outputNorms }: DecoderConfig['layers'][number],
  hidden: number,
  element: number,
) {
  const { heads, kvHeads, headDim } = attention;
  const wide = heads * headDim;
  const projected = wide + 2 * kvHeads * headDim;
  const inner = mlp.intermediateSize;
  // Normalised inputs and sums of both halves; q, k, v; the mixed heads; gate, up and their product.
  const headNorms = attention.headNorms ? projected - kvHeads * headDim : 0;
  const extra = (outputNorms ? 2 * hidden : 0) + headNorms;
  // Of experts, each slot has them, and what it gives.
  const gated = 3 * inner + (mlp.experts === undefined ? 0 : hidden);
  const mlpWidth = gated * (mlp.experts?.perToken ?? 1);
  const features = 4 * hidden + projected + wide + mlpWidth + extra;
  return {
    kept: element * features + 4 * heads,
    backward: element * Math.max(mlpWidth + hidden, 2 * projected + 2 * wide),
  };
}

/** The weights: linear layers that the file holds dense in the format, all others as in the file. */
function baseBytes(model: ModelFiles, format: BaseFormat): number {
  const { places } = model;
  const quantised = new Map(
    format.format === 'none'
      ? []
      : [
          ...linearsOf(places).map((place) => [place.weight.name, place] as const),
          ...expertMatrices(places),
        ],
  );
  let total = 0;
  for (const [name, shape] of tensorShapes(places)) {
    const module = moduleOf(name);
    const place = quantised.get(name);
    const elements = shape.reduce((a, b) => a * b, 1);
    if (model.layoutOf(module) !== undefined) {
      // A quantised embedding is decoded: its rows are looked up.
      total += name === places.embedding.name ? 4 * elements : model.quantizedBytes(module);
      continue;
    }
    const wide = model.info(name)?.dtype === 'BF16' || model.info(name)?.dtype === 'F16' ? 2 : 4;
    total += place === undefined ? wide * elements : quantisedBytes(place, format);
  }
  return total;
}

const linearsOf = (places: DecoderPlaces): readonly LinearPlace[] =>
  places.layers.flatMap(layerLinears);

/** The weights of experts by their names, as matrices. */
function expertMatrices(places: DecoderPlaces) {
  return places.layers.flatMap(({ experts }) =>
    (experts === undefined ? [] : [experts.gateUp, experts.down]).flatMap(({ stored, K }) =>
      (stored.form === 'each' ? stored.parts.flat() : [stored.tensor]).map(
        ({ name, shape }) => [name, { N: shape.reduce((a, b) => a * b, 1) / K, K }] as const,
      ),
    ),
  );
}

function quantisedBytes(
  { N, K }: Pick<LinearPlace, 'N' | 'K'>,
  { format, blocksize, doubleQuant }: BaseFormat,
) {
  if (format === 'none') return 4 * N * K;
  const { bits, levels, defaultBlocksize } = formatOf(format);
  const blocks = Math.ceil((N * K) / (blocksize ?? defaultBlocksize));
  const zeros = format === 'int4' && !doubleQuant && wholeInt4Blocks(K, blocksize) ? blocks : 0;
  const scales = doubleQuant ? blocks + 4 * Math.ceil(blocks / 256) + 1028 : 4 * blocks;
  return Math.ceil((N * K * bits) / 8) + 4 * levels + scales + 4 * zeros;
}

/**
 * Options that make a run fit; undefined if none of them does.
 * @param accumulate passes of an update
 * @param most bytes that the run may take
 */
export function fittingChange(
  model: ModelFiles,
  size: RunSize,
  accumulate: number,
  most: number,
): string | undefined {
  const fits = (change: Partial<RunSize>) =>
    memoryOfRun(model, { ...size, ...change }).total <= most;
  const one = { batch: 1 };
  if (size.perExample === true) {
    return size.batch > 1 && fits(one)
      ? `--batch 1 --accumulate ${size.batch * accumulate}`
      : undefined;
  }
  const spread = `--batch 1 --accumulate ${size.batch * accumulate}`;
  if (!size.recompute && fits({ recompute: true })) return '--recompute';
  if (size.batch > 1 && fits(one)) return spread;
  if (size.batch > 1 && fits({ ...one, recompute: true })) return `--recompute ${spread}`;
  const all = { ...one, recompute: true };
  for (let seqLen = size.seqLen >> 1; seqLen >= 32; seqLen >>= 1) {
    if (fits({ ...all, seqLen })) return `--recompute --batch 1 --seq-len ${seqLen}`;
  }
  if (size.format.format === 'none' && fits({ ...all, format: { format: 'nf4' } })) {
    return '--recompute --batch 1 --format nf4';
  }
  return undefined;
}
