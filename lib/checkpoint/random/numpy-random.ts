/**
 * The random stream of NumPy's default generator, to draw index tables again that a checkpoint leaves out.
 *
 * PCG64 (O'Neill, PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms for Random Number
 * Generation, 2014: a linear congruential generator of 128 bits, XSL-RR), seeded by SeedSequence, with bounded integers by
 * Lemire's method (arXiv:1805.10941), choices by Floyd's and permutations by Fisher and Yates', as NumPy has documented
 * since 1.17.
 */
import { fail, wrongType } from '../../core/errors.js';
import { checkInteger } from '../../core/validate.js';

/** 128 bits as eight 16-bit words, lowest first: products of words are exact in a double. */
type Words = Float64Array;
const kWords = 8;

/** 0x2360ed051fc65da44385df649fccf645 */
const kMultiplier: readonly number[] = [
  0xf645, 0x9fcc, 0xdf64, 0x4385, 0x5da4, 0x1fc6, 0xed05, 0x2360,
];

/** Number of words in the pool into which SeedSequence mixes a seed. */
const kPool = 4;

/** `n` words of 32 bits from a seed: SeedSequence(seed).generate_state(n). */
function seedWords(seed: number, n: number): Uint32Array {
  let hash = 0x43b0d7e5;
  const mixed = (value: number): number => {
    const before = value ^ hash;
    hash = Math.imul(hash, 0x931e8875);
    const after = Math.imul(before, hash);
    return after ^ (after >>> 16);
  };
  const entropy = [seed % 2 ** 32, Math.floor(seed / 2 ** 32)];
  const pool = Int32Array.from({ length: kPool }, (_, i) => mixed(entropy[i] ?? 0));
  for (let from = 0; from < kPool; from++) {
    for (let to = 0; to < kPool; to++) {
      if (to === from) continue;
      const other = mixed(pool[from] as number);
      const sum = Math.imul(0xca01f9dd, pool[to] as number) - Math.imul(0x4973f715, other);
      pool[to] = sum ^ ((sum | 0) >>> 16);
    }
  }
  hash = 0x8b51f9dd;
  return Uint32Array.from({ length: n }, (_, i) => {
    const before = (pool[i % kPool] as number) ^ hash;
    hash = Math.imul(hash, 0x58f38ded);
    const after = Math.imul(before, hash);
    return after ^ (after >>> 16);
  });
}

/** Four 32-bit words: two 64-bit numbers, the high one first, each with its low word first. */
function wordsOf(parts: Uint32Array): Words {
  const [high0 = 0, high1 = 0, low0 = 0, low1 = 0] = parts;
  return Float64Array.from([low0, low1, high0, high1].flatMap((w) => [w & 0xffff, w >>> 16]));
}

/**
 * A generator like `numpy.random.default_rng(seed)`.
 * @example
 * const order = new NumpyRandom(42).shuffle(Int32Array.from([0, 1, 2, 3]));
 */
export class NumpyRandom {
  readonly #state: Words = new Float64Array(kWords);
  readonly #increment: Words;
  /** The high half of a 64-bit draw whose low half has been returned. */
  #half: number | undefined;
  #high = 0;
  #low = 0;

  /**
   * @param seed integer from 0 to 2^53 − 1
   * @throws ERR_TYPE, ERR_VALUE
   */
  constructor(seed: number) {
    const words = seedWords(checkInteger('NumpyRandom', 'seed', seed, 0, 2 ** 53 - 1), 2 * kPool);
    const sequence = wordsOf(words.subarray(kPool));
    // Twice the sequence, plus one.
    this.#increment = sequence.map((word, i) => {
      const carried = i === 0 ? 1 : (sequence[i - 1] as number) >>> 15;
      return ((word << 1) & 0xffff) | carried;
    });
    this.#step();
    this.#add(wordsOf(words.subarray(0, kPool)));
    this.#step();
  }

  #add(other: Words): void {
    let carry = 0;
    for (let i = 0; i < kWords; i++) {
      const sum = (this.#state[i] as number) + (other[i] as number) + carry;
      this.#state[i] = sum % 0x10000;
      carry = Math.floor(sum / 0x10000);
    }
  }

  /** state ← state · multiplier + increment */
  #step(): void {
    const state = this.#state;
    let carry = 0;
    // From the top, because a word of the product needs the state's words up to its own.
    const sums = new Float64Array(kWords);
    for (let i = 0; i < kWords; i++) {
      let sum = this.#increment[i] as number;
      for (let j = 0; j <= i; j++) sum += (state[j] as number) * (kMultiplier[i - j] as number);
      sums[i] = sum;
    }
    for (let i = 0; i < kWords; i++) {
      const sum = (sums[i] as number) + carry;
      state[i] = sum % 0x10000;
      carry = Math.floor(sum / 0x10000);
    }
  }

  /** The next 64 bits, into high and low: the XOR of both halves of the state, rotated by its top six bits. */
  #draw(): void {
    this.#step();
    const [w0 = 0, w1 = 0, w2 = 0, w3 = 0, w4 = 0, w5 = 0, w6 = 0, w7 = 0] = this.#state;
    let high = (((w7 << 16) | w6) ^ ((w3 << 16) | w2)) >>> 0;
    let low = (((w5 << 16) | w4) ^ ((w1 << 16) | w0)) >>> 0;
    const turn = w7 >>> 10;
    if (turn >= 32) [high, low] = [low, high];
    const by = turn % 32;
    if (by > 0) {
      const turned = ((high >>> by) | (low << (32 - by))) >>> 0;
      low = ((low >>> by) | (high << (32 - by))) >>> 0;
      high = turned;
    }
    this.#high = high;
    this.#low = low;
  }

  /** 32 bits: the halves of a draw, low half first. */
  bits(): number {
    const half = this.#half;
    if (half !== undefined) {
      this.#half = undefined;
      return half;
    }
    this.#draw();
    this.#half = this.#high;
    return this.#low;
  }

  /** A uniform integer from 0 to `last`, which is below 2^32 − 1. @throws ERR_TYPE, ERR_VALUE */
  upTo(last: number): number {
    return this.#upTo(checkInteger('NumpyRandom.upTo', 'last', last, 0, 2 ** 32 - 2));
  }

  #upTo(last: number): number {
    if (last === 0) return 0;
    const count = last + 1;
    // bits · count in two parts: the bits above 32, and those below.
    const product = (): readonly [number, number] => {
      const bits = this.bits();
      const low = (bits % 0x10000) * count;
      const high = Math.floor(bits / 0x10000) * count + Math.floor(low / 0x10000);
      return [Math.floor(high / 0x10000), (high % 0x10000) * 0x10000 + (low % 0x10000)];
    };
    let [value, rest] = product();
    if (rest < count) {
      const threshold = (0xffffffff - last) % count;
      while (rest < threshold) [value, rest] = product();
    }
    return value;
  }

  /** From 0 to `last`: the first masked value that is not larger. */
  #masked(last: number): number {
    const mask = 2 ** Math.ceil(Math.log2(last + 1)) - 1;
    for (;;) {
      const value = (this.bits() & mask) >>> 0;
      if (value <= last) return value;
    }
  }

  /** Swaps each element from the last down to `first` with one at or before it. */
  #exchange(values: Int32Array, first: number, draw: (last: number) => number): void {
    for (let i = values.length - 1; i >= first; i--) {
      const j = draw(i);
      const value = values[j] as number;
      values[j] = values[i] as number;
      values[i] = value;
    }
  }

  /** `Generator.shuffle` of integers, in place; also returns them. @throws ERR_TYPE */
  shuffle(values: Int32Array): Int32Array {
    if (!(values instanceof Int32Array)) {
      throw wrongType('NumpyRandom.shuffle', 'values', 'an Int32Array', values);
    }
    this.#exchange(values, 1, (last) => this.#masked(last));
    return values;
  }

  /** `Generator.choice(n, size, replace=False)`: distinct integers below n. @throws ERR_TYPE, ERR_VALUE */
  choice(n: number, size: number): Int32Array {
    const op = 'NumpyRandom.choice';
    const count = checkInteger(op, 'n', n, 0, 2 ** 31 - 1);
    const wanted = checkInteger(op, 'size', size, 0, 2 ** 31 - 1);
    if (wanted > count) fail('ERR_VALUE', op, 'size', `at most n (${count})`, String(wanted));
    const draw = (last: number) => this.#upTo(last);
    if (count > 10_000 && wanted > Math.floor(count / 50)) {
      const all = Int32Array.from({ length: count }, (_, i) => i);
      this.#exchange(all, Math.max(count - wanted, 1), draw);
      return all.slice(count - wanted);
    }
    const taken = new Set<number>();
    const chosen = Int32Array.from({ length: wanted }, (_, i) => {
      const last = count - wanted + i;
      const value = this.#upTo(last);
      const own = taken.has(value) ? last : value;
      taken.add(own);
      return own;
    });
    this.#exchange(chosen, 1, draw);
    return chosen;
  }
}
