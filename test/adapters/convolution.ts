/** A convolution as torch computes it, loop by loop in float64: what tests of adapters compare with. */

export interface Convolution {
  /** Channels of the input. */
  readonly C: number;
  readonly height: number;
  readonly width: number;
  /** Images. */
  readonly B: number;
  readonly kernel: readonly [number, number];
  readonly stride: readonly [number, number];
  readonly padding: readonly [number, number];
}

export const outSizeOf = ({ height, width, kernel, stride, padding }: Convolution) =>
  [
    Math.floor((height + 2 * padding[0] - kernel[0]) / stride[0]) + 1,
    Math.floor((width + 2 * padding[1] - kernel[1]) / stride[1]) + 1,
  ] as const;

/**
 * y [B, N, OH, OW] of x [B, C, H, W] and w [N, C / groups, KH, KW].
 */
export function convolve(
  spec: Convolution,
  x: ArrayLike<number>,
  w: ArrayLike<number>,
  N: number,
  groups = 1,
): Float64Array {
  const { C, height, width, B, kernel, stride, padding } = spec;
  const [OH, OW] = outSizeOf(spec);
  const [kh, kw] = kernel;
  const own = C / groups;
  const y = new Float64Array(B * N * OH * OW);
  for (let at = 0; at < y.length; at++) {
    const [j, i] = [at % OW, Math.floor(at / OW) % OH];
    const [n, image] = [Math.floor(at / (OW * OH)) % N, Math.floor(at / (OW * OH * N))];
    const first = Math.floor(n / (N / groups)) * own;
    let sum = 0;
    for (let c = 0; c < own; c++)
      for (let p = 0; p < kh; p++)
        for (let q = 0; q < kw; q++) {
          const row = i * stride[0] - padding[0] + p;
          const col = j * stride[1] - padding[1] + q;
          if (row < 0 || row >= height || col < 0 || col >= width) continue;
          const value = x[((image * C + first + c) * height + row) * width + col] as number;
          sum += value * (w[((n * own + c) * kh + p) * kw + q] as number);
        }
    y[at] = sum;
  }
  return y;
}
