/**
 * A decoder-only model on the tape: pre-norm blocks of causal attention and of a gated MLP over a residual stream. What an
 * architecture adds is in its {@link DecoderConfig}; the adapters record their own formulas.
 *
 *   x = scale · embedding[ids]
 *   x = x + norm?(o(attention(norm?(q(n)), norm?(k(n)), v(n)))),  n = norm(x)
 *   x = x + norm?(down(gate(n) ⊙ up(n))),                         n = norm(x)
 *   logits = cap?(head(norm(x)))
 */

import type { Adapter } from '../adapters/definition/adapter.js';
import { recordAdapter } from '../adapters/definition/record.js';
import type { Value } from '../autograd/gradient-tape.js';
import type { LossStep } from '../autograd/model/loss.js';
import type { DType } from '../core/dtype.js';
import { fail } from '../core/errors.js';
import { hash32 } from '../core/random.js';
import { keepForStep } from '../core/recording.js';
import { outsideScopes, scope, track } from '../core/scope.js';
import type { Tensor } from '../core/tensor.js';
import { FeatureMap } from '../ops/feature-map.js';
import { Indices, type IndicesOptions } from '../ops/model/indices.js';
import type { DecoderConfig, DecoderLayerConfig, ExpertsConfig } from './config/decoder-config.js';
import type { DecoderTape } from './decoder-tape.js';
import {
  checkCache,
  checkTokens,
  type DecoderTokens,
  documentBegins,
  roundTo,
} from './decoder-tokens.js';
import type { DecoderWeights, LayerWeights, LinearWeights } from './decoder-weights.js';
import { type ExpertsLora, expertsName } from './expert-adapters.js';
import type { ExpertLayerWeights, ExpertsWeights } from './expert-weights.js';
import type { KvCache } from './kv-cache.js';
import { RotaryTables } from './rotary-tables.js';

export { type DecoderTokens, documentBegins };

/** How {@link Decoder.forward} works. */
export interface DecoderCall {
  /** By module; a layer without one is the base model's. */
  readonly adapters?: ReadonlyMap<string, Adapter>;
  /** LoRA of layers of experts, by their names (`model.layers.0.mlp.experts.down_proj`); a layer without one is the base model's. */
  readonly experts?: ReadonlyMap<string, ExpertsLora>;
  /** Of the residual stream; default f32. */
  readonly dtype?: DType;
  /** Is a gradient of the embedding's output wanted? Default false. */
  readonly inputGradient?: boolean;
  /**
   * Does each block keep its input only, and run again in the backward pass? Default false. The bits are the same, the
   * time grows by about a third, and the memory of the blocks becomes that of one.
   */
  readonly recompute?: boolean;
  /**
   * The tokens follow those that it holds, and are added to it. For a tape that does not record, without segments, in
   * the dtype of the cache.
   */
  readonly cache?: KvCache;
  /** Of what methods sample on the host, other in each layer. Dropout takes the tape's. */
  readonly seed?: number;
  /**
   * Halves of blocks that the backward pass leaves out, `layers.0.attention` or `layers.0.mlp`: gradients go past them, and what is
   * trained in them has none.
   */
  readonly skip?: ReadonlySet<string>;
  /** Is told of x and y of each adapted linear layer, and gives the y that goes on. */
  readonly observe?: (module: string, x: Value, y: Value) => Value;
}

/** What a forward pass gives. */
export interface DecoderPass {
  /** [B, T, hiddenSize], the (scaled) rows of the embedding. */
  readonly embedded: Value;
  /** [B, T, hiddenSize], normalised: what the head takes. */
  readonly features: Value;
}

/** What the blocks of one call share. */
interface Call {
  readonly tape: DecoderTape;
  readonly tokens: DecoderTokens;
  readonly adapters: ReadonlyMap<string, Adapter>;
  readonly experts: ReadonlyMap<string, ExpertsLora>;
  readonly seed: number | undefined;
  readonly observe: DecoderCall['observe'];
  readonly skip: DecoderCall['skip'];
  readonly documents: Indices | undefined;
  readonly cache: KvCache | undefined;
  /** By layer. */
  readonly ropes: readonly Tensor[];
}

/**
 * A model that runs forward on a tape and is trained from its adapters.
 * @example
 * const { features } = decoder.forward(tape, { ids, B, T }, { adapters });
 * const { loss } = decoder.loss(tape, features, targets, { scale: 1 / counted });
 */
export class Decoder implements Disposable {
  /** Parts of fused layers, by begin, end and width. */
  readonly #maps = new Map<string, FeatureMap>();
  readonly #tables: RotaryTables;

  constructor(
    readonly config: DecoderConfig,
    readonly weights: DecoderWeights,
  ) {
    this.#tables = new RotaryTables(weights.device);
    track(this);
  }

  /**
   * Records the forward pass.
   * @throws ERR_SHAPE ids or segments that do not cover the rows · ERR_VALUE ids outside of the vocabulary, or a cache
   *   that is full · what the ops throw
   */
  forward(tape: DecoderTape, tokens: DecoderTokens, call: DecoderCall = {}): DecoderPass {
    const { adapters = new Map(), dtype = 'f32', inputGradient = false, recompute = false } = call;
    const { layers, norm } = this.config;
    const { device } = this.weights;
    const { T } = tokens;
    checkTokens(tokens);
    if (call.cache !== undefined) checkCache(call.cache, tape, tokens, dtype);
    const begins = tokens.segments === undefined ? undefined : documentBegins(tokens.segments, T);
    const documents =
      begins === undefined ? tokens.documents : Indices.from(begins, { limit: T, device });
    const { tensor: x0 } = this.embed(tape, tokens, dtype);
    const embedded = inputGradient ? tape.variable(x0) : tape.own(x0);
    const shared: Call = {
      tape,
      tokens,
      adapters,
      experts: call.experts ?? new Map(),
      seed: call.seed,
      observe: call.observe,
      skip: call.skip,
      documents,
      cache: call.cache,
      ropes: this.#ropes(tokens, begins, call.cache),
    };
    let stream: Stream = { x: embedded };
    layers.forEach((_, index) => {
      const weights = this.weights.layers[index] as LayerWeights;
      const block = (on: Call, from: Stream): Stream =>
        this.#mlp(this.#attention(from, index, weights, on), index, weights, on);
      // What the backward pass does not read is freed with the block; what it reads belongs to the tape.
      stream = scope(() => ({
        ...(recompute ? recomputed(shared, stream, block) : block(shared, stream)),
        tape,
      }));
    });
    const { y: features } = this.#enter(tape, stream, this.weights.norm, norm);
    call.cache?.advance(T);
    return { embedded, features };
  }

  /**
   * Records one block, without a cache.
   * @param index of the block
   * @param x [B, T, hiddenSize], what the block before gave, or the rows of the embedding
   * @param call with the documents of the rows, as in {@link DecoderTokens}
   * @returns [B, T, hiddenSize]
   * @throws ERR_VALUE a block that is not there · what the ops throw
   */
  block(
    tape: DecoderTape,
    index: number,
    x: Value,
    call: DecoderCall & Pick<DecoderTokens, 'documents'> = {},
  ): Value {
    const weights = this.weights.layers[index];
    if (weights === undefined) {
      const expected = `below ${this.config.layers.length}`;
      return fail('ERR_VALUE', 'decoder.block', 'index', expected, String(index));
    }
    const [B = 0, T = 0] = x.shape;
    const { documents } = call;
    const tokens = { B, T, ids: new Int32Array(), ...(documents && { documents }) };
    const own: Call = {
      tape,
      tokens,
      adapters: call.adapters ?? new Map(),
      experts: call.experts ?? new Map(),
      seed: call.seed,
      observe: call.observe,
      skip: call.skip,
      documents,
      cache: undefined,
      ropes: this.#ropes(tokens, undefined, undefined),
    };
    const from = this.#attention({ x }, index, weights, own);
    const { x: sum, add } = this.#mlp(from, index, weights, own);
    return add === undefined ? sum : tape.add(sum, add);
  }

  /** The rows of the embedding that a pass begins with, scaled: [B, T, hiddenSize]. */
  embed(tape: DecoderTape, { ids, B, T }: DecoderTokens, dtype: DType): Value {
    const { hiddenSize, vocabSize, embeddingScale } = this.config;
    const { device, embedding } = this.weights;
    const indices = indicesOf(ids, { limit: vocabSize, device });
    // Peers round the scale to the dtype that they compute in.
    const scale = roundTo(dtype, embeddingScale);
    const rows = tape.embedding(indices, embedding, { scale, dtype });
    return tape.reshape(rows, [B, T, hiddenSize]);
  }

  /**
   * The logits of features: [..., vocabSize].
   * @param pass of the same tape; its adapter of the head is applied
   */
  logits(tape: DecoderTape, features: Value, call: DecoderCall = {}): Value {
    const logits = this.#headLogits(tape, features, call);
    const { finalSoftcap: cap } = this.config;
    if (cap === undefined) return logits;
    return tape.affine(tape.map(tape.affine(logits, 1 / cap), 'tanh'), cap);
  }

  /**
   * `scale` times the sum of the losses of all rows of features, and the loss of each, f32 [M].
   * @param targets [M]: the next token, or negative for none. Indices stay the caller's
   * @param call.weights [M] f32: a factor of the loss of each row, on the device
   * @throws ERR_SHAPE another number of targets · ERR_UNSUPPORTED an adapter of the head on a tape that has no loss of
   *   logits
   */
  loss(
    tape: DecoderTape,
    features: Value,
    targets: Int32Array | Indices,
    call: DecoderCall & { readonly scale?: number; readonly weights?: Tensor } = {},
  ): LossStep {
    const { vocabSize, hiddenSize, finalSoftcap } = this.config;
    const { head, device } = this.weights;
    const M = features.tensor.size / hiddenSize;
    if (targets.length !== M) {
      fail('ERR_SHAPE', 'decoder.loss', 'targets', `[${M}]`, `[${targets.length}]`);
    }
    const wanted = indicesOf(targets, { limit: vocabSize, holes: true, device });
    const options = {
      ...(call.weights === undefined ? {} : { weights: call.weights }),
      ...(finalSoftcap === undefined ? {} : { softcap: finalSoftcap }),
      ...(call.scale === undefined ? {} : { scale: call.scale }),
    };
    const rows = tape.reshape(features, [M, hiddenSize]);
    if (call.adapters?.has(head.place.module) !== true) {
      return tape.linearCrossEntropy(rows, head.w, wanted, options);
    }
    if (tape.crossEntropy === undefined) {
      const { module } = head.place;
      fail('ERR_UNSUPPORTED', 'decoder.loss', 'adapters', 'none of the head', `"${module}"`);
    }
    return tape.crossEntropy(this.#headLogits(tape, rows, call), wanted, options);
  }

  #headLogits(tape: DecoderTape, features: Value, call: DecoderCall): Value {
    const { adapters = new Map(), seed, observe } = call;
    return linear(features, this.weights.head, { tape, adapters, seed, observe });
  }

  /** The table of each layer for the positions of a call; layers that rotate in one way share it. */
  #ropes(
    { T }: DecoderTokens,
    begins: Int32Array | undefined,
    cache: KvCache | undefined,
  ): readonly Tensor[] {
    const length =
      begins === undefined
        ? (cache?.length ?? 0) + T
        : begins.reduce((most, b, m) => Math.max(most, (m % T) - b + 1), 0);
    this.#tables.trim();
    const views = new Map<Tensor, Tensor>();
    return this.config.layers.map(({ attention: { rotary } }) => {
      const table = this.#tables.get(rotary, cache?.capacity ?? T, length);
      // What the tape reads later outlives the table's place among the last.
      const view = views.get(table) ?? keepForStep(() => table.reshape(table.shape));
      views.set(table, view);
      return view;
    });
  }

  /** The norm before a block, over the stream with what the block before it adds. */
  #enter(
    tape: DecoderTape,
    { x, add }: Stream,
    gain: Tensor,
    { eps, plusOne }: DecoderConfig['norm'],
  ): { readonly y: Value; readonly sum: Value } {
    const residual = add === undefined ? {} : { residual: add };
    return tape.rmsNorm(x, tape.constant(gain), { eps, plusOne, ...residual });
  }

  #normed(tape: DecoderTape, x: Value, gain: Tensor | undefined): Value {
    if (gain === undefined) return x;
    return this.#enter(tape, { x }, gain, this.config.norm).y;
  }

  #attention(stream: Stream, index: number, weights: LayerWeights, call: Call): Stream {
    const { tape, tokens } = call;
    const { attention } = this.config.layers[index] as DecoderLayerConfig;
    const { heads, kvHeads, headDim, window, softcap } = attention;
    const { y: n, sum } = this.#enter(tape, stream, weights.attentionNorm, this.config.norm);
    const [wide, narrow] = [heads * headDim, kvHeads * headDim];
    const ys = weights.qkv.map((layer) => linear(n, layer, call));
    const whole = ys.length === 1 && weights.qNorm === undefined && weights.kNorm === undefined;
    const parts = whole ? ys : this.#cut(ys, [wide, narrow, narrow], call);
    const perHead = (value: Value, gain: Tensor | undefined): Value => {
      if (gain === undefined) return value;
      const flat = tape.reshape(value, [value.tensor.size / headDim, headDim]);
      return tape.reshape(this.#normed(tape, flat, gain), value.shape);
    };
    const [q, k, v] = parts as [Value, Value, Value];
    const values = whole
      ? { qkv: q }
      : { q: perHead(q, weights.qNorm), k: perHead(k, weights.kNorm), v };
    const { cache } = call;
    const held = cache?.layers[index];
    const mixed = tape.attention(values, {
      ...(held === undefined ? {} : { cache: { ...held, past: (cache as KvCache).length } }),
      heads,
      kvHeads,
      scale: attention.scale,
      rope: call.ropes[index] as Tensor,
      ...(weights.sinks === undefined ? {} : { sinks: weights.sinks }),
      ...(window === undefined || window >= (cache?.capacity ?? tokens.T) ? {} : { window }),
      ...(softcap === undefined ? {} : { softcap }),
      ...(call.documents === undefined ? {} : { documents: call.documents }),
    });
    const out = linear(mixed, weights.attentionOutput, call);
    const add = this.#normed(tape, out, weights.attentionOutputNorm);
    return { x: sum, add: passing(add, `layers.${index}.attention`, call) };
  }

  #mlp(stream: Stream, index: number, weights: LayerWeights, call: Call): Stream {
    const { tape } = call;
    const layer = this.config.layers[index] as DecoderLayerConfig;
    const { intermediateSize: inner, gate: kind } = layer.mlp;
    const { y: n, sum } = this.#enter(tape, stream, weights.mlpNorm, this.config.norm);
    const { down, experts } = weights;
    const hidden = (ys: readonly Value[]): Value => {
      const [gate, up] = this.#cut(ys, [inner, inner], call, layer.mlp.experts?.gateUp);
      return tape.gatedActivation(gate as Value, up as Value, kind);
    };
    const out =
      experts !== undefined
        ? routedExperts(n, experts, layer.mlp.experts as ExpertsConfig, call, hidden)
        : linear(
            hidden(weights.gateUp.map((each) => linear(n, each, call))),
            down as LinearWeights,
            call,
          );
    const add = this.#normed(tape, out, weights.mlpOutputNorm);
    return { x: sum, add: passing(add, `layers.${index}.mlp`, call) };
  }

  /** The results of several layers, or that of a fused one cut into parts of these widths. */
  #cut(
    ys: readonly Value[],
    widths: readonly number[],
    call: Call,
    lie: ExpertsConfig['gateUp'] = 'halves',
  ): readonly Value[] {
    const [fused] = ys as [Value];
    if (ys.length > 1) return ys;
    const whole = widths.reduce((sum, each) => sum + each, 0);
    let begin = 0;
    return widths.map((width, i) => {
      const end = begin + width;
      const map =
        lie === 'turns' ? this.#turns(whole, i, widths.length) : this.#slice(whole, begin, end);
      begin = end;
      return call.tape.features(fused, map, { dtype: fused.tensor.dtype });
    });
  }

  #slice(width: number, begin: number, end: number): FeatureMap {
    const { device } = this.weights;
    return this.#map(`${width} ${begin} ${end}`, () =>
      FeatureMap.slice(width, begin, end, { device }),
    );
  }

  /** Every `step`-th column from `first` on. */
  #turns(width: number, first: number, step: number): FeatureMap {
    const { device } = this.weights;
    const index = Int32Array.from({ length: width / step }, (_, i) => first + i * step);
    return this.#map(`${width} ${first} of ${step}`, () =>
      FeatureMap.gather(index, width, { device }),
    );
  }

  #map(key: string, make: () => FeatureMap): FeatureMap {
    const known = this.#maps.get(key);
    if (known !== undefined) return known;
    // It lives as long as the decoder, whatever scope the first call is in.
    const map = outsideScopes(make);
    this.#maps.set(key, map);
    return map;
  }

  /** Frees the weights. Twice is a no-op. */
  dispose(): void {
    for (const map of this.#maps.values()) map.dispose();
    this.#maps.clear();
    this.#tables.trim(0);
    this.weights.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** The residual stream between two blocks: what stands in it, and what the block before adds to it. */
interface Stream {
  readonly x: Value;
  readonly add?: Value;
}

/** A block that runs again in the backward pass. Its sum is computed at its end, not in the next norm: same bits. */
function recomputed(
  call: Call,
  { x, add }: Stream,
  block: (call: Call, from: Stream) => Stream,
): Stream {
  const whole = add === undefined ? x : call.tape.add(x, add);
  const y = call.tape.recompute(whole, (tape, from) => {
    const made = block({ ...call, tape }, { x: from });
    return made.add === undefined ? made.x : tape.add(made.x, made.add);
  });
  return { x: y };
}

/** What half a block adds, for gradients that go past it where the call skips it. */
function passing(add: Value, half: string, { tape, skip }: Call): Value {
  return skip?.has(half) === true ? tape.own(add.tensor.reshape(add.shape)) : add;
}

/** The experts of each row, weighted by the gates of the router: [..., hiddenSize]. */
function routedExperts(
  x: Value,
  { router, gateUp, down }: ExpertLayerWeights,
  { perToken, softmax }: ExpertsConfig,
  call: Call,
  hidden: (ys: readonly Value[]) => Value,
): Value {
  const { tape } = call;
  const logits = linear(x, router, call);
  const { route, gates } = tape.selectExperts(logits, { k: perToken, softmax });
  const product = (input: Value, { place, w, bias }: ExpertsWeights, gather: boolean): Value => {
    const lora = call.experts.get(expertsName(place));
    return tape.expertsMatmul(input, w, route, {
      gather,
      ...(bias === undefined ? {} : { bias: tape.constant(bias) }),
      ...(lora === undefined
        ? {}
        : {
            lora: {
              a: tape.variable(lora.loraA),
              b: tape.variable(lora.loraB),
              scaling: lora.scaling,
            },
          }),
    });
  };
  const inner = hidden([product(x, gateUp, true)]);
  const out = tape.combineRows(product(inner, down, false), gates, route);
  return tape.reshape(out, x.shape);
}

/** A linear layer with its adapter, where it has one. */
function linear(
  x: Value,
  { place, w, bias }: LinearWeights,
  { tape, adapters, seed, observe }: Pick<Call, 'tape' | 'adapters' | 'seed' | 'observe'>,
): Value {
  const given = bias === undefined ? undefined : tape.constant(bias);
  const adapter = adapters.get(place.module);
  if (adapter === undefined) return tape.linear(x, w, given);
  const own = seed === undefined ? undefined : hash32(seed, place.module);
  const { y } = recordAdapter(tape, adapter, { x, w, bias: given, seed: own });
  return observe?.(place.module, x, y) ?? y;
}

/** The caller's indices, or new ones of the call. */
function indicesOf(given: Int32Array | Indices, options: IndicesOptions): Indices {
  return Indices.is(given) ? given : Indices.from(given, options);
}
