import { native } from '../../core/binding.js';
import type { AttentionArguments } from '../../core/binding-model.js';
import { checkShape, checkTensor, checkVector, lastDim } from '../../core/check-tensor.js';
import { fail, wrongType } from '../../core/errors.js';
import { Tensor } from '../../core/tensor.js';
import {
  checkFinite,
  checkInteger,
  checkSameDevice,
  ownFields,
  readOptions,
  refuseField,
  showShape,
} from '../../core/validate.js';
import { Indices } from './indices.js';

const MOST_HEADS = 65_536;
const MOST_HEAD_DIM = 256;
const MOST_ROWS = 2 ** 31 - 1;

/**
 * Queries, keys and values, as three tensors or side by side in one. Head h is columns `h · d` to
 * `h · d + d - 1`, and the dimensions before the last are sequences and their rows: [B, T, cols], or
 * [T, cols] for one sequence.
 */
export type AttentionInput =
  | {
      /** [B, T, heads · d], any dtype. */
      readonly q: Tensor;
      /** [B, T, kvHeads · d], dtype of q. */
      readonly k: Tensor;
      /** [B, T, kvHeads · d], dtype of q. */
      readonly v: Tensor;
    }
  | {
      /** [B, T, (heads + 2 · kvHeads) · d]: the queries of all heads, then keys, then values. */
      readonly qkv: Tensor;
    };

/** The form of attention, which both passes share. */
export interface AttentionShape {
  /** Query heads. */
  heads: number;
  /** Key and value heads, which divide `heads`; default `heads`. Head h reads key head `h · kvHeads / heads`. */
  kvHeads?: number;
  /** Default d^-½. */
  scale?: number;
  /** A row sees itself and `window - 1` rows before it; by default all rows before it. */
  window?: number;
  /** Scores become `softcap · tanh(score / softcap)`; by default they stay as they are. */
  softcap?: number;
  /**
   * [P, rot] f32: in row p the cosines, then the sines of position p, rot / 2 of each. Dimension
   * i < rot / 2 of queries and keys is turned with dimension i + rot / 2; dimensions from rot on stay.
   */
  rope?: Tensor;
  /**
   * One index a row, B · T in all: the row of its sequence at which the row's document begins. A row
   * sees only its own document, and its position counts from there.
   */
  documents?: Indices;
}

/** Keys and values of earlier rows. */
export interface AttentionCache {
  /** [B, capacity, kvHeads · d], dtype of q: turned keys. The call appends to it. */
  readonly k: Tensor;
  /** [B, capacity, kvHeads · d], dtype of q. The call appends to it. */
  readonly v: Tensor;
  /** Rows of each sequence that are there already. */
  readonly past: number;
}

/** How {@link attention} works. */
export interface AttentionOptions extends AttentionShape {
  /** The rows follow those in a cache, see them, and are appended. Not with `documents`. */
  cache?: AttentionCache;
  /**
   * [heads] f32: one more score of each row of a head, which has no value. The softmax of a row then sums to less than 1
   * (Xiao et al., 2023, arXiv:2309.17453). They are frozen: no gradient is computed.
   */
  sinks?: Tensor;
  /** Keep the logarithms of the sums for the backward pass; default true. */
  keep?: boolean;
}

/** What {@link attention} returns. */
export interface AttentionResult {
  /** [B, T, heads · d], dtype of q. */
  o: Tensor;
  /** [heads, B · T] f32; absent with `keep: false`. */
  lse?: Tensor;
}

/** How {@link attentionBackward} works. */
export interface AttentionBackwardOptions extends AttentionShape {
  /** Of {@link attention}. */
  o: Tensor;
  /** Of {@link attention}. */
  lse: Tensor;
}

/** Gradients of an {@link AttentionInput}, in its form. */
export type AttentionGradients<Input extends AttentionInput = AttentionInput> = {
  [Name in keyof Input as Name extends string ? `d${Name}` : never]: Tensor;
};

const SHAPE_FIELDS = {
  heads: true,
  kvHeads: true,
  scale: true,
  window: true,
  softcap: true,
  rope: true,
  documents: true,
} as const;

/** One call, checked. */
interface Call {
  readonly args: AttentionArguments;
  readonly q: Tensor;
  /** Of the inputs, in the order q, k, v, or of the fused one. */
  readonly inputs: readonly Tensor[];
  readonly fused: boolean;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly sequences: number;
  readonly rows: number;
}

/** [B, T, cols], [T, cols] or [cols] with another last dimension. */
const withLast = (tensor: Tensor, last: number): number[] => [...tensor.shape.slice(0, -1), last];

function checkInput(op: string, input: AttentionInput): { q: Tensor; k: Tensor; v: Tensor } {
  if (typeof input !== 'object' || input === null || Tensor.is(input)) {
    throw wrongType(op, 'input', 'an object of q, k and v, or of qkv', input);
  }
  const own = ownFields<object>(op, input) as Record<string, unknown>;
  const fused = 'qkv' in own;
  const known = fused ? ['qkv'] : ['q', 'k', 'v'];
  for (const name of Object.keys(own)) if (!known.includes(name)) refuseField(op, name, known);
  const [q, k, v] = (fused ? ['qkv', 'qkv', 'qkv'] : known).map((name) => {
    const tensor = checkTensor(op, name, own[name]);
    if (tensor.shape.length < 2) {
      fail('ERR_SHAPE', op, name, 'of at least 2 dimensions', showShape(tensor.shape));
    }
    return tensor;
  }) as [Tensor, Tensor, Tensor];
  for (const [name, tensor] of Object.entries({ k, v })) {
    checkSameDevice(op, name, tensor, q);
    if (tensor.dtype !== q.dtype) fail('ERR_DTYPE', op, name, q.dtype, tensor.dtype);
  }
  return { q, k, v };
}

/** Columns of a head: what of the last dimension `parts` heads have each. */
function headDimOf(op: string, name: string, tensor: Tensor, parts: number): number {
  const cols = lastDim(tensor);
  if (cols % parts !== 0 || cols === 0) {
    fail('ERR_SHAPE', op, name, `of a multiple of ${parts} columns`, showShape(tensor.shape));
  }
  const dim = cols / parts;
  if (dim % 2 !== 0 || dim > MOST_HEAD_DIM) {
    const expected = `of heads of an even number of columns, up to ${MOST_HEAD_DIM}`;
    fail('ERR_SHAPE', op, name, expected, String(dim));
  }
  return dim;
}

function optionalNumber(op: string, name: string, value: number | undefined): number | undefined {
  return value === undefined ? undefined : checkFinite(op, name, value);
}

/** The rows that the rotation must reach are those of the cache too. */
function checkRope(op: string, rope: Tensor, q: Tensor, headDim: number, positions: number): void {
  checkTensor(op, 'rope', rope);
  checkSameDevice(op, 'rope', rope, q);
  if (rope.dtype !== 'f32') fail('ERR_DTYPE', op, 'rope', 'f32', rope.dtype);
  const [P = 0, rot = 0] = rope.shape;
  if (rope.shape.length !== 2 || P < positions || rot % 2 !== 0 || rot > headDim) {
    const expected = `[P, rot] with P >= ${positions} and an even rot <= ${headDim}`;
    fail('ERR_SHAPE', op, 'rope', expected, showShape(rope.shape));
  }
}

function checkCall(
  op: string,
  input: AttentionInput,
  shape: Partial<AttentionShape>,
  past: number,
): Call {
  const { q, k, v } = checkInput(op, input);
  const fused = q === k && 'qkv' in input;
  const heads = checkInteger(op, 'heads', shape.heads, 1, MOST_HEADS);
  const kvHeads = checkInteger(op, 'kvHeads', shape.kvHeads ?? heads, 1, MOST_HEADS);
  if (shape.kvHeads === null) throw wrongType(op, 'kvHeads', 'a number', null);
  if (heads % kvHeads !== 0) {
    fail('ERR_VALUE', op, 'heads', `a multiple of kvHeads = ${kvHeads}`, String(heads));
  }
  const name = fused ? 'qkv' : 'q';
  const headDim = headDimOf(op, name, q, fused ? heads + 2 * kvHeads : heads);
  if (!fused) {
    checkShape(op, 'k', k, withLast(q, kvHeads * headDim));
    checkShape(op, 'v', v, withLast(q, kvHeads * headDim));
  }
  const T = q.shape.at(-2) as number;
  const sequences = q.shape.slice(0, -2).reduce((a, b) => a * b, 1);
  // No sequences are one of no rows.
  const counted = sequences === 0 ? 1 : sequences;
  const rows = sequences * T;
  const scale = optionalNumber(op, 'scale', shape.scale) ?? headDim ** -0.5;
  const softcap = optionalNumber(op, 'softcap', shape.softcap);
  if (softcap !== undefined && softcap <= 0) {
    fail('ERR_VALUE', op, 'softcap', 'above 0', String(softcap));
  }
  const { window, rope, documents } = shape;
  if (window !== undefined) checkInteger(op, 'window', window, 1, MOST_ROWS);
  if (rope !== undefined) checkRope(op, rope, q, headDim, sequences === 0 ? 0 : past + T);
  const starts = documents === undefined ? null : Indices.handleOf(documents, op, 'documents');
  if (documents !== undefined) {
    checkSameDevice(op, 'documents', documents, q);
    if (documents.length !== rows) {
      fail('ERR_SHAPE', op, 'documents', `of ${rows} rows`, String(documents.length));
    }
  }
  const [kFirst, vFirst] = fused ? [heads * headDim, (heads + kvHeads) * headDim] : [0, 0];
  const handles = [q, k, v].map((tensor, i) =>
    Tensor.handleOf(tensor, op, fused ? 'qkv' : (['q', 'k', 'v'][i] as string)),
  ) as [AttentionArguments[0], AttentionArguments[1], AttentionArguments[2]];
  return {
    args: [
      ...handles,
      0,
      kFirst,
      vFirst,
      counted,
      heads,
      kvHeads,
      headDim,
      window ?? 0,
      scale,
      softcap ?? 0,
      rope === undefined ? null : Tensor.handleOf(rope, op, 'rope'),
      starts,
    ],
    q,
    inputs: fused ? [q] : [q, k, v],
    fused,
    heads,
    kvHeads,
    headDim,
    sequences,
    rows,
  };
}

function readCache(op: string, cache: AttentionCache): Partial<AttentionCache> {
  if (typeof cache !== 'object' || cache === null) {
    throw wrongType(op, 'cache', 'an object of k, v and past', cache);
  }
  const own = readOptions(op, cache, { k: true, v: true, past: true });
  checkInteger(op, 'cache.past', own.past, 0, MOST_ROWS);
  return own;
}

/** Are k and v of [B, capacity, kvHeads · d], with room for the rows of this call? */
function checkCache(op: string, cache: Partial<AttentionCache>, call: Call): void {
  const { q, kvHeads, headDim } = call;
  const needed = (cache.past as number) + (q.shape.at(-2) as number);
  const lead = q.shape.slice(0, -2);
  const cols = kvHeads * headDim;
  const k = checkTensor(op, 'cache.k', cache.k);
  const capacity = k.shape.at(-2) ?? 0;
  for (const [name, value] of Object.entries({ 'cache.k': k, 'cache.v': cache.v })) {
    const tensor = checkTensor(op, name, value);
    checkSameDevice(op, name, tensor, q);
    if (tensor.dtype !== q.dtype) fail('ERR_DTYPE', op, name, q.dtype, tensor.dtype);
    checkShape(op, name, tensor, [...lead, capacity, cols]);
  }
  if (capacity < needed) {
    const room = `of at least ${needed} rows a sequence (past = ${cache.past})`;
    fail('ERR_SHAPE', op, 'cache', room, String(capacity));
  }
}

/**
 * Causal attention of grouped heads in tiles (Dao, FlashAttention-2, 2023, arXiv:2307.08691): no [T, T]
 * memory. For row t of a sequence, with queries and keys turned by their positions (Su et al., RoFormer,
 * 2021, arXiv:2104.09864) and rounded to their dtype:
 *
 * `s[t, i] = scale · q[t] · k[i]`, capped, `lse[t] = log Σᵢ e^s[t, i]`, `o[t] = Σᵢ e^(s[t, i] - lse[t]) · v[i]`
 *
 * over the rows i that t sees: itself and those before it, within the window and its document. With sinks
 * `lse[t] = log (Σᵢ e^s[t, i] + e^sink)`. Sums and
 * softmax are in f32; bf16 weights of values are rounded to bf16 where the processor multiplies pairs of
 * them. A CUDA device rounds weights to bf16 or f16 where q has that dtype. A sequence gives the same bits
 * alone and in a batch, and in steps with a cache of any size.
 * @param input `{ q, k, v }`, or `{ qkv }`
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_VALUE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM,
 * ERR_UNSUPPORTED on a CUDA device beyond 2^30 rows of a sequence times heads of a group. Reading o throws
 * ERR_VALUE where `documents` do not ascend: each index is its own row, or the index of the row before it
 * @example
 * const { o, lse } = attention({ qkv }, { heads: 32, kvHeads: 8, rope });
 * const step = attention({ q, k, v }, { heads: 32, kvHeads: 8, rope, cache: { k: keys, v: values, past } });
 */
export function attention(input: AttentionInput, options: AttentionOptions): AttentionResult {
  const op = 'attention';
  const given = readOptions(op, options, {
    ...SHAPE_FIELDS,
    cache: true,
    keep: true,
    sinks: true,
  });
  const { cache, keep = true } = given;
  if (typeof keep !== 'boolean') throw wrongType(op, 'keep', 'a boolean', keep);
  const kept = cache === undefined ? undefined : readCache(op, cache);
  const call = checkCall(op, input, given, kept?.past ?? 0);
  if (kept !== undefined) {
    checkCache(op, kept, call);
    if (given.documents !== undefined) {
      fail('ERR_VALUE', op, 'documents', 'absent with a cache', 'present');
    }
  }
  const { sinks } = given;
  if (sinks !== undefined) {
    checkTensor(op, 'sinks', sinks);
    checkVector(op, 'sinks', sinks, call.heads);
    checkSameDevice(op, 'sinks', sinks, call.q);
    if (sinks.dtype !== 'f32') fail('ERR_DTYPE', op, 'sinks', 'f32', sinks.dtype);
  }
  const sinksHandle = sinks === undefined ? null : Tensor.handleOf(sinks, op, 'sinks');
  const caches = [kept?.k, kept?.v].map((tensor, i) =>
    tensor === undefined ? null : Tensor.handleOf(tensor, op, i === 0 ? 'cache.k' : 'cache.v'),
  ) as [AttentionArguments[13], AttentionArguments[13]];
  const [o, lse] = native(op, (raw) =>
    raw.attention(...call.args, ...caches, kept?.past ?? 0, keep, sinksHandle),
  );
  const { q, heads, headDim, rows } = call;
  const { dtype, device } = q;
  return {
    o: Tensor.adopt(o, withLast(q, heads * headDim), dtype, device),
    ...(lse === null ? {} : { lse: Tensor.adopt(lse, [heads, rows], 'f32', device) }),
  };
}

/**
 * Gradients of {@link attention} without a cache. With `p[t, i] = e^(s[t, i] - lse[t])`, computed again tile
 * by tile, and `D[t] = Σ o[t] ⊙ dO[t]`:
 *
 * `dv[i] = Σₜ p[t, i] · dO[t]`, `ds[t, i] = p[t, i] · (dO[t] · v[i] - D[t])`, times `1 - (s / softcap)²`,
 * `dq[t] = scale · Σᵢ ds[t, i] · k[i]`, `dk[i] = scale · Σₜ ds[t, i] · q[t]`, both turned back
 * @param dO [B, T, heads · d], any dtype
 * @param input of the forward pass
 * @param options those of the forward pass, and its results
 * @returns `{ dq, dk, dv }` or `{ dqkv }`, in the shapes and the dtype of the input
 * @throws as {@link attention}
 * @example
 * const { dqkv } = attentionBackward(dO, { qkv }, { heads: 32, kvHeads: 8, rope, o, lse });
 */
export function attentionBackward<Input extends AttentionInput>(
  dO: Tensor,
  input: Input,
  options: AttentionBackwardOptions,
): AttentionGradients<Input> {
  const op = 'attentionBackward';
  const given = readOptions(op, options, { ...SHAPE_FIELDS, o: true, lse: true });
  const call = checkCall(op, input, given, 0);
  const { q, heads, headDim, rows, inputs } = call;
  const { o, lse } = given;
  for (const [name, value] of Object.entries({ dO, o })) {
    const tensor = checkTensor(op, name, value);
    checkShape(op, name, tensor, withLast(q, heads * headDim));
    checkSameDevice(op, name, tensor, q);
  }
  const sums = checkTensor(op, 'lse', lse);
  checkShape(op, 'lse', sums, [heads, rows]);
  checkSameDevice(op, 'lse', sums, q);
  if (sums.dtype !== 'f32') fail('ERR_DTYPE', op, 'lse', 'f32', sums.dtype);
  const out = o as Tensor;
  if (out.dtype !== q.dtype) fail('ERR_DTYPE', op, 'o', q.dtype, out.dtype);
  const handles = [
    Tensor.handleOf(out, op, 'o'),
    Tensor.handleOf(sums, op, 'lse'),
    Tensor.handleOf(dO, op, 'dO'),
  ] as const;
  const made = native(op, (raw) => raw.attentionBackward(...call.args, ...handles, call.fused));
  const names = call.fused ? ['dqkv'] : ['dq', 'dk', 'dv'];
  const gradients = names.map((name, i) => {
    const { shape, dtype, device } = inputs[i] as Tensor;
    return [name, Tensor.adopt(made[i] as never, shape, dtype, device)];
  });
  return Object.fromEntries(gradients) as AttentionGradients<Input>;
}
