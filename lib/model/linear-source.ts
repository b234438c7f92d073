/** The dense weights of a model's files, and how a run stores them. */

import { rawToFloat32 } from '../checkpoint/raw-tensor.js';
import type { Device } from '../core/device.js';
import { Tensor } from '../core/tensor.js';
import type { BaseWeight } from '../ops/base-weight.js';
import { type BaseFormat, storeTensor } from './base-format.js';
import { kDense } from './expert-weights.js';
import type { ModelFiles } from './model-files.js';
import type { LinearPlace } from './places.js';

/**
 * Reads linear layers that the files hold dense, and stores changed ones as {@link DecoderWeights.load} would.
 * @example
 * const source = new LinearSource(openHfModel('./model'), { format: 'nf4' }, 'cpu');
 */
export class LinearSource {
  constructor(
    readonly model: ModelFiles,
    readonly format: BaseFormat,
    readonly device: Device,
  ) {}

  /** [N, K] in f32 as in the files. */
  read({ weight, N, K }: LinearPlace): Tensor {
    return Tensor.from(rawToFloat32(this.model.read(weight.name)), [N, K], { device: this.device });
  }

  /** A weight [N, K] in the format, or in the dtype of the file. */
  store({ weight }: LinearPlace, w: Tensor): BaseWeight {
    if (this.format.format !== 'none') return storeTensor(w, this.format);
    return w.to({ dtype: kDense[this.model.info(weight.name)?.dtype ?? 'F32'] ?? 'f32' });
  }
}
