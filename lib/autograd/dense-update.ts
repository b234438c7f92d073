import { checkShape, checkTensor, lastDim } from '../core/check-tensor.js';
import { fail, wrongType } from '../core/errors.js';
import { scope } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import { checkInteger, checkSameDevice, readOptions } from '../core/validate.js';
import { withLast } from '../ops/base-weight.js';
import { denseRows, putRows } from '../ops/dense-rows.js';
import { multiplyAdd } from '../ops/elementwise.js';
import { matmul, matmulInputGrad } from '../ops/matmul.js';
import { weightGrad } from '../ops/weight-grad.js';
import { addColumns, takeColumns } from './columns.js';
import { type BackwardPass, checkStep, type Value } from './gradient-tape.js';
import { Tape } from './tape.js';

/** Default number of values in a tile of an update. */
const TILE_VALUES = 2 ** 21;

/** Rows of a tile: a multiple of `step`, at least `step`. */
function rowsOfTile(K: number, step: number): number {
  return step * Math.max(1, Math.floor(TILE_VALUES / (step * Math.max(K, 1))));
}

function* tiles(N: number, rows: number): Generator<readonly [begin: number, end: number]> {
  for (let begin = 0; begin < N; begin += rows) yield [begin, Math.min(N, begin + rows)];
}

/** An update of the weight that is a function of small tensors. */
export interface DenseUpdateOptions<R extends string, I extends string> {
  /** Rows of the update. */
  N: number;
  /** Rows that are made at a time. By default a tile takes 8 MiB. */
  tileRows?: number;
  /** The default number of rows of a tile is a multiple of this, e.g. of {@link rowStep}. */
  step?: number;
  /** Tensors [N, ...] by name. A tile reads only its own rows of them. */
  rows?: Readonly<Record<R, Value>>;
  /** Tensors by name. Every tile reads all of them. */
  inputs?: Readonly<Record<I, Value>>;
  /**
   * Rows begin to end of ΔW as [end − begin, K], in steps of the given tape, from the same rows of
   * `rows` and from `inputs`. Each tile calls it once in the forward pass and once in the backward
   * pass. Both calls must return the same.
   */
  tile: (t: Tape, at: Readonly<Record<R | I, Value>>, begin: number, end: number) => Value;
}

type AnyUpdate = DenseUpdateOptions<string, string>;

/** A tile on a tape of its own, with values of the outer tape as its variables or constants. */
function runTile(
  sub: Tape,
  { rows = {}, inputs = {}, tile }: AnyUpdate,
  begin: number,
  end: number,
  wants: (value: Value) => boolean,
): { rows: Value[]; inputs: Value[]; update: Value } {
  const at: Record<string, Value> = {};
  const own = (name: string, value: Value, tensor: Tensor): Value => {
    const mine = wants(value) ? sub.variable(tensor) : sub.constant(tensor);
    at[name] = mine;
    return mine;
  };
  const taken = Object.entries(rows).map(([name, value]) => {
    const { shape, dtype, size } = value.tensor;
    const [N = 1, ...rest] = shape;
    const part = denseRows(value.tensor.reshape([N, size / N]), begin, end, { dtype });
    return own(name, value, part.reshape([end - begin, ...rest]));
  });
  const whole = Object.entries(inputs).map(([name, value]) => own(name, value, value.tensor));
  return { rows: taken, inputs: whole, update: tile(sub, at, begin, end) };
}

/**
 * `x · ΔWᵀ` for an update ΔW [N, K] that is made tile by tile and never stored whole. ΔW is any
 * function of small tensors, such as a product of two low-rank products or a rescaling of the base
 * weight. A step on the tape: the backward pass makes each tile again and applies the chain rule to
 * it (`dTile = dyᵀ · x`, with the tile's columns of dy), so memory holds one tile at a time. Sums
 * follow the order of the tiles and have the same bits every time.
 * @param t the tape
 * @param x [..., K]
 * @param options the update: its number of rows N, its inputs and the function that makes a tile
 * @returns [..., N] f32
 * @throws ERR_SHAPE if a tile is not [end − begin, K]; ERR_VALUE, ERR_TYPE
 * @example
 * // LoHa: ΔW = (a1 · b1) ⊙ (a2 · b2)
 * const y = denseUpdate(t, x, {
 *   N,
 *   rows: { a1: p.a1, a2: p.a2 },
 *   inputs: { b1: p.b1, b2: p.b2 },
 *   tile: (t, { a1, a2, b1, b2 }) => t.multiply(t.product(a1, b1), t.product(a2, b2)),
 * });
 */
export function denseUpdate<R extends string = never, I extends string = never>(
  t: Tape,
  x: Value,
  options: DenseUpdateOptions<R, I>,
): Value {
  const op = 'denseUpdate';
  checkStep(op, t, { x });
  if (options === null || typeof options !== 'object') {
    throw wrongType(op, 'options', 'an object', options);
  }
  const update = options as unknown as AnyUpdate;
  const K = lastDim(x.tensor);
  const N = checkInteger(op, 'N', update.N, 1, 2 ** 31);
  const step = checkInteger(op, 'step', update.step ?? 1, 1, 2 ** 31);
  const asked = update.tileRows ?? rowsOfTile(K, step);
  const size = checkInteger(op, 'tileRows', asked, 1, 2 ** 31);
  for (const [name, { tensor }] of Object.entries(update.rows ?? {})) {
    checkShape(op, `rows.${name}`, tensor, [N, ...tensor.shape.slice(1)]);
  }
  let y = Tensor.zeros(withLast(x.tensor, N), { device: x.tensor.device });
  for (const [begin, end] of tiles(N, size)) {
    y = scope(() => {
      const sub = new Tape({ recording: false });
      const { tensor } = runTile(sub, update, begin, end, () => false).update;
      checkShape(op, 'the tile', tensor, [end - begin, K]);
      const sum = addColumns(y, matmul(x.tensor, tensor), begin);
      y.dispose();
      return sum;
    });
  }
  const all = [x, ...Object.values(update.rows ?? {}), ...Object.values(update.inputs ?? {})];
  const kept = all.map(({ tensor }) => tensor);
  return t.record(y, all, kept, (dy, pass) => backward(op, x, dy, pass, update, size));
}

/** Replaces the previous sum. The first part may be shared, so it gets a handle. */
function plus(sum: Tensor | undefined, part: Tensor | undefined): Tensor | undefined {
  if (part === undefined) return sum;
  if (sum === undefined) return part.reshape(part.shape);
  const next = multiplyAdd({ a: sum, c: part, dtype: 'f32' });
  sum.dispose();
  return next;
}

function backward(
  op: string,
  x: Value,
  dy: Tensor,
  pass: BackwardPass,
  update: AnyUpdate,
  size: number,
): void {
  const wants = (value: Value): boolean => pass.wants(value);
  const { device } = x.tensor;
  const rows = Object.values(update.rows ?? {});
  const whole = [x, ...Object.values(update.inputs ?? {})];
  const ofRows = rows.map((value) =>
    wants(value) ? Tensor.zeros(value.shape, { device }) : undefined,
  );
  let sums: (Tensor | undefined)[] = whole.map(() => undefined);
  for (const [begin, end] of tiles(update.N, size)) {
    sums = scope(() => {
      const sub = new Tape();
      const made = runTile(sub, update, begin, end, wants);
      const part = takeColumns(dy, begin, end);
      const wanted = [...made.rows, ...made.inputs];
      const gradients =
        made.update.differentiable && wanted.some(({ differentiable }) => differentiable)
          ? sub.gradients(op, made.update, weightGrad(part, x.tensor), wanted)
          : [];
      ofRows.forEach((target, i) => {
        const gradient = gradients[i];
        if (target !== undefined && gradient !== undefined) putRows(target, gradient, begin);
      });
      const dx = wants(x) ? matmulInputGrad(part, made.update.tensor) : undefined;
      const parts = [dx, ...gradients.slice(rows.length)];
      return sums.map((sum, i) => plus(sum, parts[i]));
    });
  }
  whole.forEach((value, i) => {
    const sum = sums[i];
    if (sum !== undefined && wants(value)) pass.give(value, sum);
  });
  rows.forEach((value, i) => {
    const gradient = ofRows[i];
    if (gradient !== undefined) pass.give(value, gradient);
  });
}

/** Options of {@link weightGradTiles}. */
export interface WeightGradTilesOptions<T> {
  /** Rows that are computed at a time. By default a tile takes 8 MiB. */
  tileRows?: number;
  /**
   * Takes rows begin to end of dW as [end − begin, K] in f32. The tile is freed afterwards, unless
   * the function returns it, alone or inside another value.
   */
  consume: (tile: Tensor, begin: number, end: number) => T;
}

/**
 * The gradient `dW = dyᵀ · x` of a dense weight, tile by tile, for a consumer that needs only a
 * function of it: a projection to a low rank, some of its entries, a norm. At most one tile of dW
 * exists at a time.
 * @param dy [..., N] any dtype
 * @param x [..., K] any dtype, with the same leading dimensions as dy
 * @returns what `consume` returned, in the order of the tiles
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DEVICE, ERR_VALUE, ERR_DISPOSED, ERR_OOM; whatever `consume`
 * throws
 * @example
 * // GaLore: the gradient in the space of p [K, r], N x r in place of N x K.
 * const parts = weightGradTiles(dy, x, { consume: (tile) => matmul(tile, pT) });
 */
export function weightGradTiles<T>(dy: Tensor, x: Tensor, options: WeightGradTilesOptions<T>): T[] {
  const op = 'weightGradTiles';
  checkTensor(op, 'dy', dy);
  checkTensor(op, 'x', x);
  if (dy.shape.length === 0) fail('ERR_SHAPE', op, 'dy', 'of shape [..., N]', '[]');
  if (x.shape.length === 0) fail('ERR_SHAPE', op, 'x', 'of shape [..., K]', '[]');
  checkShape(op, 'x', x, withLast(dy, lastDim(x)));
  checkSameDevice(op, 'x', x, dy);
  if (options === null || typeof options !== 'object') {
    throw wrongType(op, 'options', 'an object', options);
  }
  const { consume, tileRows } = readOptions(op, options, { consume: true, tileRows: true });
  if (typeof consume !== 'function') throw wrongType(op, 'consume', 'a function', consume);
  const asked = tileRows ?? rowsOfTile(lastDim(x), 1);
  const size = checkInteger(op, 'tileRows', asked, 1, 2 ** 31);
  return [...tiles(lastDim(dy), size)].map(([begin, end]) =>
    scope(() => consume(weightGrad(takeColumns(dy, begin, end), x), begin, end)),
  );
}
