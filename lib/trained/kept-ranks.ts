/** Adapters without the ranks that a rule left out. */

import type { Adapter } from '../adapters/definition/adapter.js';
import { type AlphaConfig, scalingOf } from '../adapters/parts/scaling.js';
import { Tensor } from '../core/tensor.js';
import type { AdapterSet, TrainedMethod } from '../train/adapter-set.js';

/** Layers with their adapters, as a folder has them. */
export type WrittenAdapters = Pick<AdapterSet, 'layers' | 'byModule'>;

/**
 * The adapters with the ranks that are kept; those of a layer that keeps all are the set's.
 * @param kept one flag a rank, by module
 * @returns the adapters, and those that were made for it, which the caller frees
 */
export function withKeptRanks(
  { layers, config }: AdapterSet,
  kept: ReadonlyMap<string, Uint8Array>,
): WrittenAdapters & { readonly made: readonly Adapter[] } {
  const made: Adapter[] = [];
  const own = layers.map((layer) => {
    const keep = kept.get(layer.place.module);
    if (keep === undefined || keep.every((flag) => flag === 1)) return layer;
    const adapter = smaller(config.method, layer.adapter, layer.place.module, keep);
    made.push(adapter);
    return { ...layer, adapter };
  });
  const byModule = new Map(own.map(({ place, adapter }) => [place.module, adapter]));
  return { layers: own, byModule, made };
}

/** Settings of a lower rank with the scaling as it is. AdaLoRA's scaling keeps the number of ranks that it began with. */
function configOf(method: TrainedMethod, config: Readonly<Record<string, unknown>>, r: number) {
  if (method.method === 'adalora') {
    return { ...config, r, ranknum: config.ranknum === 0 ? config.r : config.ranknum };
  }
  const alpha = config as unknown as AlphaConfig;
  if (alpha.loraAlpha === undefined) return { ...config, r };
  return { ...config, r, loraAlpha: scalingOf(alpha) * (alpha.rslora ? Math.sqrt(r) : r) };
}

function smaller(
  method: TrainedMethod,
  adapter: Adapter,
  module: string,
  keep: Uint8Array,
): Adapter {
  const { inFeatures, outFeatures, device, parameters, buffers, indexes } = adapter;
  const config = adapter.config as Readonly<Record<string, unknown>>;
  const chosen = Array.from(keep.keys()).filter((i) => keep[i] === 1);
  // PEFT has layers without a rank for AdaLoRA only.
  const ranks = chosen.length === 0 && method.method !== 'adalora' ? [0] : chosen;
  const place = { inFeatures, outFeatures, module, device };
  const less = { ...place, ...configOf(method, config, ranks.length) };
  const { shapes } = method.maker(less as never);
  const tensors = Object.entries({ ...buffers, ...parameters }).map(([name, tensor]) => {
    const target = (shapes as Readonly<Record<string, readonly number[]>>)[name] ?? tensor.shape;
    const axis = tensor.shape.findIndex((size, i) => size === keep.length && target[i] !== size);
    return [name, axis < 0 ? tensor.to({}) : taken(tensor, axis, ranks)] as const;
  });
  return method.from(Object.fromEntries(tensors) as never, less as never, indexes) as Adapter;
}

/** The chosen entries along an axis of a vector or a matrix. */
function taken(tensor: Tensor, axis: number, chosen: readonly number[]): Tensor {
  const [rows = 0, columns = 1] = tensor.shape;
  const values = tensor.readSync();
  const shape = tensor.shape.map((size, i) => (i === axis ? chosen.length : size));
  const width = axis === 0 ? columns : chosen.length;
  const made = Float32Array.from(
    { length: (axis === 0 ? chosen.length : rows) * width },
    (_, at) => {
      const [i, j] = [Math.floor(at / width), at % width];
      const from =
        axis === 0 ? (chosen[i] as number) * columns + j : i * columns + (chosen[j] as number);
      return values[from] as number;
    },
  );
  return Tensor.from(made, shape, { device: tensor.device });
}
