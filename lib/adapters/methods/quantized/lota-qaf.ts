import { denseUpdate } from '../../../autograd/dense-update.js';
import type { Value } from '../../../autograd/gradient-tape.js';
import type { Tape } from '../../../autograd/tape.js';
import { fail } from '../../../core/errors.js';
import { full } from '../../../core/full.js';
import { scope } from '../../../core/scope.js';
import { Tensor } from '../../../core/tensor.js';
import type { BaseWeight } from '../../../ops/base-weight.js';
import { denseRows, rowStep } from '../../../ops/dense-rows.js';
import { mapTensor, multiplyAdd } from '../../../ops/elementwise.js';
import { matmulInputGrad } from '../../../ops/matmul.js';
import { type CodeSteps, codeStepsOf, withCodes } from '../../../quant/code-steps.js';
import { QuantizedWeight } from '../../../quant/quantized-weight.js';
import { defineAdapter } from '../../definition/method.js';

/** Codes of a weight without any: those of the ranges of its groups. */
function codesOfRanges(values: Float32Array, groupSize: number, bits: number): CodeSteps {
  const top = 2 ** bits - 1;
  const codes = new Uint8Array(values.length);
  const scales = new Float32Array(values.length / groupSize);
  for (let g = 0; g < scales.length; g++) {
    const group = values.subarray(g * groupSize, (g + 1) * groupSize);
    const least = group.reduce((a, b) => Math.min(a, b), Number.POSITIVE_INFINITY);
    const most = group.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
    const scale = (most - least) / top;
    scales[g] = scale;
    group.forEach((value, i) => {
      codes[g * groupSize + i] = scale === 0 ? 0 : Math.round((value - least) / scale);
    });
  }
  return { codes, top, groupSize, scales };
}

/** The largest divisor of K up to `most`. */
function divisorUpTo(K: number, most: number): number {
  let size = Math.min(K, most);
  while (K % size !== 0) size--;
  return size;
}

/** @throws ERR_UNSUPPORTED for a quantised weight with other grids than groups of rows */
function stepsOf(w: BaseWeight, N: number, most: number, bits: number): CodeSteps {
  const integers =
    QuantizedWeight.is(w) && (w.format === 'planar' || (w.format === 'int4' && !w.doubleQuant));
  if (integers) return codeStepsOf('lota-qaf', w);
  const groupSize = divisorUpTo(w.shape[1] ?? 1, most);
  return scope(() => codesOfRanges(denseRows(w, 0, N).readSync(), groupSize, bits));
}

/**
 * −1, 0 or 1: where a product of ternary factors is beyond ±threshold, and the code can move that way.
 * @param ends 1 where a code is the largest, −1 where it is 0, else 0
 */
function markersOf(product: Tensor, threshold: number, ends: Tensor): Tensor {
  const { device } = product;
  const below = full([1], -threshold, { device });
  const one = full([1], 1, { device });
  const side = (sign: 1 | -1, summand: { c?: Tensor }) => {
    const beyond = mapTensor(
      mapTensor(multiplyAdd({ a: product, alpha: sign, c: below }), 'relu'),
      'sign',
    );
    const atEnd = mapTensor(multiplyAdd({ a: ends, alpha: sign, dtype: 'f32' }), 'relu');
    const free = multiplyAdd({ a: atEnd, alpha: -1, c: one });
    return multiplyAdd({ a: beyond, b: free, alpha: sign, ...summand });
  };
  return side(-1, { c: side(1, {}) });
}

/** The rows of a tile, and what is known of their codes. */
interface TileSteps {
  readonly ends: Tensor;
  readonly scales: Value;
}

/** `scale · (marker + offset)`, [rows, K]. Markers pass gradients straight to the product. */
function updateOf(
  t: Tape,
  product: Value,
  { ends, scales }: TileSteps,
  { threshold, groupSize, share }: { threshold: number; groupSize: number; share: number },
): Value {
  const fixed = markersOf(product.tensor, threshold, ends);
  const markers = t.record(fixed, [product], [], (dy, pass) => pass.give(product, dy));
  const groups = [product.tensor.size / groupSize, groupSize];
  const grouped = (value: Value) => t.reshape(value, groups);
  const rest = t.add(grouped(product), grouped(t.own(fixed.reshape(fixed.shape))), 1, -threshold);
  const offset = t.affine(t.sum(rest, 1), share / groupSize);
  const moved = t.add(grouped(markers), offset);
  return t.reshape(t.multiply(moved, scales), product.shape);
}

/** A part of the paper's offset: the authors' program divides it by the threshold. */
const kOffsets: Readonly<Record<string, (threshold: number) => number>> = {
  program: (threshold) => 1 / threshold,
  paper: () => 1,
  none: () => 0,
};

/**
 * Ternary adaptation: factors of −1, 0 and 1 move the base's integer codes by a step, and its groups by a part of one, so that
 * they merge without loss: with P = loraB · loraA and ω = threshold · r, `Δw = scale · (M + μ)`, where M is the sign of P where |P| > ω
 * and the code is not at that end, and μ the mean of `P − ω · M` over a group (`offset`: divided by ω as in the authors' program,
 * as in the `paper`, or `none`). Gradients pass M straight through. Train it with the optimiser `t-sign-sgd`, which keeps the
 * factors ternary. Over int4, or over planes of integers, `freeze` gives the moved codes; over another base the steps are those of
 * the ranges of groups of up to `groupSize`. A layer keeps two bytes a weight beside its base, which say where codes are at an end.
 */
export const lotaQaf = defineAdapter({
  method: 'lota-qaf',
  reference:
    'Chen et al., LoTA-QAF: Lossless Ternary Adaptation for Quantization-Aware Fine-Tuning, 2025, arXiv:2505.18724',
  defaults: { r: 16, threshold: 0.75, offset: 'program', groupSize: 32, bits: 4 },
  trained: ['loraA', 'loraB'],
  shapes: ({ N, K, config: { r } }) => ({ loraA: [r, K], loraB: [N, r] }),
  check: ({ config: { offset, threshold, groupSize, bits } }) => {
    if (!Object.hasOwn(kOffsets, offset))
      return ['offset', 'program, paper or none', `"${offset}"`];
    if (!(threshold > 0 && threshold <= 1)) return ['threshold', 'in (0, 1]', String(threshold)];
    if (!(Number.isInteger(bits) && bits >= 1 && bits <= 8)) {
      return ['bits', 'an integer from 1 to 8', String(bits)];
    }
    return Number.isInteger(groupSize) && groupSize > 0
      ? undefined
      : ['groupSize', 'a positive integer', String(groupSize)];
  },
  init: (make) => {
    // A third or so of the entries of a normal draw is within 0.75 times its mean size.
    const drawn = make.normal('loraA', 1);
    const values = drawn.readSync();
    const mean = values.reduce((sum, v) => sum + Math.abs(v), 0) / values.length;
    drawn.dispose();
    return {
      loraA: make.values('loraA', (i) => {
        const value = values[i] as number;
        return Math.abs(value) > 0.75 * mean ? Math.sign(value) : 0;
      }),
      loraB: make.zeros('loraB'),
    };
  },
  prepare: (make) => {
    const { N, K, device, config } = make;
    const steps = stepsOf(make.weight('lota-qaf'), N, config.groupSize, config.bits);
    const ends = Float32Array.from(steps.codes, (c) => Number(c === steps.top) - Number(c === 0));
    return {
      groupSize: steps.groupSize,
      ends: Tensor.from(ends, [N, K], { device }).to({ dtype: 'bf16' }),
      scales: Tensor.from(steps.scales, [N, K / steps.groupSize], { device }),
    };
  },
  forward: (t, { x, w, bias, p, N, state, config: { r, threshold: part, offset } }) => {
    const threshold = part * r;
    const share = kOffsets[offset]?.(threshold) as number;
    const { groupSize } = state;
    const update = denseUpdate(t, x, {
      N,
      step: rowStep(w),
      rows: {
        b: p.loraB,
        ends: t.constant(state.ends),
        scales: t.constant(state.scales),
      },
      inputs: { a: p.loraA },
      tile: (tape, { a, b, ends, scales }) => {
        const column = tape.reshape(scales, [scales.tensor.size, 1]);
        const steps = { ends: ends.tensor, scales: column };
        return updateOf(tape, tape.product(b, a), steps, { threshold, groupSize, share });
      },
    });
    const y = t.linear(x, w, bias);
    return t.add(y, update);
  },
  freeze: ({ loraA, loraB }, w, { config: { r, threshold: part, offset } }) => {
    const op = 'lota-qaf.freeze';
    if (!QuantizedWeight.is(w)) {
      fail('ERR_UNSUPPORTED', op, 'w', 'of integers', 'a dense weight');
    }
    const { codes, top, groupSize } = codeStepsOf(op, w);
    const threshold = part * r;
    const share = kOffsets[offset]?.(threshold) as number;
    const product = matmulInputGrad(loraB, loraA).readSync();
    const moved = new Uint8Array(codes.length);
    const shifts = new Float32Array(product.length / groupSize);
    product.forEach((value, i) => {
      const code = codes[i] as number;
      const marker = value > threshold && code < top ? 1 : value < -threshold && code > 0 ? -1 : 0;
      moved[i] = code + marker;
      const g = Math.floor(i / groupSize);
      shifts[g] = (shifts[g] as number) + ((value - threshold * marker) * share) / groupSize;
    });
    return withCodes(op, w, moved, shifts);
  },
});
