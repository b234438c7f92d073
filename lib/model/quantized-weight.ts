/** A quantised layer of a model on a device, as it is stored. */

import type { Device } from '../core/device.js';
import { QuantizedWeight } from '../quant/quantized-weight.js';
import { HfModel } from './hf-model.js';
import type { ModelFiles, OnTensor } from './model-files.js';

/** Layouts whose states the library has kernels of their own for. */
const kStates: ReadonlySet<string> = new Set(['bitsandbytes', 'llm-int8']);

/** @throws what {@link ModelFiles.readQuantized} and {@link QuantizedWeight.fromPlanes} throw */
export function quantizedWeight(
  model: ModelFiles,
  module: string,
  device: Device,
  onTensor?: OnTensor,
): QuantizedWeight {
  if (model instanceof HfModel && kStates.has(model.layoutOf(module) ?? '')) {
    return QuantizedWeight.fromBitsandbytes(model.readQuantizedTensors(module, onTensor), {
      device,
    });
  }
  return QuantizedWeight.fromPlanes(model.readQuantized(module, onTensor).weight, { device });
}
