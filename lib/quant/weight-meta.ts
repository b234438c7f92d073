/** What the library knows of a quantised weight beside its memory. */

import type { Device } from '../core/device.js';
import type { DType } from '../core/dtype.js';
import type { FormatInfo, QuantFormat } from '../core/formats.js';
import type { Tensor } from '../core/tensor.js';
import type { PlanesRecipe } from './read-planes.js';

/** How a weight is stored: a blockwise format, or `planar` for what {@link QuantizedWeight.fromPlanes} makes. */
export type WeightFormat = QuantFormat | 'planar';

/** Blocks whose absmax values share one nested absmax under double quantisation. */
export const NESTED_BLOCKSIZE = 256;

export interface WeightMeta {
  shape: readonly number[];
  /** None of a planar weight. */
  format?: FormatInfo;
  planes?: { bits: number; byteLength: number; recipe: PlanesRecipe };
  blocksize: number;
  doubleQuant: boolean;
  nestedBlocksize: number;
  sourceDType: DType;
  device: Device;
  rowwise?: boolean;
  /** Zero-points, owned by the weight. */
  zeroPoints?: Tensor;
  /** Levels other than the format's. */
  codebook?: Float32Array | undefined;
  /** With double quantisation: levels of the scales other than the dynamic map. */
  scaleCodebook?: Float32Array | undefined;
}
