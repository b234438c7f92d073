/** Generation of text: one token after another, with a key-value cache. */

import type { Adapter } from '../adapters/definition/adapter.js';
import { ModelTape } from '../autograd/model/model-tape.js';
import type { DType } from '../core/dtype.js';
import { fail, wrongType } from '../core/errors.js';
import { uniform } from '../core/random.js';
import { scope } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import { checkInteger, readOptions } from '../core/validate.js';
import { gatherRows } from '../ops/gather-rows.js';
import type { Decoder } from './decoder.js';
import type { ExpertsLora } from './expert-adapters.js';
import { KvCache } from './kv-cache.js';
import { checkSampling, type SampleOptions, sample } from './sample.js';

/** How {@link generate} works. */
export interface GenerateOptions extends SampleOptions {
  /** Tokens to add at most; default as many as the model has positions for. */
  readonly maxTokens?: number;
  /** By module; default none. */
  readonly adapters?: ReadonlyMap<string, Adapter>;
  /** LoRA of layers of experts, by their names; default none. */
  readonly experts?: ReadonlyMap<string, ExpertsLora>;
  /** Names the random numbers; default 1. */
  readonly seed?: number;
  /** Tokens that end the text; default those of the model. They are not yielded. */
  readonly eosIds?: readonly number[];
  /** Of the activations and the cache; default f32. */
  readonly dtype?: DType;
}

const kMostPrefill = 512;

/**
 * Continues a text, token by token. Greedy with `temperature: 0`.
 * @param prompt at least one token id
 * @throws ERR_TYPE, ERR_VALUE (a prompt that is empty, or leaves no position), what the decoder throws
 * @example
 * for await (const id of generate(decoder, ids, { maxTokens: 60, temperature: 0.7, topP: 0.9 })) show(id);
 */
export async function* generate(
  decoder: Decoder,
  prompt: ArrayLike<number>,
  options?: GenerateOptions,
): AsyncGenerator<number, void, void> {
  const op = 'generate';
  const { config } = decoder;
  const given = readOptions(op, options, {
    maxTokens: true,
    adapters: true,
    experts: true,
    seed: true,
    eosIds: true,
    dtype: true,
    temperature: true,
    topK: true,
    topP: true,
  });
  const { adapters, experts, dtype = 'f32', eosIds = config.eosTokenIds, seed = 1 } = given;
  const { temperature, topK, topP } = given;
  const sampling = checkSampling(op, {
    ...(temperature === undefined ? {} : { temperature }),
    ...(topK === undefined ? {} : { topK }),
    ...(topP === undefined ? {} : { topP }),
  });
  if (typeof prompt !== 'object' || prompt === null) {
    throw wrongType(op, 'prompt', 'an array of token ids', prompt);
  }
  const room = config.maxPositionEmbeddings - prompt.length;
  if (prompt.length === 0 || room < 1) {
    const expected = `of 1 to ${config.maxPositionEmbeddings - 1} tokens`;
    fail('ERR_VALUE', op, 'prompt', expected, String(prompt.length));
  }
  const wanted = given.maxTokens ?? room;
  const count = Math.min(checkInteger(op, 'maxTokens', wanted, 0, Number.MAX_SAFE_INTEGER), room);
  const random = uniform(checkInteger(op, 'seed', seed, 0, Number.MAX_SAFE_INTEGER), 'sample');
  const { device } = decoder.weights;
  const capacity = prompt.length + count;
  const cache = new KvCache(config, { capacity, dtype, device });
  try {
    const call = {
      cache,
      dtype,
      ...(adapters === undefined ? {} : { adapters }),
      ...(experts === undefined ? {} : { experts }),
    };
    let next = Int32Array.from(prompt);
    for (let i = 0; i < count; i++) {
      const logits = nextLogits(decoder, next, call);
      const values = await logits.read();
      logits.dispose();
      const id = sample(values, sampling, random());
      if (eosIds.includes(id)) return;
      yield id;
      next = Int32Array.of(id);
    }
  } finally {
    cache.dispose();
  }
}

/**
 * Runs the tokens that a cache lacks, and gives the logits [1, vocabSize] behind the last one. A long prompt runs in
 * parts: each token gives the same bits in any part.
 */
export function nextLogits(
  decoder: Decoder,
  tokens: Int32Array,
  call: {
    readonly cache: KvCache;
    readonly dtype: DType;
    readonly adapters?: ReadonlyMap<string, Adapter>;
  },
): Tensor {
  const { batch: B } = call.cache;
  const T = tokens.length / B;
  for (let begin = 0; ; begin += kMostPrefill) {
    const end = Math.min(T, begin + kMostPrefill);
    const width = end - begin;
    const ids = new Int32Array(B * width);
    for (let b = 0; b < B; b++) ids.set(tokens.subarray(b * T + begin, b * T + end), b * width);
    const logits = scope(() => {
      const tape = new ModelTape({ recording: false });
      const { features } = decoder.forward(tape, { ids, B, T: width }, call);
      if (end < T) return undefined;
      const last = tape.own(lastRows(features.tensor, B, width));
      return decoder.logits(tape, last, call).tensor;
    });
    if (logits !== undefined) return logits;
  }
}

/** Row T - 1 of each of B sequences of features [B, T, K], as [B, K]. */
function lastRows(features: Tensor, B: number, T: number): Tensor {
  const K = features.size / (B * T);
  if (T === 1) return features.reshape([B, K]);
  const from = features.reshape([B * T, K]);
  const { dtype, device } = features;
  const rows = Tensor.zeros([B, K], { dtype, device });
  const places = Array.from({ length: B }, (_, b) => ({ from, row: b * T + T - 1, at: b }));
  gatherRows(rows, places);
  return rows;
}
