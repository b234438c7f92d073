/** A convolution as torch computes it, loop by loop in float64: what tests of adapters compare with. */

export interface Convolution {
  /** Channels of the input. */
  readonly C: number;
  /** Of a volume: kernel, stride and padding then have three numbers. */
  readonly depth?: number;
  readonly height: number;
  readonly width: number;
  /** Images. */
  readonly B: number;
  readonly kernel: readonly number[];
  readonly stride: readonly number[];
  readonly padding: readonly number[];
}

type Three = readonly [number, number, number];

/** Depth, height and width of a list that may leave the first out. */
const three = (values: readonly number[], standard: number): Three =>
  [...new Array(3 - values.length).fill(standard), ...values] as unknown as Three;

/** [OD, OH, OW]; OD is 1 of an image. */
export function outSizesOf(spec: Convolution): Three {
  const { depth = 1, height, width } = spec;
  const [kernel, stride, padding] = [
    three(spec.kernel, 1),
    three(spec.stride, 1),
    three(spec.padding, 0),
  ];
  return [depth, height, width].map((size, i) => {
    return (
      Math.floor(
        (size + 2 * (padding[i] as number) - (kernel[i] as number)) / (stride[i] as number),
      ) + 1
    );
  }) as unknown as Three;
}

export const outSizeOf = (spec: Convolution) => outSizesOf(spec).slice(1) as [number, number];

/**
 * y [B, N, OD, OH, OW] of x [B, C, D, H, W] and w [N, C / groups, KD, KH, KW].
 */
export function convolve(
  spec: Convolution,
  x: ArrayLike<number>,
  w: ArrayLike<number>,
  N: number,
  groups = 1,
): Float64Array {
  const { C, depth = 1, height, width, B } = spec;
  const [OD, OH, OW] = outSizesOf(spec);
  const [kd, kh, kw] = three(spec.kernel, 1);
  const [stride, padding] = [three(spec.stride, 1), three(spec.padding, 0)];
  const own = C / groups;
  const y = new Float64Array(B * N * OD * OH * OW);
  for (let at = 0; at < y.length; at++) {
    const [j, i] = [at % OW, Math.floor(at / OW) % OH];
    const [h, rest] = [Math.floor(at / (OW * OH)) % OD, Math.floor(at / (OW * OH * OD))];
    const [n, image] = [rest % N, Math.floor(rest / N)];
    const first = Math.floor(n / (N / groups)) * own;
    let sum = 0;
    for (let c = 0; c < own; c++)
      for (let o = 0; o < kd; o++)
        for (let p = 0; p < kh; p++)
          for (let q = 0; q < kw; q++) {
            const plane = h * stride[0] - padding[0] + o;
            const row = i * stride[1] - padding[1] + p;
            const col = j * stride[2] - padding[2] + q;
            if (plane < 0 || plane >= depth) continue;
            if (row < 0 || row >= height || col < 0 || col >= width) continue;
            const from = ((image * C + first + c) * depth + plane) * height + row;
            const weight = w[(((n * own + c) * kd + o) * kh + p) * kw + q] as number;
            sum += (x[from * width + col] as number) * weight;
          }
    y[at] = sum;
  }
  return y;
}
