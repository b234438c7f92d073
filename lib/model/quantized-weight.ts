/** A layer of a quantised folder on a device, as it is stored. */

import type { RawTensor } from '../checkpoint/raw-tensor.js';
import type { Device } from '../core/device.js';
import { QuantizedWeight } from '../quant/quantized-weight.js';
import type { HfModel } from './hf-model.js';

/** Layouts whose states the library has kernels of their own for. */
const kStates: ReadonlySet<string> = new Set(['bitsandbytes', 'llm-int8']);

/** @throws what {@link HfModel.readQuantized} and {@link QuantizedWeight.fromPlanes} throw */
export function quantizedWeight(
  model: HfModel,
  module: string,
  device: Device,
  onTensor?: (name: string, raw: RawTensor) => void,
): QuantizedWeight {
  if (kStates.has(model.layoutOf(module) ?? '')) {
    return QuantizedWeight.fromBitsandbytes(model.readQuantizedTensors(module, onTensor), {
      device,
    });
  }
  return QuantizedWeight.fromPlanes(model.readQuantized(module, onTensor).weight, { device });
}
