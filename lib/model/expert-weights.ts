/** The frozen weights of a layer of experts on a device. */

import { type RawTensor, rawToFloat32 } from '../checkpoint/raw-tensor.js';
import type { Device } from '../core/device.js';
import type { DType } from '../core/dtype.js';
import { LowrankError } from '../core/errors.js';
import { Tensor } from '../core/tensor.js';
import type { BaseWeight } from '../ops/base-weight.js';
import { type BaseFormat, storeWeight } from './base-format.js';
import { moduleOf } from './decoder-tensors.js';
import type { ExpertLayerPlaces, ExpertsPlace } from './expert-tensors.js';
import type { LinearWeights } from './linear-weights.js';
import type { ModelFiles } from './model-files.js';
import type { TensorPlace } from './places.js';
import { quantizedWeight } from './quantized-weight.js';

/** One linear layer of all experts. */
export interface ExpertsWeights {
  readonly place: ExpertsPlace;
  /** [E · N, K] */
  readonly w: BaseWeight;
  /** [E, N] */
  readonly bias?: Tensor;
}

/** The experts of a block. */
export interface ExpertLayerWeights {
  readonly router: LinearWeights;
  readonly gateUp: ExpertsWeights;
  readonly down: ExpertsWeights;
}

/** The dtypes that are kept as they stand in a file. */
export const kDense: Partial<Record<RawTensor['dtype'], DType>> = { BF16: 'bf16', F16: 'f16' };

type Values = Float32Array<ArrayBuffer> | Uint16Array<ArrayBuffer>;

/** Bits of a kept dtype, or f32 values. */
const valuesOf = (raw: RawTensor, keepBits: boolean): Values =>
  (keepBits && kDense[raw.dtype] !== undefined ? raw.data : rawToFloat32(raw)) as Values;

/** [rows, cols] to [cols, rows], for each of `count` matrices. */
export function turned(values: Values, count: number, rows: number, cols: number): Values {
  const out = values.slice();
  for (let e = 0; e < count; e++) {
    const first = e * rows * cols;
    for (let i = 0; i < rows; i++) {
      for (let j = 0; j < cols; j++) {
        out[first + j * rows + i] = values[first + i * cols + j] as number;
      }
    }
  }
  return out;
}

function joined(parts: readonly Values[]): Values {
  const size = parts.reduce((sum, part) => sum + part.length, 0);
  const out = parts[0] instanceof Uint16Array ? new Uint16Array(size) : new Float32Array(size);
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** What loading needs of the model that is read. */
export interface ExpertSource {
  readonly model: ModelFiles;
  readonly device: Device;
  readonly format: BaseFormat;
  readonly read: (name: string) => RawTensor;
  readonly onTensor?: ((name: string, raw: RawTensor) => void) | undefined;
}

/** The values of a layer of dense experts, [E · N, K]. */
function denseValues(place: ExpertsPlace, source: ExpertSource, keepBits: boolean) {
  const { stored, E, N, K } = place;
  if (stored.form === 'stacked') {
    const raw = source.read(stored.tensor.name);
    const values = valuesOf(raw, keepBits);
    return { dtype: raw.dtype, values: stored.transposed ? turned(values, E, K, N) : values };
  }
  const names = stored.parts.flat().map(({ name }) => name);
  const raws = names.map((name) => source.read(name));
  const dtype = (raws[0] as RawTensor).dtype;
  // Files of several dtypes are read as f32.
  const alike = raws.every((raw) => raw.dtype === dtype);
  const values = joined(raws.map((raw) => valuesOf(raw, keepBits && alike)));
  return { dtype: alike ? dtype : ('F32' as const), values };
}

/** The module by which a quantised folder names the whole layer, if it is quantised. */
function quantizedModule({ stored }: ExpertsPlace, model: ModelFiles): string | undefined {
  if (stored.form === 'stacked') {
    const { name } = stored.tensor;
    return model.layoutOf(name) === undefined ? undefined : name;
  }
  const alone = stored.parts.flat().find(({ name }) => model.layoutOf(moduleOf(name)));
  if (alone === undefined) return undefined;
  const text =
    `DecoderWeights.load: experts must be dense, or quantised as one tensor of all of them, ` +
    `got ${alone.name} quantised alone as ${model.layoutOf(moduleOf(alone.name))}. Dequantise the model first.`;
  throw new LowrankError('ERR_UNSUPPORTED', text, { op: 'DecoderWeights.load' });
}

/**
 * Reads a layer of all experts.
 * @throws LowrankError `ERR_UNSUPPORTED` experts that are quantised one by one · `ERR_SHAPE` a format whose blocks cross experts
 */
function expertsWeight(place: ExpertsPlace, source: ExpertSource): BaseWeight {
  const { model, device, format, onTensor } = source;
  const { E, N, K } = place;
  const module = quantizedModule(place, model);
  if (module !== undefined) return quantizedWeight(model, module, device, onTensor);
  const keepBits = format.format === 'none';
  const { dtype, values } = denseValues(place, source, keepBits);
  const shape = [E * N, K] as const;
  if (!keepBits) return storeWeight(values as Float32Array, shape, format, device, false);
  const kept = kDense[dtype];
  return Tensor.from(values, shape, { device, ...(kept === undefined ? {} : { dtype: kept }) });
}

/** @param linear reads a layer that no format applies to */
export function* loadExperts(
  places: ExpertLayerPlaces,
  source: ExpertSource,
  keep: <T extends Disposable>(value: T) => T,
  linear: (place: ExpertLayerPlaces['router']) => LinearWeights,
  dense: (place: TensorPlace) => Tensor,
): Generator<undefined, ExpertLayerWeights> {
  const router = linear(places.router);
  const made: ExpertsWeights[] = [];
  for (const place of [places.gateUp, places.down]) {
    const w = keep(expertsWeight(place, source));
    made.push({ place, w, ...(place.bias === undefined ? {} : { bias: dense(place.bias) }) });
    yield;
  }
  const [gateUp, down] = made as [ExpertsWeights, ExpertsWeights];
  return { router, gateUp, down };
}
