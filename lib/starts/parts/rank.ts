import { fail } from '../../core/errors.js';

/** @throws ERR_VALUE if a rank is above the sides of a weight [N, K] */
export function requireRank(start: string, r: number, N: number, K: number, times = 1): void {
  const most = Math.floor(Math.min(N, K) / times);
  if (r >= 1 && r <= most) return;
  fail(
    'ERR_VALUE',
    `start ${start}`,
    'r',
    `from 1 to ${most} for a layer of [${N}, ${K}]`,
    String(r),
  );
}
