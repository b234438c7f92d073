/** A golden case's convolution: torch's layer, of whatever stride, padding and dilation gave its output. */
import {
  type Device,
  groupedWeight,
  Im2col,
  type ImageSizes,
  matmul,
  scope,
  type Tensor,
} from '../../lib/index.js';
import { baseTensor, forwardOf, type GoldenLayer, layerNames, layerOver } from './adapter-case.js';
import type { GoldenCase } from './case-file.js';
import { tensorOf } from './library.js';

/** Of one dimension. */
interface Axis {
  readonly stride: number;
  readonly padding: number;
  readonly dilation: number;
}

/** What gives an output of that size, the usual first. */
function axes(size: number, kernel: number, out: number): Axis[] {
  const found: Axis[] = [];
  for (const dilation of [1, 2, 3])
    for (const stride of [1, 2, 3, 4])
      for (let padding = 0; padding <= dilation * (kernel - 1) + 1; padding++) {
        const span = size + 2 * padding - dilation * (kernel - 1) - 1;
        if (span >= 0 && Math.floor(span / stride) + 1 === out)
          found.push({ stride, padding, dilation });
      }
  return found;
}

/** [B, C, H, W] or [B, C, D, H, W]; of one dimension, an image of one row. */
const image = (shape: readonly number[]): readonly number[] =>
  shape.length === 3 ? [...shape.slice(0, 2), 1, ...shape.slice(2)] : shape;

export interface GoldenConvolution {
  readonly layer: GoldenLayer;
  readonly patches: Im2col;
  /** Rows of patches of a tensor of the input's shape. */
  readonly rows: (x: Tensor) => Tensor;
  /** What rows are the gradient of, in the shape of the input. */
  readonly rowsBackward: (dRows: Tensor) => Tensor;
  readonly imageBackward: (dy: Tensor) => Tensor;
}

/**
 * The case does not say what stride, padding and dilation its layer has: of those that give the size of the output the
 * first that gives its values is taken (and the first at all, where none does: then the rules fail).
 */
export function convolutionOf(golden: GoldenCase, device: Device): GoldenConvolution {
  const [name = ''] = layerNames(golden);
  const stored = baseTensor(golden, `${name}.weight`, device) as Tensor;
  const [, own = 1, ...kernel] = image(stored.shape);
  const x = tensorOf(golden.tensor('in.x'), device);
  const [, channels = 0, ...sizes] = image(x.shape);
  const [width = 0, height = 0, depth] = [...sizes].reverse();
  const expected = golden.numbers('out.y');
  const outSizes = image(golden.tensor('out.y').shape).slice(2);
  const layer = layerOver(golden, name, groupedWeight(stored, channels / own));
  const withPatches = (patches: Im2col): GoldenConvolution => ({
    layer,
    patches,
    rows: (input) => patches.rows(input.reshape(image(x.shape))),
    rowsBackward: (dRows) => patches.rowsBackward(dRows).reshape(x.shape),
    imageBackward: (dy) => patches.imageBackward(dy.reshape(image(dy.shape))),
  });
  const largest = expected.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  let fits: readonly Axis[][] = [[]];
  sizes.forEach((size, i) => {
    const own = axes(size, kernel[i] as number, outSizes[i] as number);
    fits = fits.flatMap((chosen) => own.map((axis) => [...chosen, axis]));
  });
  let first: GoldenConvolution | undefined;
  for (const fit of fits) {
    const of = (name: keyof Axis) => fit.map((axis) => axis[name]) as unknown as ImageSizes;
    const made = withPatches(
      new Im2col({
        channels,
        ...(depth === undefined ? {} : { depth }),
        height,
        width,
        kernel: kernel as unknown as ImageSizes,
        stride: of('stride'),
        padding: of('padding'),
        dilation: of('dilation'),
        device,
      }),
    );
    first ??= made;
    const near = scope(() => {
      const { y } = forwardOf(golden, layer, x, made.rows);
      const values = made.patches.image(y).readSync();
      return values.every(
        (value, i) => Math.abs(value - (expected[i] as number)) <= 0.01 * largest,
      );
    });
    if (near) return made;
  }
  if (first === undefined)
    throw new Error(`${golden.id}: no convolution has an output of its size`);
  return first;
}

/** The layer without its adapter, over a weight [N, K]. */
export const plainOf = (
  { patches, rows }: GoldenConvolution,
  x: Tensor,
  weight: Tensor,
  bias: Tensor | undefined,
): Tensor => patches.image(matmul(rows(x), weight, bias === undefined ? {} : { bias }));
