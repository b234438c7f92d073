/**
 * A decoder-only model in float64: forward and, by hand-written gradients, backward. It shares no arithmetic with the library.
 * It reads the library's description of a model, which recorded results check together with it.
 */
import type { DecoderConfig, DecoderPlaces, LayerPlaces, LinearPlace } from '../../../lib/index.js';
import { attention, type Rows } from './attention.js';
import { expertsBlock } from './experts.js';
import {
  gated,
  type LoraGradient,
  linear,
  type OracleLora,
  rmsNorm,
  softcapped,
} from './layers.js';
import {
  add,
  columns,
  joinColumns,
  type Matrix,
  matrix,
  reshape,
  type Step,
  scale,
} from './matrix.js';

/** A model out of its files. */
export interface OracleModel {
  readonly config: DecoderConfig;
  readonly places: DecoderPlaces;
  /** A tensor of the base model by its name. */
  readonly tensor: (name: string) => Float64Array;
  /** By module. */
  readonly adapters: ReadonlyMap<string, OracleLora>;
}

/** Tokens of a call. */
export interface OracleTokens extends Rows {
  readonly ids: ArrayLike<number>;
}

/** Gradients of a pass. */
export interface OracleGradients {
  /** [B·T, hiddenSize], of the embedding's (scaled) output. */
  readonly embedding: Matrix;
  /** By module. */
  readonly adapters: ReadonlyMap<string, LoraGradient>;
}

/** A forward pass, which `back` turns around. */
export interface OraclePass {
  /** [B·T, vocabSize] */
  readonly logits: Matrix;
  readonly back: (dLogits: Matrix) => OracleGradients;
}

/** Runs the model, with its adapters or without. */
export function decoderPass(model: OracleModel, tokens: OracleTokens, adapted = true): OraclePass {
  const { config, places, tensor } = model;
  const gradients = new Map<string, LoraGradient>();
  const apply = (x: Matrix, place: LinearPlace): Step =>
    linear(
      x,
      {
        w: matrix(place.N, place.K, tensor(place.weight.name)),
        bias: place.bias === undefined ? undefined : tensor(place.bias.name),
        lora: adapted ? model.adapters.get(place.module) : undefined,
      },
      (found) => {
        const before = gradients.get(place.module);
        gradients.set(
          place.module,
          before === undefined ? found : { a: add(before.a, found.a), b: add(before.b, found.b) },
        );
      },
    );
  const norm = (x: Matrix, place: { readonly name: string }): Step =>
    rmsNorm(x, tensor(place.name), config.norm);

  const D = config.hiddenSize;
  const table = tensor(places.embedding.name);
  const x0 = matrix(tokens.ids.length, D);
  Array.from(tokens.ids).forEach((id, m) => {
    x0.values.set(table.subarray(id * D, (id + 1) * D), m * D);
  });
  let x = scale(x0, config.embeddingScale);
  const backs: ((dy: Matrix) => Matrix)[] = [];
  config.layers.forEach((layer, index) => {
    const place = places.layers[index] as LayerPlaces;
    for (const block of [attentionBlock, mlpBlock]) {
      const step = block(x, layer, place, { apply, norm, tensor, tokens });
      backs.push((dy) => add(dy, step.back(dy)));
      x = add(x, step.y);
    }
  });
  const normed = norm(x, places.norm);
  const head = apply(normed.y, places.head);
  const capped = softcapped(head.y, config.finalSoftcap);
  const back = (dLogits: Matrix): OracleGradients => {
    gradients.clear();
    const dx = normed.back(head.back(capped.back(dLogits)));
    const embedding = backs.reduceRight((dy, each) => each(dy), dx);
    return { embedding, adapters: new Map(gradients) };
  };
  return { logits: capped.y, back };
}

interface Means {
  readonly apply: (x: Matrix, place: LinearPlace) => Step;
  readonly norm: (x: Matrix, place: { readonly name: string }) => Step;
  readonly tensor: (name: string) => Float64Array;
  readonly tokens: OracleTokens;
}

/** A norm of what a block gives, where the architecture has one. */
function outputNorm(y: Matrix, place: { readonly name: string } | undefined, means: Means): Step {
  return place === undefined ? { y, back: (dy) => dy } : means.norm(y, place);
}

/** Several layers on one input, or one fused layer cut into parts of these widths. */
function projections(
  x: Matrix,
  places: readonly LinearPlace[],
  widths: readonly number[],
  means: Means,
): { readonly parts: readonly Matrix[]; readonly back: (d: readonly Matrix[]) => Matrix } {
  const steps = places.map((place) => means.apply(x, place));
  if (steps.length > 1) {
    return {
      parts: steps.map(({ y }) => y),
      back: (d) =>
        steps.map(({ back }, i) => back(d[i] as Matrix)).reduce((sum, each) => add(sum, each)),
    };
  }
  const [fused] = steps as [Step];
  const ends = widths.map((_, i) => widths.slice(0, i + 1).reduce((sum, width) => sum + width));
  const parts = widths.map((width, i) => {
    const end = ends[i] as number;
    return columns(fused.y, end - width, end);
  });
  return { parts, back: (d) => fused.back(joinColumns(d)) };
}

type Layer = DecoderConfig['layers'][number];

function attentionBlock(x: Matrix, layer: Layer, place: LayerPlaces, means: Means): Step {
  const { heads, kvHeads, headDim } = layer.attention;
  const input = means.norm(x, place.attentionNorm);
  const [wide, narrow] = [heads * headDim, kvHeads * headDim];
  const { parts, back } = projections(input.y, place.qkv, [wide, narrow, narrow], means);
  const [q, k, v] = parts as [Matrix, Matrix, Matrix];
  const perHead = (value: Matrix, norm: { readonly name: string } | undefined): Step => {
    if (norm === undefined) return { y: value, back: (dy) => dy };
    const flat = (a: Matrix) => reshape(a, (a.rows * a.cols) / headDim, headDim);
    const step = means.norm(flat(value), norm);
    const whole = (a: Matrix) => reshape(a, value.rows, value.cols);
    return { y: whole(step.y), back: (dy) => whole(step.back(flat(dy))) };
  };
  const [qn, kn] = [perHead(q, place.qNorm), perHead(k, place.kNorm)];
  const sinks = place.sinks && means.tensor(place.sinks.name);
  const mixed = attention(qn.y, kn.y, v, layer.attention, means.tokens, undefined, sinks);
  const out = means.apply(mixed.y, place.attentionOutput);
  const last = outputNorm(out.y, place.attentionOutputNorm, means);
  return {
    y: last.y,
    back: (dy) => {
      const [dq, dk, dv] = mixed.back(out.back(last.back(dy)));
      return input.back(back([qn.back(dq), kn.back(dk), dv]));
    },
  };
}

function mlpBlock(x: Matrix, layer: Layer, place: LayerPlaces, means: Means): Step {
  const { intermediateSize: inner, gate: kind } = layer.mlp;
  const input = means.norm(x, place.mlpNorm);
  if (place.experts !== undefined) {
    const step = expertsBlock(input.y, layer, place.experts, means);
    return { y: step.y, back: (dy) => input.back(step.back(dy)) };
  }
  const { parts, back } = projections(input.y, place.gateUp, [inner, inner], means);
  const [gate, up] = parts as [Matrix, Matrix];
  const hidden = gated(gate, up, kind);
  const out = means.apply(hidden.y, place.down as LinearPlace);
  const last = outputNorm(out.y, place.mlpOutputNorm, means);
  return {
    y: last.y,
    back: (dy) => input.back(back(hidden.back(out.back(last.back(dy))))),
  };
}
