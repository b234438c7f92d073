import { RouterMaps, softmax, topKMask } from '../../../autograd/routing.js';
import { TorchRandom } from '../../../checkpoint/random/torch-random.js';
import { checkShape, checkTensor } from '../../../core/check-tensor.js';
import { fail, wrongType } from '../../../core/errors.js';
import { scope } from '../../../core/scope.js';
import { Tensor } from '../../../core/tensor.js';
import { checkInteger, checkSameDevice, readNumbers, readOptions } from '../../../core/validate.js';
import { symmetricEigen } from '../../../linalg/symmetric-eigen.js';
import { FeatureMap } from '../../../ops/feature-map.js';
import { checkLoraAdapter, type LoraAdapter } from '../../../ops/lora/lora-adapter.js';
import { defineAdapter } from '../../definition/method.js';

/** `m · mᵀ` for m [r, n] in float64. */
function gram(m: Float64Array, r: number, n: number): Float64Array {
  const out = new Float64Array(r * r);
  for (let i = 0; i < r; i++) {
    for (let j = i; j < r; j++) {
      let sum = 0;
      for (let k = 0; k < n; k++) sum += (m[i * n + k] as number) * (m[j * n + k] as number);
      out[i * r + j] = sum;
      out[j * r + i] = sum;
    }
  }
  return out;
}

/** `left · m`: left [r, r], m [r, n]. */
function product(left: Float64Array, m: Float64Array, r: number, n: number): Float64Array {
  const out = new Float64Array(r * n);
  for (let i = 0; i < r; i++) {
    for (let j = 0; j < r; j++) {
      const factor = left[i * r + j] as number;
      for (let k = 0; k < n; k++) {
        out[i * n + k] = (out[i * n + k] as number) + factor * (m[j * n + k] as number);
      }
    }
  }
  return out;
}

/**
 * The first right singular vector of `b · a`, for the columns [r, N] of b [N, r], and a [r, K], in
 * float64. With the eigenvectors V and values g of bᵀb, `b · a` has the singular values and right vectors
 * of `s = √g · Vᵀ · a`, [r, K], which come from `s · sᵀ`. If b is zero, the vector is that of a.
 */
function firstRightVector(a: Float64Array, columns: Float64Array, r: number): Float64Array {
  const [K, N] = [a.length / r, columns.length / r];
  const { values, vectors } = symmetricEigen(gram(columns, r, N), r);
  let s = a;
  if ((values[0] as number) > 0) {
    const roots = vectors.map((v, i) => {
      return v * Math.sqrt(Math.max(values[Math.floor(i / r)] as number, 0));
    });
    s = product(roots, a, r, K);
  }
  const first = symmetricEigen(gram(s, r, K), r).vectors.subarray(0, r);
  const v = new Float64Array(K);
  first.forEach((q, i) => {
    for (let k = 0; k < K; k++) v[k] = (v[k] as number) + q * (s[i * K + k] as number);
  });
  // The sign is arbitrary: the largest entry is made positive.
  const largest = v.reduce((best, x) => (Math.abs(x) > Math.abs(best) ? x : best), 0);
  return unit(v, Math.sign(largest));
}

/** `sign · v / |v|`; zero vectors stay. */
function unit(v: Float64Array, sign = 1): Float64Array {
  const length = Math.sqrt(gram(v, 1, v.length)[0] as number);
  return length === 0 ? v : v.map((x) => (sign * x) / length);
}

/** Steps of the iteration `v ← aᵀ·bᵀ·b·a·v`, normalised to length 1, from a start v [K]. */
function iterated(
  a: Float64Array,
  columns: Float64Array,
  r: number,
  { seed, iterations = 15 }: ArrowIteration,
): Float64Array {
  const [K, N] = [a.length / r, columns.length / r];
  const inner = product(gram(columns, r, N), a, r, K);
  let v = unit(Float64Array.from(new TorchRandom(seed).normal([K])));
  for (let step = 0; step < iterations; step++) {
    const next = new Float64Array(K);
    for (let i = 0; i < r; i++) {
      let along = 0;
      for (let k = 0; k < K; k++) along += (inner[i * K + k] as number) * (v[k] as number);
      for (let k = 0; k < K; k++) next[k] = (next[k] as number) + along * (a[i * K + k] as number);
    }
    v = unit(next);
  }
  return v;
}

/** How PEFT approximates a prototype. */
export interface ArrowIteration {
  /** `rng_seed` of PEFT's `arrow_config`: the start of the iteration ({@link TorchRandom}). */
  seed: number;
  /** Number of steps; default 15, as in PEFT. */
  iterations?: number;
}

/**
 * Arrow's prototypes: for every expert, the first right singular vector of its update `loraBₑ · loraAₑ`,
 * the input direction that it changes most; of unit length, with the largest entry positive. It needs only
 * products of rank r, in float64 on the host, for which it reads the factors.
 * @param loraA [Σ ranks, K], the experts' factors stacked
 * @param loraB [N, Σ ranks], side by side
 * @param iteration PEFT's approximations instead of the exact vectors, to reproduce its routing: if two singular
 * values are close, its iteration stops between their vectors
 * @returns [experts, K] f32; for an expert whose loraB is zero, the first right singular vector of
 * loraA
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM; ERR_VALUE for a value that is not
 * finite
 * @example
 * adapter.buffers.prototypes.write(arrowPrototypes(loraA, loraB, [8, 8]).readSync());
 */
export function arrowPrototypes(
  loraA: Tensor,
  loraB: Tensor,
  ranks: readonly number[],
  iteration?: ArrowIteration,
): Tensor {
  const op = 'arrowPrototypes';
  checkTensor(op, 'loraA', loraA);
  checkTensor(op, 'loraB', loraB);
  if (!Array.isArray(ranks)) throw wrongType(op, 'ranks', 'an array of numbers', ranks);
  const [K, N] = [loraA.shape.at(-1) ?? 0, loraB.shape[0] ?? 0];
  const most = loraA.shape[0] ?? 0;
  const own = readNumbers(op, 'ranks', ranks, (name, r) => checkInteger(op, name, r, 1, most));
  const all = own.reduce((sum, r) => sum + r, 0);
  checkShape(op, 'loraA', loraA, [all, K]);
  checkShape(op, 'loraB', loraB, [N, all]);
  checkSameDevice(op, 'loraB', loraB, loraA);
  const steps =
    iteration === undefined
      ? undefined
      : readOptions(op, iteration, { seed: true, iterations: true });
  if (steps !== undefined) {
    checkInteger(op, 'seed', steps.seed, 0, 2 ** 53 - 1);
    checkInteger(op, 'iterations', steps.iterations ?? 15, 0, 2 ** 20);
  }
  const [a, b] = [loraA.readSync(), loraB.readSync()];
  let from = 0;
  const rows = own.map((r) => {
    const begin = from;
    from += r;
    const columns = Float64Array.from({ length: r * N }, (_, i) => {
      return b[(i % N) * all + begin + Math.floor(i / N)] as number;
    });
    const factor = Float64Array.from(a.subarray(begin * K, from * K));
    if (steps !== undefined) return iterated(factor, columns, r, steps as ArrowIteration);
    return firstRightVector(factor, columns, r);
  });
  const values = Float32Array.from(rows.flatMap((row) => [...row]));
  return Tensor.from(values, [own.length, K], { device: loraA.device });
}

/** Options of {@link arrowExperts} besides the experts. */
export interface ArrowOptions {
  /**
   * Adapters of general knowledge: the mean of their factors is subtracted from every expert's
   * before the prototypes are computed (GenKnowSub: Bagherifard et al., ACL 2025). They have the
   * experts' rank.
   */
  general?: readonly LoraAdapter[];
  /** Prototypes as PEFT approximates them, see {@link arrowPrototypes}; default the exact ones. */
  iteration?: ArrowIteration;
}

/** Result of {@link arrowExperts}: the operands of `adapters.arrow.from`. */
export interface ArrowExperts {
  readonly tensors: {
    readonly loraA: Tensor;
    readonly loraB: Tensor;
    readonly prototypes: Tensor;
  };
  readonly settings: {
    readonly inFeatures: number;
    readonly outFeatures: number;
    readonly ranks: readonly number[];
    readonly scalings: readonly number[];
  };
}

/**
 * Uses LoRA adapters of one layer as the experts of Arrow: their factors side by side, and their
 * prototypes. The routing is not trained. The adapters stay unchanged.
 * @throws ERR_TYPE · ERR_VALUE if there are none · ERR_SHAPE for adapters of another layer, or a
 * general adapter of another rank · ERR_UNSUPPORTED for an adapter with loraBias · ERR_DEVICE,
 * ERR_DISPOSED, ERR_OOM
 * @example
 * const { tensors, settings } = arrowExperts([maths, code, law], { general: [english] });
 * const adapter = adapters.arrow.from(tensors, { ...settings, topK: 2 });
 */
export function arrowExperts(
  experts: readonly LoraAdapter[],
  options?: ArrowOptions,
): ArrowExperts {
  const op = 'arrowExperts';
  const { general = [], iteration } = readOptions(op, options, { general: true, iteration: true });
  if (!Array.isArray(experts)) throw wrongType(op, 'experts', 'an array of LoraAdapter', experts);
  if (!Array.isArray(general)) throw wrongType(op, 'general', 'an array of LoraAdapter', general);
  const [first] = experts;
  if (first === undefined) fail('ERR_VALUE', op, 'experts', 'at least one', 'none');
  for (const [name, adapter] of [
    ...experts.map((adapter, i) => [`experts[${i}]`, adapter] as const),
    ...general.map((adapter, i) => [`general[${i}]`, adapter] as const),
  ]) {
    const { loraA, loraB, loraBias } = checkLoraAdapter(op, name, adapter);
    checkTensor(op, `${name}.loraA`, loraA);
    checkTensor(op, `${name}.loraB`, loraB);
    if (loraBias !== undefined) {
      fail('ERR_UNSUPPORTED', op, name, 'without loraBias', 'one with it');
    }
  }
  const [K, N] = [first.loraA.shape[1] as number, first.loraB.shape[0] as number];
  const { device, dtype } = first.loraA;
  const ranks = experts.map(({ r }) => r);
  const check = (name: string, { loraA, loraB }: LoraAdapter, r: number): void => {
    checkShape(op, `${name}.loraA`, loraA, [r, K]);
    checkShape(op, `${name}.loraB`, loraB, [N, r]);
    checkSameDevice(op, name, loraA, first.loraA);
  };
  experts.forEach((adapter, i) => {
    check(`experts[${i}]`, adapter, adapter.r);
    if (general.length > 0) check(`experts[${i}]`, adapter, (general[0] as LoraAdapter).r);
  });
  general.forEach((adapter, i) => {
    check(`general[${i}]`, adapter, first.r);
  });
  const mean = (of: 'loraA' | 'loraB'): Float64Array => {
    const values = general.map((adapter) => adapter[of].readSync());
    return Float64Array.from({ length: values[0]?.length ?? 0 }, (_, i) => {
      return values.reduce((sum, each) => sum + (each[i] as number), 0) / values.length;
    });
  };
  const [meanA, meanB] = [mean('loraA'), mean('loraB')];
  const all = ranks.reduce((sum, r) => sum + r, 0);
  const loraA = new Float32Array(all * K);
  const loraB = new Float32Array(N * all);
  let from = 0;
  for (const expert of experts) {
    const { r } = expert;
    const begin = from;
    expert.loraA.readSync().forEach((v: number, i: number) => {
      loraA[begin * K + i] = v - (meanA[i] ?? 0);
    });
    expert.loraB.readSync().forEach((v: number, i: number) => {
      loraB[Math.floor(i / r) * all + begin + (i % r)] = v - (meanB[i] ?? 0);
    });
    from += r;
  }
  const tensors = scope(() => {
    const a = Tensor.from(loraA, [all, K], { device, dtype });
    const b = Tensor.from(loraB, [N, all], { device, dtype });
    return { loraA: a, loraB: b, prototypes: arrowPrototypes(a, b, ranks, iteration) };
  });
  const scalings = experts.map(({ scaling }) => scaling);
  return { tensors, settings: { inFeatures: K, outFeatures: N, ranks, scalings } };
}

/**
 * Separately trained experts with untrained routing: a token goes to the topK experts whose
 * prototypes ({@link arrowPrototypes}) are most aligned with its input, with either sign (0: to
 * all): `y = x·wᵀ + Σₑ gₑ · scalingₑ · (x · loraAₑᵀ) · loraBₑᵀ`, where `g = softmax` of the topK
 * largest `|x · prototypesᵀ|`, over `temperature`. The gradient of x passes through the gates.
 * Prototypes are constants: after training the experts further, compute new ones.
 * {@link arrowExperts} makes the tensors.
 */
export const arrow = defineAdapter({
  method: 'arrow',
  reference:
    'Ostapenko et al., Towards Modular LLMs by Building and Reusing a Library of LoRAs, 2024, arXiv:2405.11157',
  defaults: {
    ranks: [8, 8, 8, 8] as readonly number[],
    scalings: [2, 2, 2, 2] as readonly number[],
    topK: 3,
    temperature: 1,
  },
  trained: ['loraA', 'loraB'],
  frozen: ['prototypes'],
  mergeable: false,
  check: ({ config: { ranks, scalings, topK, temperature } }) => {
    const E = ranks.length;
    if (scalings.length !== E)
      return ['scalings', `of ${E} values, as ranks`, `${scalings.length}`];
    if (!(Number.isInteger(topK) && topK >= 0 && topK <= E))
      return ['topK', `an integer from 0 to ${E}`, String(topK)];
    if (!(temperature > 0)) return ['temperature', 'above 0', String(temperature)];
    return undefined;
  },
  shapes: ({ N, K, config: { ranks } }) => {
    const all = ranks.reduce((sum, r) => sum + r, 0);
    return { loraA: [all, K], loraB: [N, all], prototypes: [ranks.length, K] };
  },
  init: (make) => {
    const loraA = make.kaiming('loraA');
    const loraB = make.zeros('loraB');
    return { loraA, loraB, prototypes: arrowPrototypes(loraA, loraB, make.config.ranks) };
  },
  prepare: ({ device, config: { ranks, scalings } }) => {
    const expertOf = ranks.flatMap((r, e) => Array.from({ length: r }, () => e));
    const scales = Float32Array.from(expertOf, (e) => scalings[e] as number);
    return {
      maps: new RouterMaps(ranks.length, device),
      ranks: FeatureMap.gather(Int32Array.from(expertOf), ranks.length, { device }),
      scales: Tensor.from(scales, [scales.length], { device }),
    };
  },
  forward: (t, { x, w, bias, p, config: { topK, temperature }, state }) => {
    const similarity = t.map(t.shrink(x, p.prototypes), 'abs');
    const mask = topK === 0 ? undefined : topKMask(similarity.tensor, topK, state.maps);
    const gates = softmax(t, t.affine(similarity, 1 / temperature), state.maps, mask);
    const scales = t.multiply(t.features(gates, state.ranks), t.constant(state.scales));
    return t.expand(x, w, t.multiply(t.shrink(x, p.loraA), scales), p.loraB, { bias });
  },
});
