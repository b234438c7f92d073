import { type Device, resolveDevice } from '../core/device.js';
import { fail, wrongType } from '../core/errors.js';
import { outsideScopes, track } from '../core/scope.js';
import type { Tensor } from '../core/tensor.js';
import { checkInteger, checkShape, checkTensor, readOptions } from '../core/validate.js';
import { FeatureMap, mapFeatures } from './feature-map.js';

/** A 2-D convolution, as frameworks describe it. */
export interface ConvolutionSpec {
  /** C */
  channels: number;
  /** H */
  height: number;
  /** W */
  width: number;
  /** [KH, KW] */
  kernel: readonly [number, number];
  /** Default [1, 1]. */
  stride?: readonly [number, number];
  /** Zeros on each side; default [0, 0]. */
  padding?: readonly [number, number];
  /** Default [1, 1]. */
  dilation?: readonly [number, number];
  /** Default {@link defaultDevice}. */
  device?: Device;
}

function pair(
  op: string,
  name: string,
  value: unknown,
  standard: readonly [number, number],
  min: number,
): readonly [number, number] {
  if (value === undefined) return standard;
  if (!Array.isArray(value)) throw wrongType(op, name, 'an array of two numbers', value);
  if (value.length !== 2) fail('ERR_SHAPE', op, name, 'two numbers', `${value.length}`);
  const [a, b] = value.map((part, i) => checkInteger(op, `${name}[${i}]`, part, min, 2 ** 20));
  return [a as number, b as number];
}

/**
 * A convolution as a product: images to the patches that its kernel sees, one row a pixel of the
 * output. A convolution weight [N, C, KH, KW] is then the matrix [N, C · KH · KW], and every layer,
 * adapter and quantised format of this library applies to it.
 * @example
 * const patches = new Im2col({ channels: 3, height: 32, width: 32, kernel: [3, 3], padding: [1, 1] });
 * const { y, saved } = loraForward(patches.rows(images), w4, adapter);
 * const output = patches.image(y); // [B, N, OH, OW]
 */
export class Im2col implements Disposable {
  readonly channels: number;
  readonly height: number;
  readonly width: number;
  readonly outHeight: number;
  readonly outWidth: number;
  /** C · KH · KW */
  readonly inFeatures: number;
  readonly device: Device;
  readonly #patches: FeatureMap;
  readonly #turns = new Map<number, FeatureMap>();

  /** @throws ERR_TYPE, ERR_SHAPE, ERR_VALUE, ERR_DEVICE, ERR_OOM */
  constructor(spec: ConvolutionSpec) {
    const op = 'Im2col';
    if (spec === undefined) throw wrongType(op, 'spec', 'an object', spec);
    const given = readOptions(op, spec);
    this.channels = checkInteger(op, 'channels', given.channels, 1, 2 ** 20);
    this.height = checkInteger(op, 'height', given.height, 1, 2 ** 20);
    this.width = checkInteger(op, 'width', given.width, 1, 2 ** 20);
    const [kh, kw] = pair(op, 'kernel', given.kernel ?? null, [1, 1], 1);
    const [sh, sw] = pair(op, 'stride', given.stride, [1, 1], 1);
    const [ph, pw] = pair(op, 'padding', given.padding, [0, 0], 0);
    const [dh, dw] = pair(op, 'dilation', given.dilation, [1, 1], 1);
    const out = (size: number, k: number, s: number, p: number, d: number) =>
      Math.floor((size + 2 * p - d * (k - 1) - 1) / s) + 1;
    this.outHeight = out(this.height, kh, sh, ph, dh);
    this.outWidth = out(this.width, kw, sw, pw, dw);
    if (this.outHeight < 1 || this.outWidth < 1) {
      const size = `${this.height} x ${this.width}`;
      fail('ERR_SHAPE', op, 'kernel', `at most the padded image (${size})`, `${kh} x ${kw}`);
    }
    this.inFeatures = this.channels * kh * kw;
    this.device = resolveDevice(op, given.device);
    const { channels, height, width, outWidth } = this;
    const count = this.outHeight * outWidth * this.inFeatures;
    const index = new Int32Array(count);
    let at = 0;
    for (let pixel = 0; pixel < this.outHeight * outWidth; pixel++) {
      const top = Math.floor(pixel / outWidth) * sh - ph;
      const left = (pixel % outWidth) * sw - pw;
      for (let c = 0; c < channels; c++) {
        for (let i = 0; i < kh; i++) {
          for (let j = 0; j < kw; j++) {
            const [row, col] = [top + i * dh, left + j * dw];
            const inside = row >= 0 && row < height && col >= 0 && col < width;
            index[at++] = inside ? (c * height + row) * width + col : -1;
          }
        }
      }
    }
    this.#patches = FeatureMap.gather(index, channels * height * width, { device: this.device });
    track(this);
  }

  #batch(op: string, operand: string, tensor: unknown, rest: readonly number[]): Tensor {
    const checked = checkTensor(op, operand, tensor);
    checkShape(op, operand, checked, [checked.shape[0] ?? 0, ...rest]);
    return checked;
  }

  /**
   * @param x [B, C, H, W]
   * @returns [B, OH · OW, C · KH · KW], dtype of x
   * @throws ERR_TYPE, ERR_SHAPE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
   */
  rows(x: Tensor): Tensor {
    const { channels, height, width } = this;
    const images = this.#batch('Im2col.rows', 'x', x, [channels, height, width]);
    const B = images.shape[0] as number;
    using flat = images.reshape([B, channels * height * width]);
    using patches = mapFeatures(flat, this.#patches, { dtype: x.dtype });
    return patches.reshape([B, this.outHeight * this.outWidth, this.inFeatures]);
  }

  /**
   * The gradient of {@link Im2col.rows}: what pixels share is summed.
   * @param dRows [B, OH · OW, C · KH · KW]
   * @returns [B, C, H, W]
   */
  rowsBackward(dRows: Tensor): Tensor {
    const { channels, height, width, outHeight, outWidth, inFeatures } = this;
    const rest = [outHeight * outWidth, inFeatures];
    const rows = this.#batch('Im2col.rowsBackward', 'dRows', dRows, rest);
    const B = rows.shape[0] as number;
    using flat = rows.reshape([B, outHeight * outWidth * inFeatures]);
    using dx = mapFeatures(flat, this.#patches.adjoint, { dtype: dRows.dtype });
    return dx.reshape([B, channels, height, width]);
  }

  #turn(N: number): FeatureMap {
    let turn = this.#turns.get(N);
    if (turn === undefined) {
      // Kept as long as this lives, whatever scope the call is in.
      const pixels = this.outHeight * this.outWidth;
      turn = outsideScopes(() => FeatureMap.transpose(pixels, N, { device: this.device }));
      this.#turns.set(N, turn);
    }
    return turn;
  }

  /**
   * @param y [B, OH · OW, N]: what a layer makes of the rows
   * @returns [B, N, OH, OW]
   */
  image(y: Tensor): Tensor {
    const op = 'Im2col.image';
    const { outHeight, outWidth } = this;
    const pixels = outHeight * outWidth;
    const N = checkTensor(op, 'y', y).shape[2] ?? 0;
    const [B = 0] = this.#batch(op, 'y', y, [pixels, N]).shape;
    using flat = y.reshape([B, pixels * N]);
    using turned = mapFeatures(flat, this.#turn(N), { dtype: y.dtype });
    return turned.reshape([B, N, outHeight, outWidth]);
  }

  /**
   * The gradient of {@link Im2col.image}.
   * @param dImage [B, N, OH, OW]
   * @returns [B, OH · OW, N]
   */
  imageBackward(dImage: Tensor): Tensor {
    const op = 'Im2col.imageBackward';
    const { outHeight, outWidth } = this;
    const pixels = outHeight * outWidth;
    const N = checkTensor(op, 'dImage', dImage).shape[1] ?? 0;
    const [B = 0] = this.#batch(op, 'dImage', dImage, [N, outHeight, outWidth]).shape;
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
