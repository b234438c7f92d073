import { checkShape, checkTensor } from '../core/check-tensor.js';
import { type Device, resolveDevice } from '../core/device.js';
import { fail, wrongType } from '../core/errors.js';
import { outsideScopes, track } from '../core/scope.js';
import type { Tensor } from '../core/tensor.js';
import { checkInteger, readOptions } from '../core/validate.js';
import { FeatureMap, mapFeatures } from './feature-map.js';

/** Sizes by dimension of the image: [H, W], or [D, H, W] if it has a depth. */
export type ImageSizes = readonly [number, number] | readonly [number, number, number];

/** A convolution over images or volumes, as frameworks describe it. */
export interface ConvolutionSpec {
  /** C */
  channels: number;
  /** D, for a three-dimensional convolution: kernel, stride, padding and dilation then have three numbers. */
  depth?: number;
  /** H */
  height: number;
  /** W. A one-dimensional convolution has its length here, and a height and kernel height of 1. */
  width: number;
  /** [KH, KW] or [KD, KH, KW] */
  kernel: ImageSizes;
  /** Default 1. */
  stride?: ImageSizes;
  /** Zeros on each side; default 0. */
  padding?: ImageSizes;
  /** Default 1. */
  dilation?: ImageSizes;
  /** Default {@link defaultDevice}. */
  device?: Device;
}

/** One dimension of a convolution. */
interface Axis {
  readonly size: number;
  readonly kernel: number;
  readonly stride: number;
  readonly padding: number;
  readonly dilation: number;
}

const kWords = ['none', 'one', 'two', 'three'];
const kVolume = ['depth', 'height', 'width'] as const;

const product = (sizes: readonly number[]): number => sizes.reduce((all, size) => all * size, 1);

/** A number for each dimension. @throws ERR_TYPE, ERR_SHAPE, ERR_VALUE */
function perAxis(
  op: string,
  name: string,
  value: unknown,
  dims: number,
  min: number,
  standard?: number,
): number[] {
  if (value === undefined && standard !== undefined) return new Array(dims).fill(standard);
  const expected = `${kWords[dims]} numbers`;
  if (!Array.isArray(value)) throw wrongType(op, name, `an array of ${expected}`, value);
  if (value.length !== dims) fail('ERR_SHAPE', op, name, expected, `${value.length}`);
  return value.map((part, i) => checkInteger(op, `${name}[${i}]`, part, min, 2 ** 20));
}

/** Number of kernel positions along a dimension. */
const outOf = ({ size, kernel, stride, padding, dilation }: Axis): number =>
  Math.floor((size + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1;

/** The image position of each tap at each kernel position, -1 outside: [out · kernel]. */
function placesOf(axis: Axis): Int32Array {
  const { size, kernel, stride, padding, dilation } = axis;
  return Int32Array.from({ length: outOf(axis) * kernel }, (_, i) => {
    const at = Math.floor(i / kernel) * stride - padding + (i % kernel) * dilation;
    return at >= 0 && at < size ? at : -1;
  });
}

/**
 * A convolution as a product: images become the patches that the kernel sees, one row per pixel of the output. A convolution
 * weight [N, C, KH, KW] is then the matrix [N, C · KH · KW], and every layer, adapter and quantised format of this library
 * applies to it. With a `depth`, images are volumes [B, C, D, H, W] and weights are [N, C, KD, KH, KW].
 * @example
 * const patches = new Im2col({ channels: 3, height: 32, width: 32, kernel: [3, 3], padding: [1, 1] });
 * const { y, saved } = loraForward(patches.rows(images), w4, adapter);
 * const output = patches.image(y); // [B, N, OH, OW]
 */
export class Im2col implements Disposable {
  readonly channels: number;
  /** 1 if the image has none. */
  readonly depth: number;
  readonly height: number;
  readonly width: number;
  readonly outDepth: number;
  readonly outHeight: number;
  readonly outWidth: number;
  /** C · KD · KH · KW */
  readonly inFeatures: number;
  readonly device: Device;
  /** [D,] H, W of the image. */
  readonly #sizes: readonly number[];
  /** The same for the output. */
  readonly #outSizes: readonly number[];
  readonly #patches: FeatureMap;
  readonly #turns = new Map<number, FeatureMap>();

  /** @throws ERR_TYPE, ERR_SHAPE, ERR_VALUE, ERR_DEVICE, ERR_OOM */
  constructor(spec: ConvolutionSpec) {
    const op = 'Im2col';
    if (spec === undefined) throw wrongType(op, 'spec', 'an object', spec);
    const given = readOptions(op, spec, {
      channels: true,
      depth: true,
      height: true,
      width: true,
      kernel: true,
      stride: true,
      padding: true,
      dilation: true,
      device: true,
    });
    const names = given.depth === undefined ? (['height', 'width'] as const) : kVolume;
    const dims = names.length;
    this.channels = checkInteger(op, 'channels', given.channels, 1, 2 ** 20);
    const sizes = names.map((name) => checkInteger(op, name, given[name], 1, 2 ** 20));
    const kernel = perAxis(op, 'kernel', given.kernel ?? null, dims, 1);
    const stride = perAxis(op, 'stride', given.stride, dims, 1, 1);
    const padding = perAxis(op, 'padding', given.padding, dims, 0, 0);
    const dilation = perAxis(op, 'dilation', given.dilation, dims, 1, 1);
    const axes = sizes.map(
      (size, i): Axis => ({
        size,
        kernel: kernel[i] as number,
        stride: stride[i] as number,
        padding: padding[i] as number,
        dilation: dilation[i] as number,
      }),
    );
    this.#sizes = sizes;
    this.#outSizes = axes.map(outOf);
    if (this.#outSizes.some((size) => size < 1)) {
      const expected = `at most the padded image (${sizes.join(' x ')})`;
      fail('ERR_SHAPE', op, 'kernel', expected, kernel.join(' x '));
    }
    const whole = { size: 1, kernel: 1, stride: 1, padding: 0, dilation: 1 };
    const all = [...(dims === 3 ? [] : [whole]), ...axes] as [Axis, Axis, Axis];
    [this.depth, this.height, this.width] = all.map(({ size }) => size) as [number, number, number];
    [this.outDepth, this.outHeight, this.outWidth] = all.map(outOf) as [number, number, number];
    this.inFeatures = this.channels * kernel.reduce((taps, size) => taps * size, 1);
    this.device = resolveDevice(op, given.device);
    const pixels = this.channels * product(sizes);
    this.#patches = FeatureMap.gather(this.#index(all), pixels, { device: this.device });
    track(this);
  }

  /** The position in the image of each value of the patches, -1 in the padding. */
  #index(axes: readonly [Axis, Axis, Axis]): Int32Array {
    const [planes, rows, cols] = axes.map(placesOf) as [Int32Array, Int32Array, Int32Array];
    const [kd, kh, kw] = axes.map(({ kernel }) => kernel) as [number, number, number];
    const { channels, depth, height, width, outDepth, outHeight, outWidth } = this;
    const index = new Int32Array(outDepth * outHeight * outWidth * this.inFeatures);
    let at = 0;
    for (let pixel = 0; pixel < outDepth * outHeight * outWidth; pixel++) {
      const col = (pixel % outWidth) * kw;
      const row = (Math.floor(pixel / outWidth) % outHeight) * kh;
      const plane = Math.floor(pixel / (outWidth * outHeight)) * kd;
      for (let c = 0; c < channels; c++) {
        for (let h = 0; h < kd; h++) {
          for (let i = 0; i < kh; i++) {
            for (let j = 0; j < kw; j++) {
              const z = planes[plane + h] as number;
              const [y, x] = [rows[row + i] as number, cols[col + j] as number];
              const inside = z >= 0 && y >= 0 && x >= 0;
              index[at++] = inside ? ((c * depth + z) * height + y) * width + x : -1;
            }
          }
        }
      }
    }
    return index;
  }

  #batch(op: string, operand: string, tensor: unknown, rest: readonly number[]): Tensor {
    const checked = checkTensor(op, operand, tensor);
    checkShape(op, operand, checked, [checked.shape[0] ?? 0, ...rest]);
    return checked;
  }

  /**
   * @param x [B, C, H, W], or [B, C, D, H, W]
   * @returns [B, OD · OH · OW, C · KD · KH · KW], dtype of x
   * @throws ERR_TYPE, ERR_SHAPE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
   */
  rows(x: Tensor): Tensor {
    const images = this.#batch('Im2col.rows', 'x', x, [this.channels, ...this.#sizes]);
    const B = images.shape[0] as number;
    using flat = images.reshape([B, this.channels * product(this.#sizes)]);
    using patches = mapFeatures(flat, this.#patches, { dtype: x.dtype });
    return patches.reshape([B, product(this.#outSizes), this.inFeatures]);
  }

  /**
   * The gradient of {@link Im2col.rows}. Contributions to the same pixel are summed.
   * @param dRows [B, OD · OH · OW, C · KD · KH · KW]
   * @returns [B, C, H, W], or [B, C, D, H, W]
   */
  rowsBackward(dRows: Tensor): Tensor {
    const rest = [product(this.#outSizes), this.inFeatures];
    const rows = this.#batch('Im2col.rowsBackward', 'dRows', dRows, rest);
    const B = rows.shape[0] as number;
    using flat = rows.reshape([B, product(rest)]);
    using dx = mapFeatures(flat, this.#patches.adjoint, { dtype: dRows.dtype });
    return dx.reshape([B, this.channels, ...this.#sizes]);
  }

  #turn(N: number): FeatureMap {
    let turn = this.#turns.get(N);
    if (turn === undefined) {
      // Kept as long as this object lives, whatever scope the call is in.
      const pixels = product(this.#outSizes);
      turn = outsideScopes(() => FeatureMap.transpose(pixels, N, { device: this.device }));
      this.#turns.set(N, turn);
    }
    return turn;
  }

  /**
   * @param y [B, OD · OH · OW, N]: the layer's output for the rows
   * @returns [B, N, OH, OW], or [B, N, OD, OH, OW]
   */
  image(y: Tensor): Tensor {
    const op = 'Im2col.image';
    const pixels = product(this.#outSizes);
    const N = checkTensor(op, 'y', y).shape[2] ?? 0;
    const [B = 0] = this.#batch(op, 'y', y, [pixels, N]).shape;
    using flat = y.reshape([B, pixels * N]);
    using turned = mapFeatures(flat, this.#turn(N), { dtype: y.dtype });
    return turned.reshape([B, N, ...this.#outSizes]);
  }

  /**
   * The gradient of {@link Im2col.image}.
   * @param dImage [B, N, OH, OW], or [B, N, OD, OH, OW]
   * @returns [B, OD · OH · OW, N]
   */
  imageBackward(dImage: Tensor): Tensor {
    const op = 'Im2col.imageBackward';
    const pixels = product(this.#outSizes);
    const N = checkTensor(op, 'dImage', dImage).shape[1] ?? 0;
    const [B = 0] = this.#batch(op, 'dImage', dImage, [N, ...this.#outSizes]).shape;
    using flat = dImage.reshape([B, N * pixels]);
    using turned = mapFeatures(flat, this.#turn(N).adjoint, { dtype: dImage.dtype });
    return turned.reshape([B, pixels, N]);
  }

  dispose(): void {
    this.#patches.dispose();
    for (const turn of this.#turns.values()) turn.dispose();
    this.#turns.clear();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
