// The dropout mask: the oracle's Philox draws, the same forward and backward and on every device,
// and what its statistics should be.
import { describe, expect, it } from 'vitest';
import {
  type Device,
  LoraAdapter,
  type LoraForwardOptions,
  loraBackward,
  loraForward,
  scope,
  Tensor,
} from '../../lib/index.js';
import { dropoutMask64, exact, gateOf, matrix } from '../oracle.js';
import { DEVICES, tensorOf } from './operands.js';

function identity(size: number): Float32Array {
  const values = new Float32Array(size * size);
  for (let i = 0; i < size; i++) values[i * (size + 1)] = 1;
  return values;
}

interface Gates {
  /** gate as the forward pass applied it to x, [M, K] */
  readonly forward: Float32Array;
  /** gate as the backward pass applied it to dx, [M, K] */
  readonly dx: Float32Array;
  /** Σₘ gate, as the backward pass applied it to x in dLoraA, [K] */
  readonly dLoraA: Float32Array;
}

/**
 * With x of ones and loraA the identity, h = gate ⊙ x is the gate itself; with w of zeros and dh of
 * ones, so is dx; and each row of dLoraA is its column sum.
 */
async function gates(
  M: number,
  K: number,
  dropout: number,
  device: Device,
  options: LoraForwardOptions,
): Promise<Gates> {
  return scope(async () => {
    const ones = (rows: number, cols: number): Tensor =>
      Tensor.from(new Float32Array(rows * cols).fill(1), [rows, cols], { device });
    const adapter = new LoraAdapter({
      loraA: Tensor.from(identity(K), [K, K], { device }),
      loraB: ones(1, K),
      loraAlpha: K,
      dropout,
    });
    const w = Tensor.zeros([1, K], { device });
    const { saved } = loraForward(ones(M, K), w, adapter, options);
    const forward = await (saved.h as Tensor).read();
    const back = loraBackward(ones(M, 1), saved);
    const dx = await (back.dx as Tensor).read();
    const dLoraA = (await (back.dLoraA as Tensor).read()).slice(0, K);
    return { forward, dx, dLoraA };
  });
}

const f32Gate = (seed: number, p: number, M: number, K: number): Float32Array =>
  Float32Array.from(gateOf(dropoutMask64(seed, p, M, K), p).data);

describe.each(DEVICES)('dropout on %s', (device) => {
  it.each([
    [1, 0.1, 7, 33],
    [0, 0.5, 1, 1],
    [2 ** 32 + 5, 0.5, 3, 64],
    [2 ** 53 - 1, 0.9, 65, 13],
    [42, 0.05, 17, 172],
    [7, 1 - 2 ** -10, 33, 31],
    [9, 2 ** -12, 33, 31],
  ])('seed %d, p %d, [%i, %i]: the oracle’s mask in every place', async (seed, p, M, K) => {
    const expected = f32Gate(seed, p, M, K);
    const { forward, dx, dLoraA } = await gates(M, K, p, device, { seed });
    exact('forward', forward, expected);
    exact('dx', dx, expected);
    const sums = Float64Array.from({ length: K }, (_, k) => {
      let sum = 0;
      for (let m = 0; m < M; m++) sum += expected[m * K + k] as number;
      return sum;
    });
    dLoraA.forEach((value, k) => {
      expect(Math.abs(value - (sums[k] as number))).toBeLessThanOrEqual(1e-5 * (sums[k] as number));
    });
  });

  it('a given mask replaces the draws: zero drops, anything else keeps', async () => {
    const kept = matrix(
      3,
      8,
      Array.from({ length: 24 }, (_, i) => [0, 1, 2, -0.5][i % 4] as number),
    );
    const expected = Float32Array.from(kept.data, (value) => (value === 0 ? 0 : 1 / (1 - 0.2)));
    for (const dtype of ['f32', 'bf16', 'f16'] as const) {
      const dropoutMask = tensorOf(kept, { dtype, device });
      const { forward, dx } = await gates(3, 8, 0.2, device, { dropoutMask });
      exact(`forward ${dtype}`, forward, expected);
      exact(`dx ${dtype}`, dx, expected);
      dropoutMask.dispose();
    }
  });

  it('off without training, and at p = 0 whatever the seed', async () => {
    const ones = new Float32Array(40).fill(1);
    exact('p = 0', (await gates(5, 8, 0, device, { seed: 3 })).forward, ones);
    await scope(async () => {
      const x = Tensor.randn([5, 8], { seed: 1, device });
      const w = Tensor.randn([3, 8], { seed: 2, device });
      const parts = {
        loraA: Tensor.randn([2, 8], { seed: 3, device }),
        loraB: Tensor.randn([3, 2], { seed: 4, device }),
        loraAlpha: 4,
      };
      const dropping = new LoraAdapter({ ...parts, dropout: 0.5 });
      const still = loraForward(x, w, dropping, { training: false }).y;
      const never = loraForward(x, w, new LoraAdapter(parts)).y;
      exact('y', await still.read(), await never.read());
      const dropped = await loraForward(x, w, dropping, { seed: 1 }).y.read();
      expect(dropped).not.toEqual(await never.read());
    });
  });

  it('64 seeds: kept shares, lanes, rows, columns and neighbours within z = 5', async () => {
    const [M, K, p] = [64, 64, 0.3];
    const count = M * K;
    const rowKept = new Float64Array(M);
    const columnKept = new Float64Array(K);
    const laneKept = new Float64Array(4);
    const seedKept: number[] = [];
    let pairs = 0;
    let gateSum = 0;
    for (let seed = 0; seed < 64; seed++) {
      const { forward } = await gates(M, K, p, device, { seed });
      let kept = 0;
      forward.forEach((gate, i) => {
        const one = gate === 0 ? 0 : 1;
        kept += one;
        gateSum += gate;
        rowKept[Math.floor(i / K)] = (rowKept[Math.floor(i / K)] as number) + one;
        columnKept[i % K] = (columnKept[i % K] as number) + one;
        laneKept[i % 4] = (laneKept[i % 4] as number) + one;
        if (i > 0 && one === 1 && forward[i - 1] !== 0) pairs += 1;
      });
      seedKept.push(kept);
    }
    const keep = 1 - p;
    const z = (kept: number, draws: number): number =>
      Math.abs(kept - draws * keep) / Math.sqrt(draws * keep * p);
    for (const kept of seedKept) expect(z(kept, count)).toBeLessThan(5);
    for (const kept of rowKept) expect(z(kept, 64 * K)).toBeLessThan(5);
    for (const kept of columnKept) expect(z(kept, 64 * M)).toBeLessThan(5);
    for (const kept of laneKept) expect(z(kept, (64 * count) / 4)).toBeLessThan(5);
    // Spread over columns: a chi-square with K degrees of freedom, as a normal deviate.
    const chi = columnKept.reduce((sum, kept) => sum + z(kept, 64 * M) ** 2, 0);
    expect(Math.abs(chi - K) / Math.sqrt(2 * K)).toBeLessThan(5);
    // Neighbours are kept together as often as independent ones would be.
    const both = keep * keep;
    const variance = both * (1 - both) + 2 * (keep ** 3 - both * both);
    const draws = 64 * (count - 1);
    expect(Math.abs(pairs - draws * both) / Math.sqrt(draws * variance)).toBeLessThan(5);
    // E[gate] = 1: the adapter sees x on average.
    const spread = Math.sqrt(p / keep / (64 * count));
    expect(Math.abs(gateSum / (64 * count) - 1) / spread).toBeLessThan(5);
  });
});

describe('dropout across devices', () => {
  it('the same mask everywhere', async () => {
    const all = await Promise.all(
      DEVICES.map((device) => gates(31, 45, 0.4, device, { seed: 77 })),
    );
    for (const other of all.slice(1)) {
      exact('forward', other.forward, (all[0] as Gates).forward);
      exact('dx', other.dx, (all[0] as Gates).dx);
    }
    expect(all.length).toBeGreaterThanOrEqual(2);
  });
});
