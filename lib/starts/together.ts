/** Starts of all layers of a model together, with the dense model beside the one that the run stores. */

import type { Adapter } from '../adapters/definition/adapter.js';
import type { Device } from '../core/device.js';
import { fail } from '../core/errors.js';
import type { Tensor } from '../core/tensor.js';
import { Decoder } from '../model/decoder.js';
import type { LinearPlace } from '../model/decoder-tensors.js';
import { DecoderWeights, linearsOf } from '../model/decoder-weights.js';
import type { ModelFiles } from '../model/model-files.js';
import { buildLayer, type StartedLayer, type StartPlan } from './build.js';
import type { OnBatch } from './calibration/calibrate.js';
import type { CalibrationData } from './definition/calibration-data.js';
import type { StartCall, StartFactors, StartLayer } from './definition/definition.js';

/** What {@link startTogether} works on. */
export interface TogetherOptions {
  readonly plan: StartPlan;
  readonly call: StartCall<Readonly<Record<string, unknown>>>;
  readonly model: ModelFiles;
  readonly stored: Decoder;
  readonly device: Device;
  readonly data: CalibrationData;
  readonly onBatch: OnBatch;
  isStarted(module: string): boolean;
  seedOf(module: string): number;
  layerOf(place: LinearPlace, w: Tensor): StartLayer;
  /** Gets each started layer, in their order. */
  take(module: string, made: StartedLayer): void;
}

/** Frees what new adapters hold beside the tensors that were taken over. */
function freeRest(adapters: readonly Adapter[], kept: ReadonlySet<unknown>): void {
  for (const adapter of adapters) {
    const tensors = [...Object.values(adapter.parameters), ...Object.values(adapter.buffers)];
    if (!tensors.some((tensor) => kept.has(tensor))) adapter.dispose();
    else for (const tensor of tensors) if (!kept.has(tensor)) tensor.dispose();
  }
}

/**
 * Runs a start of the whole model.
 * @throws ERR_VALUE if factors of a layer are missing · what the start throws; then nothing is taken
 */
export async function startTogether(options: TogetherOptions): Promise<void> {
  const { plan, call, model, stored, device, data, onBatch } = options;
  const { start, method, config } = plan;
  const loaded = DecoderWeights.load(model, { format: { format: 'none' }, device });
  using dense = new Decoder(model.decoder, loaded);
  const linears = dense.weights.layers
    .flatMap(linearsOf)
    .filter(({ place }) => options.isStarted(place.module));
  const weights = linears.map(({ w }) => (w as Tensor).to({ dtype: 'f32' }));
  const layers = linears.map(({ place }, i) => options.layerOf(place, weights[i] as Tensor));
  const made = method.createAll(
    linears.map(({ place: { module, N, K } }, i) => ({
      module,
      inFeatures: K,
      outFeatures: N,
      weight: weights[i] as Tensor,
      device,
      seed: options.seedOf(module),
      ...config,
    })),
  );
  const kept = new Set<unknown>();
  try {
    const adapters = new Map(layers.map(({ module }, i) => [module, made[i] as Adapter]));
    const run = { layers, dense, stored, adapters, data, onBatch };
    const found = await start.together?.(run, call);
    const factors = layers.map(({ module }): StartFactors => {
      const own = found?.get(module);
      if (own !== undefined) return own;
      const what = `what together of ${start.start} returns`;
      return fail('ERR_VALUE', 'start', what, `factors of ${module}`, 'none');
    });
    layers.forEach((layer, i) => {
      const { module } = layer;
      const started = buildLayer(plan, layer, options.seedOf(module), undefined, factors[i]);
      const { parameters, buffers } = started.adapter;
      for (const each of [...Object.values(parameters), ...Object.values(buffers)]) kept.add(each);
      options.take(module, started);
    });
  } finally {
    freeRest(made, kept);
    for (const w of weights) w.dispose();
  }
}
