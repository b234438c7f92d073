/** The start of a fine-tune's adapters. */

import type { Device } from '../core/device.js';
import { LowrankError } from '../core/errors.js';
import { permutation } from '../core/random.js';
import { linearTargets } from '../model/decoder-tensors.js';
import type { ModelFiles } from '../model/model-files.js';
import type { CalibrationData } from '../starts/definition/calibration-data.js';
import { Starter } from '../starts/starter.js';
import type { TrainingData } from '../text/sequences.js';
import type { FinetuneOptions } from './finetune-files.js';

/** Passes that a start sees if the options do not say. */
export const kInitBatches = 8;

/**
 * What computes the start of a run; undefined for a run without one.
 * @throws LowrankError as {@link Starter}
 */
export function starterOf(
  model: ModelFiles,
  { adapter, format, train }: FinetuneOptions,
  device: Device,
): Starter | undefined {
  const { start: chosen, method, settings, targets } = adapter;
  if (chosen === undefined) return undefined;
  const starter = new Starter(model, {
    ...chosen,
    method,
    config: settings,
    targets: targets === 'all-linear' ? linearTargets(model.places) : targets,
    format,
    device,
    seed: train.seed,
  });
  if (chosen.start.replacesBase === true && method.method !== 'lora') {
    const text =
      `finetune: --init ${chosen.start.start} with --adapter ${method.method} must leave the base as it is, ` +
      'got one that replaces it, which a folder does not hold. Use startLayer in a loop of your own';
    throw new LowrankError('ERR_UNSUPPORTED', text, { op: 'finetune' });
  }
  return starter;
}

/** The sequences of the run's first passes. */
export function calibrationOf(
  { train: set }: TrainingData,
  { train, initBatches = kInitBatches }: FinetuneOptions,
): CalibrationData {
  const { batch, seed, dtype } = train;
  const order = permutation(set.count, seed, 'epoch', 0).slice(0, initBatches * batch);
  const batches = Array.from({ length: Math.ceil(order.length / batch) }, (_, i) =>
    set.batch(order.slice(i * batch, (i + 1) * batch)),
  );
  return { batches, T: set.T, dtype };
}
