import { lastDim } from '../core/check-tensor.js';
import { DeviceSeed } from '../core/device-seed.js';
import type { DType } from '../core/dtype.js';
import { fail, wrongType } from '../core/errors.js';
import { full } from '../core/full.js';
import { Tensor } from '../core/tensor.js';
import { checkDropout, readOptions } from '../core/validate.js';
import type { BaseWeight } from '../ops/base-weight.js';
import type { ComputePrecision } from '../ops/compute.js';
import { type MapKind, mapTensor, multiplyAdd, sumProduct } from '../ops/elementwise.js';
import { loraExpandWithNorms } from '../ops/lora/factored-norm.js';
import {
  type LoraShrinkOptions,
  loraExpand,
  loraExpandBackward,
  loraShrink,
  loraShrinkBackward,
} from '../ops/lora/lora-parts.js';
import { matmul, matmulInputGrad } from '../ops/matmul.js';
import { weightGrad } from '../ops/weight-grad.js';
import { checkStep, type Value } from './gradient-tape.js';
import { type Expert, mixture } from './mixture.js';
import { StructuredTape } from './structured.js';

/** Dropout settings of a {@link Tape}. */
export interface TapeDropout {
  /**
   * Required if a dropout probability is above 0 and no mask is given. The same bits from a {@link DeviceSeed}, which a
   * captured step needs; a mask is then drawn for each dropout.
   */
  seed?: number | DeviceSeed;
  /** 1 = kept. Replaces the generator for the first dropout of the pass. */
  mask?: Tensor;
}

/** Options of a {@link Tape}. */
export interface TapeOptions {
  /** Default true. `false` for a forward pass alone: the tape keeps nothing and drops nothing. */
  recording?: boolean;
  /** Default none: the tape then rejects a step with dropout. */
  dropout?: TapeDropout;
  /** Precision of the products with the base weight; default `exact`. */
  compute?: ComputePrecision;
}

/** Separates the seeds of several dropouts of one pass. The first uses the seed unchanged. */
const SEED_STRIDE = 0x9e3779b1;

/** The seed of the turn-th draw of a pass. */
function seedOf(seed: number | DeviceSeed, turn: number): number | DeviceSeed {
  const added = turn * SEED_STRIDE;
  return typeof seed === 'number' ? (seed + added) % 2 ** 53 : seed.plus(added);
}

/** The gradient of a tensor that was broadcast, summed back to the shape of `like`. */
function foldTo(like: Tensor, full: Tensor, product: Tensor, factor?: Tensor, alpha = 1): Tensor {
  const scaled = (sum: Tensor): Tensor =>
    (alpha === 1 ? sum : multiplyAdd({ a: sum, alpha })).reshape(like.shape);
  if (like.size === full.size) {
    return multiplyAdd({
      a: product,
      ...(factor === undefined ? {} : { b: factor }),
      alpha,
      dtype: 'f32',
    }).reshape(like.shape);
  }
  if (like.size === lastDim(full) && lastDim(like) === lastDim(full)) {
    return scaled(sumProduct(product, factor, { axis: 0 }));
  }
  const rows = sumProduct(product, factor, { axis: 1 });
  if (like.size === rows.size) return scaled(rows);
  return scaled(sumProduct(rows.reshape([1, rows.size]), undefined, { axis: 1 }));
}

/** The derivative of y = f(x), from x and y. */
const DERIVATIVES: Record<MapKind, (x: Tensor, y: Tensor) => Tensor> = {
  reciprocal: (_, y) => multiplyAdd({ a: y, b: y, alpha: -1 }),
  sqrt: (_, y) => multiplyAdd({ a: mapTensor(y, 'reciprocal'), alpha: 0.5 }),
  rsqrt: (_, y) => multiplyAdd({ a: mapTensor(y, 'square'), b: y, alpha: -0.5 }),
  exp: (_, y) => y,
  log: (x) => mapTensor(x, 'reciprocal'),
  tanh: (_, y) => plusOne(mapTensor(y, 'square'), -1),
  sigmoid: (_, y) => multiplyAdd({ a: y, b: plusOne(y, -1) }),
  relu: (_, y) => mapTensor(y, 'sign'),
  abs: (x) => mapTensor(x, 'sign'),
  sign: (x) => multiplyAdd({ a: x, alpha: 0 }),
  square: (x) => multiplyAdd({ a: x, alpha: 2 }),
  sin: (x) => mapTensor(x, 'cos'),
  cos: (x) => multiplyAdd({ a: mapTensor(x, 'sin'), alpha: -1 }),
};

/** `alpha · a + 1` */
function plusOne(a: Tensor, alpha: number): Tensor {
  return multiplyAdd({ a, c: full([1], 1, { device: a.device }), alpha });
}

/**
 * The ops of this library as differentiable steps, from which an adapter's forward formula is
 * built. Factors and sums are f32 unless stated otherwise; M stands for all leading dimensions.
 * @example
 * // In a method of one's own; the library makes the tape.
 * forward: (t, { x, w, bias, p }) => t.expand(x, w, t.shrink(x, p.loraA), p.loraB, { bias }),
 */
export class Tape extends StructuredTape {
  readonly #dropout: TapeDropout;
  readonly #compute: ComputePrecision;
  /** How many steps of this pass have drawn a seed. */
  #dropouts = 0;

  /** @throws ERR_TYPE */
  constructor(options?: TapeOptions) {
    const op = 'Tape';
    const {
      recording = true,
      dropout = {},
      compute = 'exact',
    } = readOptions(op, options, { recording: true, dropout: true, compute: true });
    if (typeof recording !== 'boolean') throw wrongType(op, 'recording', 'a boolean', recording);
    if (typeof dropout !== 'object' || dropout === null) {
      throw wrongType(op, 'dropout', 'an object of seed or mask', dropout);
    }
    super(recording);
    this.#dropout = dropout;
    this.#compute = compute;
  }

  /** @internal The options of a tape that goes on where this one stands, and the number of seeds drawn so far. */
  protected fork(): { readonly options: TapeOptions; readonly dropouts: number } {
    const options = {
      recording: this.recording,
      dropout: this.#dropout,
      compute: this.#compute,
    };
    return { options, dropouts: this.#dropouts };
  }

  /** @internal Draws on from this number of seeds: those before it were drawn by a fork. */
  protected resume(dropouts: number): void {
    this.#dropouts = dropouts;
  }

  /** The mask or the seed of the next dropout of this pass. */
  #nextDraw(): { readonly mask?: Tensor; readonly seed?: number | DeviceSeed } {
    const { seed, mask } = this.#dropout;
    const turn = this.#dropouts++;
    if (mask !== undefined && turn === 0) return { mask };
    return seed === undefined ? {} : { seed: seedOf(seed, turn) };
  }

  /** What the next dropout of this pass needs; each call draws the mask of a {@link DeviceSeed} again, which is not kept. */
  #nextDropout(p: number): (shape: readonly number[], dtype?: DType) => LoraShrinkOptions {
    if (p === 0 || !this.recording) return () => ({});
    const { mask, seed } = this.#nextDraw();
    return (shape, dtype = 'f32') => {
      const dropoutMask = DeviceSeed.is(seed) ? seed.keepMask(shape, p, { dtype }) : mask;
      return {
        dropout: p,
        ...(typeof seed === 'number' ? { seed } : {}),
        ...(dropoutMask === undefined ? {} : { dropoutMask }),
      };
    };
  }

  // Products with the frozen base.

  /** `x · wᵀ + bias` with the frozen base: x [..., K], w [N, K]. */
  linear(x: Value, w: BaseWeight, bias?: Value): Value {
    checkStep('Tape.linear', this, { x, ...(bias === undefined ? {} : { bias }) });
    const y = matmul(x.tensor, w, {
      compute: this.#compute,
      ...(bias === undefined ? {} : { bias: bias.tensor }),
    });
    return this.record(y, bias === undefined ? [x] : [x, bias], [], (dy, pass) => {
      pass.giveBase(x, dy, w);
      if (bias !== undefined && pass.wants(bias)) {
        pass.give(bias, sumProduct(dy, undefined, { axis: 0 }).reshape(bias.shape));
      }
    });
  }

  /**
   * `scaling · dropout(x) · aᵀ` in f32: x [..., K], a [r, K]. Its gradient of x includes the product
   * with the base in the same pass.
   */
  shrink(x: Value, a: Value, options: { scaling?: number; dropout?: number } = {}): Value {
    checkStep('Tape.shrink', this, { x, a });
    const { scaling = 1, dropout = 0 } = readOptions('Tape.shrink', options, {
      scaling: true,
      dropout: true,
    });
    const drops = this.#nextDropout(dropout);
    const { shape, dtype } = x.tensor;
    const h = loraShrink(x.tensor, a.tensor, { ...drops(shape, dtype), scaling });
    return this.record(h, [x, a], [x.tensor, a.tensor], (dh, pass) => {
      const wantsX = pass.wants(x);
      const needs = [wantsX ? 'dx' : '', pass.wants(a) ? 'dLoraA' : ''].filter(
        (name): name is 'dx' | 'dLoraA' => name !== '',
      );
      const base = wantsX ? pass.takeBase(x) : undefined;
      const { dy, w } = base ?? nothing(x.tensor);
      const { dx, dLoraA } = loraShrinkBackward(dy, w, dh, a.tensor, {
        ...drops(shape, dtype),
        x: x.tensor,
        scaling,
        needs,
      });
      if (dx !== undefined) pass.give(x, dx);
      if (dLoraA !== undefined) pass.give(a, dLoraA);
    });
  }

  /** `x · wᵀ + bias + scaling · h · bᵀ` in one pass: w [N, K] frozen, h [..., r] f32, b [N, r]. */
  expand(
    x: Value,
    w: BaseWeight,
    h: Value,
    b: Value,
    options: { scaling?: number; bias?: Value | undefined } = {},
  ): Value {
    const { scaling = 1, bias } = readOptions('Tape.expand', options, {
      scaling: true,
      bias: true,
    });
    checkStep('Tape.expand', this, { x, h, b, ...(bias === undefined ? {} : { bias }) });
    const y = loraExpand(x.tensor, w, h.tensor, b.tensor, {
      scaling,
      compute: this.#compute,
      ...(bias === undefined ? {} : { bias: bias.tensor }),
    });
    return this.#recordExpand(y, x, w, h, b, { scaling, bias });
  }

  /**
   * {@link Tape.expand}, and the norms of the rows of `w + scaling · b · a`, from the same pass over w
   * ({@link loraExpandWithNorms}): for DoRA. The norms are constants in the backward pass.
   * @param kept [N] f32, {@link weightNorms} of w
   */
  expandWithNorms(
    x: Value,
    w: BaseWeight,
    h: Value,
    { a, b, scaling = 1 }: { a: Value; b: Value; scaling?: number },
    kept: Tensor,
  ): { y: Value; norms: Tensor } {
    checkStep('Tape.expandWithNorms', this, { x, h, a, b });
    const factors = { loraA: a.tensor, loraB: b.tensor };
    const made = loraExpandWithNorms(x.tensor, w, h.tensor, factors, {
      scaling,
      compute: this.#compute,
      weightNorms: kept,
    });
    const y = this.#recordExpand(made.y, x, w, h, b, { scaling, bias: undefined });
    return { y, norms: made.norms };
  }

  #recordExpand(
    y: Tensor,
    x: Value,
    w: BaseWeight,
    h: Value,
    b: Value,
    { scaling, bias }: { scaling: number; bias: Value | undefined },
  ): Value {
    const inputs = bias === undefined ? [x, h, b] : [x, h, b, bias];
    return this.record(y, inputs, [h.tensor, b.tensor], (dy, pass) => {
      pass.giveBase(x, dy, w);
      const needs = [
        pass.wants(h) ? 'dh' : '',
        pass.wants(b) ? 'dLoraB' : '',
        bias !== undefined && pass.wants(bias) ? 'dBias' : '',
      ].filter((name): name is 'dh' | 'dLoraB' | 'dBias' => name !== '');
      if (needs.length === 0) return;
      const { dh, dLoraB, dBias } = loraExpandBackward(dy, h.tensor, b.tensor, { scaling, needs });
      if (dh !== undefined) pass.give(h, dh);
      if (dLoraB !== undefined) pass.give(b, dLoraB);
      if (dBias !== undefined && bias !== undefined) pass.give(bias, dBias.reshape(bias.shape));
    });
  }

  /**
   * `x · wᵀ + bias + Σ over the kept e of gates[m, e] · scalingₑ · (dropout(x) · aₑᵀ) · bₑᵀ`: experts of any
   * ranks in one batch ({@link GroupedLora}). A row only costs the experts that `kept` keeps. The step reads
   * `kept` back and so waits for the device; therefore it cannot be captured into a graph.
   * @param gates [..., E] f32
   * @param kept [..., E], 0 if an expert is left out; the gradient of its gate is 0
   */
  mixture(
    x: Value,
    w: BaseWeight,
    experts: readonly Expert[],
    gates: Value,
    kept: Tensor,
    options: { bias?: Value | undefined; dropout?: number } = {},
  ): Value {
    const op = 'Tape.mixture';
    const { bias, dropout = 0 } = readOptions(op, options, { bias: true, dropout: true });
    checkStep(op, this, { x, gates, ...(bias === undefined ? {} : { bias }) });
    if (!Array.isArray(experts)) throw wrongType(op, 'experts', 'an array of experts', experts);
    if (experts.length === 0) fail('ERR_SHAPE', op, 'experts', 'of length 1 or more', '0');
    for (const [e, { a, b }] of experts.entries()) {
      checkStep(op, this, { [`experts[${e}].a`]: a, [`experts[${e}].b`]: b });
    }
    const { seed, dropoutMask } = this.#nextDropout(dropout)(x.shape);
    return mixture(
      this,
      { x, w, bias, experts, gates, kept, dropout },
      {
        compute: this.#compute,
        ...(seed === undefined ? {} : { seed }),
        ...(dropoutMask === undefined ? {} : { dropoutMask }),
      },
    );
  }

  // Products of small matrices.

  /** `x · wᵀ`: x [..., K], w [N, K], with gradients for both. */
  matmul(x: Value, w: Value): Value {
    checkStep('Tape.matmul', this, { x, w });
    const y = matmul(x.tensor, w.tensor);
    return this.record(y, [x, w], [x.tensor, w.tensor], (dy, pass) => {
      if (pass.wants(x)) pass.give(x, matmulInputGrad(dy, w.tensor));
      if (pass.wants(w)) pass.give(w, weightGrad(dy, x.tensor));
    });
  }

  /** `x · w`: x [..., N], w [N, K]. */
  product(x: Value, w: Value): Value {
    checkStep('Tape.product', this, { x, w });
    const y = matmulInputGrad(x.tensor, w.tensor);
    return this.record(y, [x, w], [x.tensor, w.tensor], (dy, pass) => {
      if (pass.wants(x)) pass.give(x, matmul(dy, w.tensor));
      if (pass.wants(w)) pass.give(w, weightGrad(x.tensor, dy));
    });
  }

  /** `aᵀ · b`: a [M, N], b [M, K] to [N, K]. */
  transposeProduct(a: Value, b: Value): Value {
    checkStep('Tape.transposeProduct', this, { a, b });
    const y = weightGrad(a.tensor, b.tensor);
    return this.record(y, [a, b], [a.tensor, b.tensor], (dy, pass) => {
      if (pass.wants(a)) pass.give(a, matmul(b.tensor, dy));
      if (pass.wants(b)) pass.give(b, matmulInputGrad(a.tensor, dy));
    });
  }

  // Element by element.

  /** `alpha · a ⊙ b`. b has the shape of a, or is a row [N], a column [..., 1] or one value [1]. */
  multiply(a: Value, b: Value, alpha = 1): Value {
    checkStep('Tape.multiply', this, { a, b });
    const y = multiplyAdd({ a: a.tensor, b: b.tensor, alpha });
    return this.record(y, [a, b], [a.tensor, b.tensor], (dy, pass) => {
      if (pass.wants(a)) {
        pass.give(a, multiplyAdd({ a: dy, b: b.tensor, alpha, dtype: a.tensor.dtype }));
      }
      if (pass.wants(b)) pass.give(b, foldTo(b.tensor, a.tensor, dy, a.tensor, alpha));
    });
  }

  /** `alpha · a + beta · b` with the shape and dtype of a; b as in {@link Tape.multiply}. */
  add(a: Value, b: Value, alpha = 1, beta = 1): Value {
    checkStep('Tape.add', this, { a, b });
    const y = multiplyAdd({ a: a.tensor, c: b.tensor, alpha, beta });
    return this.record(y, [a, b], [], (dy, pass) => {
      if (pass.wants(a)) pass.give(a, alpha === 1 ? dy : multiplyAdd({ a: dy, alpha }));
      if (pass.wants(b)) {
        const same = beta === 1 && b.tensor.size === a.tensor.size;
        pass.give(b, same ? dy.reshape(b.shape) : foldTo(b.tensor, a.tensor, dy, undefined, beta));
      }
    });
  }

  /** `alpha · a + beta` */
  affine(a: Value, alpha: number, beta = 0): Value {
    checkStep('Tape.affine', this, { a });
    const { device } = a.tensor;
    const y = multiplyAdd({
      a: a.tensor,
      alpha,
      ...(beta === 0 ? {} : { c: full([1], beta, { device }) }),
    });
    return this.record(y, [a], [], (dy, pass) => pass.give(a, multiplyAdd({ a: dy, alpha })));
  }

  /** `f(a)`, element by element. */
  map(a: Value, kind: MapKind): Value {
    checkStep('Tape.map', this, { a });
    const y = mapTensor(a.tensor, kind);
    return this.record(y, [a], [a.tensor, y], (dy, pass) =>
      pass.give(a, multiplyAdd({ a: dy, b: DERIVATIVES[kind](a.tensor, y) })),
    );
  }

  /** Sums over rows (axis 0, gives [N]) or over the last dimension (axis 1, gives [M, 1]), in f32. */
  sum(a: Value, axis: 0 | 1): Value {
    checkStep('Tape.sum', this, { a });
    const flat = sumProduct(a.tensor, undefined, { axis });
    const y = axis === 0 ? flat : flat.reshape([flat.size, 1]);
    const ones = Tensor.zeros(a.shape, { device: a.tensor.device });
    return this.record(y, [a], [ones], (dy, pass) =>
      pass.give(a, multiplyAdd({ a: ones, c: dy }).reshape(a.shape)),
    );
  }

  /** Drops elements with probability p and scales the others by `1 / (1 - p)`; only while recording. */
  dropout(a: Value, p: number): Value {
    checkStep('Tape.dropout', this, { a });
    checkDropout('dropout', p);
    if (p === 0 || !this.recording) return a;
    const { mask: given, seed } = this.#nextDraw();
    const { shape, device } = a.tensor;
    if (seed === undefined && given === undefined) {
      fail('ERR_VALUE', 'forward', 'seed', 'given, with dropout', 'none');
    }
    const draw = () =>
      DeviceSeed.is(seed)
        ? seed.uniform(shape)
        : Tensor.uniform(shape, { seed: seed as number, device });
    const mask =
      given ?? mapTensor(multiplyAdd({ a: draw(), c: full([1], -p, { device }) }), 'sign');
    const gate = mapTensor(mask, 'relu');
    const alpha = 1 / (1 - p);
    return this.record(multiplyAdd({ a: a.tensor, b: gate, alpha }), [a], [gate], (dy, pass) =>
      pass.give(a, multiplyAdd({ a: dy, b: gate, alpha })),
    );
  }

  /**
   * Values of a normal distribution with mean 0 and standard deviation 1, from the seed of this
   * pass; undefined if it has no seed.
   */
  noise(shape: readonly number[], device: Tensor['device']): Value | undefined {
    const { seed } = this.#dropout;
    if (seed === undefined) return undefined;
    const drawn = seedOf(seed, this.#dropouts++);
    return this.own(
      typeof drawn === 'number' ? Tensor.randn(shape, { seed: drawn, device }) : drawn.randn(shape),
    );
  }

  // Shapes and types.

  /** The same values under another shape. */
  reshape(a: Value, shape: readonly number[]): Value {
    checkStep('Tape.reshape', this, { a });
    return this.record(a.tensor.reshape(shape), [a], [], (dy, pass) =>
      pass.give(a, dy.reshape(a.shape)),
    );
  }

  /** The values in another dtype. */
  cast(a: Value, dtype: DType): Value {
    checkStep('Tape.cast', this, { a });
    if (a.tensor.dtype === dtype) return a;
    return this.record(a.tensor.to({ dtype }), [a], [], (dy, pass) =>
      pass.give(a, dy.to({ dtype: a.tensor.dtype })),
    );
  }
}

/** A base without outputs: the gradient of x is then that of the adapter alone. */
function nothing(x: Tensor): { dy: Tensor; w: Tensor } {
  const { dtype, device } = x;
  const dy = Tensor.zeros([...x.shape.slice(0, -1), 0], { dtype, device });
  return { dy, w: Tensor.zeros([0, lastDim(x)], { dtype, device }) };
}
