/** Philox4x32-10 (Salmon et al., SC 2011) and the dropout gate drawn from it. */
import { type Matrix, matrix } from './linear.js';

/** High and low 32 bits of a · b for unsigned 32-bit numbers, exactly: by digits of 16 bits. */
function multiply(a: number, b: number): [high: number, low: number] {
  const [a1, a0] = [Math.floor(a / 65536), a % 65536];
  const [b1, b0] = [Math.floor(b / 65536), b % 65536];
  const units = a0 * b0;
  const middle = a1 * b0 + a0 * b1 + Math.floor(units / 65536);
  return [a1 * b1 + Math.floor(middle / 65536), (middle % 65536) * 65536 + (units % 65536)];
}

export type Words4 = readonly [number, number, number, number];

export function philox4x32(counter: Words4, key: readonly [number, number]): Words4 {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < 10; round++) {
    const [high0, low0] = multiply(0xd2511f53, c0);
    const [high1, low1] = multiply(0xcd9e8d57, c2);
    [c0, c1, c2, c3] = [(high1 ^ c1 ^ k0) >>> 0, low1, (high0 ^ c3 ^ k1) >>> 0, low0];
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return [c0, c1, c2, c3];
}

export const DROPOUT_STREAM = 1;

/** The draw for element `index` of a stream under a seed. */
export function philoxDraw(seed: number, index: number, stream: number): number {
  const group = Math.floor(index / 4);
  const words = philox4x32(
    [group >>> 0, Math.floor(group / 2 ** 32), 0, stream],
    [seed >>> 0, Math.floor(seed / 2 ** 32)],
  );
  return words[(index % 4) as 0 | 1 | 2 | 3];
}

/** Is element `index` = m · K + k kept under dropout probability p? */
export function dropoutKeeps(seed: number, index: number, p: number): boolean {
  return philoxDraw(seed, index, DROPOUT_STREAM) >= Math.round(p * 2 ** 32);
}

/** [M, K] of 0 (dropped) and 1 (kept). */
export function dropoutMask64(seed: number, p: number, rows: number, cols: number): Matrix {
  const mask = matrix(rows, cols);
  for (let index = 0; index < mask.data.length; index += 4) {
    const group = index / 4;
    const words = philox4x32(
      [group >>> 0, Math.floor(group / 2 ** 32), 0, DROPOUT_STREAM],
      [seed >>> 0, Math.floor(seed / 2 ** 32)],
    );
    for (let lane = 0; lane < 4 && index + lane < mask.data.length; lane++) {
      const kept = (words[lane as 0 | 1 | 2 | 3] as number) >= Math.round(p * 2 ** 32);
      mask.data[index + lane] = kept ? 1 : 0;
    }
  }
  return mask;
}

/** 0 where dropped, 1 / (1 - p) where kept. */
export function gateOf(mask: Matrix, p: number): Matrix {
  return { ...mask, data: mask.data.map((kept) => (kept === 0 ? 0 : 1 / (1 - p))) };
}
