/**
 * The random stream of PyTorch's CPU generator, to draw seeded projections and index sets again
 * that a checkpoint leaves out.
 *
 * mt19937 (Matsumoto and Nishimura, Mersenne Twister, 1998) and, on top of it, the draws that
 * PyTorch documents and tests. The golden cases of test/golden/rng are its values.
 */
import { checkDims, checkFinite, checkInteger, newArray } from '../../core/validate.js';

const N = 624;
const M = 397;
/** From this many values on, normal draws are made sixteen at a time. */
const NORMAL_RUN = 16;

/** Number of values in a shape. @throws ERR_TYPE, ERR_SHAPE */
function product(op: string, shape: unknown): number {
  return checkDims(`TorchRandom.${op}`, shape).reduce((size, dim) => size * dim, 1);
}

/** Values that are drawn one by one. @throws ERR_OOM */
function filled<A extends Float32Array | Int32Array | Uint8Array>(
  op: string,
  type: new (length: number) => A,
  length: number,
  draw: () => number,
): A {
  const values = newArray(`TorchRandom.${op}`, type, length);
  for (let i = 0; i < length; i++) values[i] = draw();
  return values;
}

const kFloat = new Float32Array(1);
const kBits = new Uint32Array(kFloat.buffer);

/** The bfloat16 nearest to a finite value; ties to even. */
export function roundToBf16(value: number): number {
  kFloat[0] = value;
  const bits = kBits[0] as number;
  kBits[0] = bits + 0x7fff + ((bits >>> 16) & 1);
  kBits[0] &= 0xffff0000;
  return kFloat[0] as number;
}

/**
 * A generator like `torch.Generator().manual_seed(seed)` on the CPU.
 * @example
 * const indexes = new TorchRandom(777).permutation(N * K).subarray(0, n); // torch.randperm
 */
export class TorchRandom {
  readonly #state = new Uint32Array(N);
  #next = N;
  /** The second value of a pair of normal draws. */
  #spare: number | undefined;

  /**
   * @param seed integer from 0 to 2^53 − 1; the generator takes its lower 32 bits
   * @throws ERR_TYPE, ERR_VALUE
   */
  constructor(seed: number) {
    const state = this.#state;
    state[0] = checkInteger('TorchRandom', 'seed', seed, 0, 2 ** 53 - 1) % 2 ** 32;
    for (let i = 1; i < N; i++) {
      const before = state[i - 1] as number;
      state[i] = Math.imul(1812433253, before ^ (before >>> 30)) + i;
    }
  }

  #twist(): void {
    const state = this.#state;
    for (let i = 0; i < N; i++) {
      const high = (state[i] as number) & 0x80000000;
      const y = high | ((state[(i + 1) % N] as number) & 0x7fffffff);
      const odd = (y & 1) === 0 ? 0 : 0x9908b0df;
      state[i] = (state[(i + M) % N] as number) ^ (y >>> 1) ^ odd;
    }
    this.#next = 0;
  }

  /** 32 bits. */
  bits(): number {
    if (this.#next >= N) this.#twist();
    let y = this.#state[this.#next++] as number;
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    y ^= y >>> 18;
    return y >>> 0;
  }

  /** 24 random bits as a value in [0, 1). */
  #unit(): number {
    return (this.bits() % 2 ** 24) / 2 ** 24;
  }

  /** 53 random bits as a value in [0, 1): `torch.rand` of float64. */
  double(): number {
    const high = this.bits();
    return ((high % 2 ** 21) * 2 ** 32 + this.bits()) / 2 ** 53;
  }

  /** `torch.rand` or `uniform_(low, high)` of float32. @throws ERR_TYPE, ERR_VALUE, ERR_SHAPE, ERR_OOM */
  uniform(shape: readonly number[], low = 0, high = 1): Float32Array {
    const op = 'TorchRandom.uniform';
    const from = Math.fround(checkFinite(op, 'low', low));
    const range = Math.fround(Math.fround(checkFinite(op, 'high', high)) - from);
    const size = product('uniform', shape);
    return filled('uniform', Float32Array, size, () => this.#unit() * range + from);
  }

  /** `uniform_(low, high)` of bfloat16, which uses fewer random bits. */
  #uniformBf16(shape: readonly number[], low: number, high: number): Float32Array {
    const [from, to] = [roundToBf16(low), roundToBf16(high)];
    const range = roundToBf16(to - from);
    const op = 'kaimingUniform';
    return filled(op, Float32Array, product(op, shape), () => {
      return roundToBf16(((this.bits() % 2 ** 8) / 2 ** 8) * range + from);
    });
  }

  /**
   * `torch.nn.init.kaiming_uniform_(a)`; the fan-in is the product of all sizes but the first.
   * @param dtype of the drawn tensor; default `f32`
   * @throws ERR_TYPE, ERR_VALUE, ERR_SHAPE, ERR_OOM
   */
  kaimingUniform(shape: readonly number[], a: number, dtype: 'f32' | 'bf16' = 'f32'): Float32Array {
    const op = 'TorchRandom.kaimingUniform';
    const inputs = checkDims(op, shape).slice(1);
    checkFinite(op, 'a', a);
    const bound = Math.sqrt(6 / ((1 + a * a) * product('kaimingUniform', inputs)));
    if (dtype === 'bf16') return this.#uniformBf16(shape, -bound, bound);
    return this.uniform(shape, -bound, bound);
  }

  /** `torch.randn` or `normal_(mean, std)` of float32. @throws ERR_TYPE, ERR_VALUE, ERR_SHAPE, ERR_OOM */
  normal(shape: readonly number[], mean = 0, std = 1): Float32Array {
    const size = product('normal', shape);
    checkFinite('TorchRandom.normal', 'mean', mean);
    checkFinite('TorchRandom.normal', 'std', std);
    if (size < NORMAL_RUN) {
      return filled('normal', Float32Array, size, () => this.#normalDouble() * std + mean);
    }
    const values = this.uniform([size]);
    for (let at = 0; at + NORMAL_RUN <= size; at += NORMAL_RUN) {
      toNormal(values.subarray(at, at + NORMAL_RUN), mean, std);
    }
    if (size % NORMAL_RUN !== 0) {
      // An incomplete run is drawn again, together with the values before it.
      const last = values.subarray(size - NORMAL_RUN);
      last.set(this.uniform([NORMAL_RUN]));
      toNormal(last, mean, std);
    }
    return values;
  }

  #normalDouble(): number {
    const spare = this.#spare;
    this.#spare = undefined;
    if (spare !== undefined) return spare;
    const angle = 2 * Math.PI * this.double();
    const radius = Math.sqrt(-2 * Math.log1p(-this.double()));
    this.#spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }

  /**
   * `torch.randint(low, high)` with fewer than 2^32 possible values. @throws ERR_TYPE, ERR_VALUE,
   * ERR_SHAPE, ERR_OOM
   */
  integers(shape: readonly number[], low: number, high: number): Int32Array {
    const op = 'TorchRandom.integers';
    const from = checkInteger(op, 'low', low, -(2 ** 31), 2 ** 31 - 1);
    const range = checkInteger(op, 'high', high, from + 1, 2 ** 31) - from;
    const size = product('integers', shape);
    return filled('integers', Int32Array, size, () => (this.bits() % range) + from);
  }

  /** `torch.bernoulli` with a float32 probability: ones and zeros. @throws ERR_TYPE, ERR_VALUE, ERR_SHAPE, ERR_OOM */
  bernoulli(shape: readonly number[], p: number): Uint8Array {
    const below = Math.fround(checkFinite('TorchRandom.bernoulli', 'p', p));
    const size = product('bernoulli', shape);
    return filled('bernoulli', Uint8Array, size, () => (this.#unit() < below ? 1 : 0));
  }

  /** `torch.randperm(n)`. @throws ERR_TYPE, ERR_VALUE, ERR_OOM */
  permutation(n: number): Int32Array {
    const size = checkInteger('TorchRandom.permutation', 'n', n, 0, 2 ** 31 - 1);
    let next = 0;
    const order = filled('permutation', Int32Array, size, () => next++);
    for (let i = 0; i < size - 1; i++) {
      const j = i + (this.bits() % (size - i));
      const taken = order[j] as number;
      order[j] = order[i] as number;
      order[i] = taken;
    }
    return order;
  }
}

/** Box and Muller's transform of 16 uniform values in place: 8 radii, 8 angles. */
function toNormal(run: Float32Array, mean: number, std: number): void {
  const half = NORMAL_RUN / 2;
  for (let j = 0; j < half; j++) {
    const radius = Math.sqrt(-2 * Math.log(1 - (run[j] as number)));
    const angle = 2 * Math.PI * (run[j + half] as number);
    run[j] = radius * Math.cos(angle) * std + mean;
    run[j + half] = radius * Math.sin(angle) * std + mean;
  }
}
