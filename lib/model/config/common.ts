/**
 * What the `config.json` of all architectures have in common, and the decoder that follows from it and from the traits of an
 * architecture.
 */

import type { Fields } from '../../checkpoint/files/json-file.js';
import { printable } from '../../core/printable.js';
import { MOST_EXPERTS } from '../../ops/experts/expert-route.js';
import type { GateKind } from '../../ops/gated-activation.js';
import type { DecoderConfig, ExpertsConfig, RotaryConfig } from './decoder-config.js';

/** The fields that every architecture has, with its defaults filled in. */
export interface CommonConfig {
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numHiddenLayers: number;
  readonly numAttentionHeads: number;
  /** Divides numAttentionHeads; equal to it without grouped-query attention. */
  readonly numKeyValueHeads: number;
  /** hiddenSize / numAttentionHeads unless the file or the architecture says otherwise. */
  readonly headDim: number;
  readonly rmsNormEps: number;
  readonly vocabSize: number;
  /** The output head is the embedding matrix; there is no `lm_head.weight`. */
  readonly tieWordEmbeddings: boolean;
  readonly maxPositionEmbeddings: number;
  readonly bosTokenId?: number;
  /** None, one or several. */
  readonly eosTokenIds: readonly number[];
}

/** What an architecture takes for keys that a file leaves out; sizes that are not here must be in the file. */
export interface CommonDefaults {
  readonly vocabSize?: number;
  readonly numAttentionHeads?: number;
  /** Where the key is left out; `null` in the file means as many as query heads. */
  readonly numKeyValueHeads?: number;
  /** Default: hiddenSize / numAttentionHeads. */
  readonly headDim?: number;
  readonly rmsNormEps?: number;
  readonly tieWordEmbeddings?: boolean;
  readonly maxPositionEmbeddings: number;
}

export const kMaxDim = 2 ** 31 - 1;
const kMaxLayers = 10_000;

/** Reads and checks what all architectures have. @throws LowrankError `ERR_FILE` */
export function readCommon(fields: Fields, defaults: CommonDefaults): CommonConfig {
  const hiddenSize = fields.integer('hidden_size', 1, kMaxDim);
  const numAttentionHeads = fields.integer(
    'num_attention_heads',
    1,
    kMaxDim,
    defaults.numAttentionHeads,
  );
  const numKeyValueHeads = fields.integer(
    'num_key_value_heads',
    1,
    numAttentionHeads,
    (fields.raw('num_key_value_heads') === undefined ? defaults.numKeyValueHeads : undefined) ??
      numAttentionHeads,
  );
  if (numKeyValueHeads > numAttentionHeads || numAttentionHeads % numKeyValueHeads !== 0) {
    fields.refuse('num_key_value_heads', `a divisor of num_attention_heads (${numAttentionHeads})`);
  }
  if (
    fields.absent('head_dim') &&
    defaults.headDim === undefined &&
    hiddenSize % numAttentionHeads !== 0
  ) {
    const heads = `a multiple of num_attention_heads (${numAttentionHeads}) without head_dim`;
    fields.refuse('hidden_size', heads);
  }
  const headDim = fields.integer(
    'head_dim',
    2,
    kMaxDim,
    defaults.headDim ?? hiddenSize / numAttentionHeads,
  );
  if (headDim % 2 !== 0)
    fields.refuse('head_dim', `even, for rotary embeddings (it is ${headDim})`);
  if (headDim * numAttentionHeads > kMaxDim) fields.refuse('head_dim', 'below 2^31 over all heads');

  return {
    hiddenSize,
    intermediateSize: fields.integer('intermediate_size', 1, kMaxDim),
    numHiddenLayers: fields.integer('num_hidden_layers', 1, kMaxLayers),
    numAttentionHeads,
    numKeyValueHeads,
    headDim,
    rmsNormEps: fields.number(
      'rms_norm_eps',
      'in (0, 1)',
      (eps) => eps > 0 && eps < 1,
      defaults.rmsNormEps ?? 1e-6,
    ),
    vocabSize: fields.integer('vocab_size', 1, kMaxDim, defaults.vocabSize),
    tieWordEmbeddings: fields.boolean('tie_word_embeddings', defaults.tieWordEmbeddings ?? false),
    maxPositionEmbeddings: fields.integer(
      'max_position_embeddings',
      1,
      kMaxDim,
      defaults.maxPositionEmbeddings,
    ),
    ...(fields.absent('bos_token_id') || Array.isArray(fields.raw('bos_token_id'))
      ? {}
      : { bosTokenId: fields.integer('bos_token_id', 0, kMaxDim) }),
    eosTokenIds: eosTokenIds(fields),
  };
}

function eosTokenIds(fields: Fields): number[] {
  if (fields.absent('eos_token_id')) return [];
  const value = fields.raw('eos_token_id');
  const ids: unknown[] = Array.isArray(value) ? value : [value];
  for (const id of ids) {
    if (typeof id !== 'number' || !Number.isInteger(id) || id < 0 || id > kMaxDim) {
      return fields.refuse('eos_token_id', 'a token id or a list of them');
    }
  }
  return ids as number[];
}

const kGates: Readonly<Record<string, GateKind>> = {
  silu: 'silu',
  swish: 'silu',
  gelu: 'gelu',
  gelu_new: 'gelu-tanh',
  gelu_pytorch_tanh: 'gelu-tanh',
};

/** The activation of the gate. @throws LowrankError `ERR_FILE` no string · `ERR_UNSUPPORTED` another function */
export function readGate(fields: Fields, key: string, fallback: string): GateKind {
  const name = fields.optionalString(key) ?? fallback;
  if (Object.hasOwn(kGates, name)) return kGates[name] as GateKind;
  const names = Object.keys(kGates).map((known) => `"${known}"`);
  return fields.refuse(key, `one of ${names.join(', ')}`, 'ERR_UNSUPPORTED');
}

/** A positive number, or `undefined` where the file says null. */
export function readOptionalPositive(
  fields: Fields,
  key: string,
  fallback?: number,
): number | undefined {
  if (fields.raw(key) === undefined) return fallback;
  if (fields.absent(key)) return undefined;
  return fields.number(key, 'a positive number or null', (value) => value > 0);
}

/** A window in tokens, or `undefined` where the file says null. */
export function readWindow(fields: Fields, fallback?: number): number | undefined {
  if (fields.raw('sliding_window') === undefined) return fallback;
  if (fields.absent('sliding_window')) return undefined;
  return fields.integer('sliding_window', 1, kMaxDim);
}

const kFull = 'full_attention';
const kSliding = 'sliding_attention';

/** For each layer whether it has a sliding window: `layer_types` of the file, or what the architecture derives. */
export function readSliding(
  fields: Fields,
  layers: number,
  derived: (layer: number) => boolean,
): readonly boolean[] {
  if (fields.absent('layer_types')) return Array.from({ length: layers }, (_, i) => derived(i));
  const types = fields.strings('layer_types', kMaxLayers);
  if (types.length !== layers) {
    fields.refuse('layer_types', `a list of num_hidden_layers (${layers}) entries`);
  }
  for (const type of types) {
    if (type === kFull || type === kSliding) continue;
    const expected = `a list of "${kFull}" and "${kSliding}" (one is ${printable(type)})`;
    fields.refuse('layer_types', expected, 'ERR_UNSUPPORTED');
  }
  return types.map((type) => type === kSliding);
}

/** How an architecture differs from the plainest one, Llama without biases. */
export interface DecoderTraits {
  readonly architecture: string;
  /** The rotation and the window of a layer. */
  readonly layer: (index: number) => {
    readonly rotary: RotaryConfig;
    readonly window?: number | undefined;
  };
  /** Default headDim^-0.5. */
  readonly scale?: number;
  readonly softcap?: number | undefined;
  readonly finalSoftcap?: number | undefined;
  /** Default `silu`. */
  readonly gate?: GateKind;
  /** Default 1. */
  readonly embeddingScale?: number;
  readonly plusOne?: boolean;
  readonly outputNorms?: boolean;
  readonly headNorms?: boolean;
  readonly fused?: boolean;
  readonly qkvBias?: boolean;
  readonly outputBias?: boolean;
  readonly mlpBias?: boolean;
  readonly sinks?: boolean;
  readonly experts?: ExpertsConfig;
}

/** How many experts a layer has, and a token. @throws LowrankError `ERR_FILE` */
export function readExperts(
  fields: Fields,
  key: string,
  defaults: { readonly count: number; readonly perToken: number },
): Pick<ExpertsConfig, 'count' | 'perToken'> {
  const count = fields.integer(key, 1, MOST_EXPERTS, defaults.count);
  const perToken = fields.integer('num_experts_per_tok', 1, count, defaults.perToken);
  if (perToken > count) fields.refuse('num_experts_per_tok', `at most ${key} (${count})`);
  return { count, perToken };
}

/** The decoder of an architecture. */
export function buildDecoder(common: CommonConfig, traits: DecoderTraits): DecoderConfig {
  const { headDim, bosTokenId } = common;
  const { softcap, finalSoftcap, fused = false } = traits;
  return {
    architecture: traits.architecture,
    vocabSize: common.vocabSize,
    hiddenSize: common.hiddenSize,
    maxPositionEmbeddings: common.maxPositionEmbeddings,
    embeddingScale: traits.embeddingScale ?? 1,
    norm: { eps: common.rmsNormEps, plusOne: traits.plusOne ?? false },
    layers: Array.from({ length: common.numHiddenLayers }, (_, index) => {
      const { rotary, window } = traits.layer(index);
      return {
        attention: {
          heads: common.numAttentionHeads,
          kvHeads: common.numKeyValueHeads,
          headDim,
          scale: traits.scale ?? headDim ** -0.5,
          rotary,
          ...(window === undefined ? {} : { window }),
          ...(softcap === undefined ? {} : { softcap }),
          fusedQkv: fused,
          qkvBias: traits.qkvBias ?? false,
          outputBias: traits.outputBias ?? false,
          headNorms: traits.headNorms ?? false,
          ...(traits.sinks ? { sinks: true as const } : {}),
        },
        mlp: {
          intermediateSize: common.intermediateSize,
          gate: traits.gate ?? 'silu',
          fusedGateUp: fused,
          bias: traits.mlpBias ?? false,
          ...(traits.experts === undefined ? {} : { experts: traits.experts }),
        },
        outputNorms: traits.outputNorms ?? false,
      };
    }),
    tieWordEmbeddings: common.tieWordEmbeddings,
    ...(finalSoftcap === undefined ? {} : { finalSoftcap }),
    ...(bosTokenId === undefined ? {} : { bosTokenId }),
    eosTokenIds: common.eosTokenIds,
  };
}
