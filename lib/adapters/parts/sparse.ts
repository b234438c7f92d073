import { SparsePattern } from '../../autograd/sparse-update.js';
import { TorchRandom } from '../../checkpoint/random/torch-random.js';
import type { AdapterMaker } from '../definition/maker.js';

/** The pattern of entries whose positions in the flattened weight are given, row by row. */
export function patternOfEntries(
  { N, K, device }: AdapterMaker<object>,
  entries: Int32Array,
): SparsePattern {
  const rows = entries.map((entry) => Math.floor(entry / K));
  const columns = entries.map((entry) => entry % K);
  return new SparsePattern({ rows, columns, N, K, device });
}

/** Draws distinct positions among N · K as PyTorch does: the beginning of a random permutation. */
export function randomEntries(N: number, K: number, count: number, seed: number): Int32Array {
  return new TorchRandom(seed).permutation(N * K).slice(0, count);
}

/**
 * A random table of `count` numbers below `length`, each equally often (some randomly chosen ones once
 * more).
 */
export function balanced(count: number, length: number, seed: number): Int32Array {
  const random = new TorchRandom(seed);
  const whole = Math.floor(count / length);
  const extra = random.permutation(length).slice(0, count % length);
  const table = new Int32Array(count);
  for (let i = 0; i < whole * length; i++) table[i] = i % length;
  table.set(extra, whole * length);
  return random.permutation(count).map((i) => table[i] as number);
}
