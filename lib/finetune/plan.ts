/** What a fine-tune will take, before it starts. */

import { deviceInfo } from '../core/device.js';
import { LowrankError } from '../core/errors.js';
import { defaultDevice } from '../index.js';
import { openModel } from '../model/gguf/open-model.js';
import type { ModelFiles } from '../model/model-files.js';
import { requireFitting } from '../train/adapter-set.js';
import { fittingChange, memoryOfRun, type RunMemory, type RunSize } from '../train/memory.js';
import type { FinetuneOptions } from './finetune-files.js';
import { requireLength } from './finetune-files.js';
import { requirePrivate } from './privacy.js';
import { requireRunRules } from './run-rules.js';
import { starterOf } from './start.js';

const kOp = 'finetune';

/** {@link planRun}'s result. */
export interface RunPlan {
  readonly architecture: string;
  /** Number of trained values. */
  readonly parameters: number;
  readonly memory: RunMemory;
  /** Bytes that the device has. */
  readonly available: number;
  /** Does the run fit? */
  readonly fits: boolean;
  /** Options that make it fit, if it does not and some do. */
  readonly change?: string;
}

function sizeOf({ train, seqLen, format, privacy }: FinetuneOptions, parameters: number): RunSize {
  const { batch, dtype, recompute, optimizer, optimizerSettings } = train;
  return {
    ...{ batch, seqLen, dtype, recompute, format, parameters },
    perExample: privacy !== undefined,
    ...(optimizer === undefined ? {} : { optimizer }),
    ...(optimizerSettings === undefined ? {} : { optimizerSettings }),
  };
}

/**
 * Checks a run's model and settings and adds up its memory; reads no weights and writes nothing.
 * @throws LowrankError as `finetune`
 */
export function planRun(options: FinetuneOptions): RunPlan {
  requirePrivate(options);
  const model = openModel(options.model);
  requireLength(options.seqLen, model.decoder.maxPositionEmbeddings);
  const device = options.device ?? defaultDevice();
  const parameters = requireFitting(options.adapter, model.places, device);
  starterOf(model, options, device);
  requireRunRules(model, options);
  return planOf(model, options, parameters);
}

function planOf(model: ModelFiles, options: FinetuneOptions, parameters: number): RunPlan {
  const size = sizeOf(options, parameters);
  const memory = memoryOfRun(model, size);
  const available = deviceInfo(options.device ?? defaultDevice()).memory;
  // A device that was not opened does not know its memory yet.
  const fits = available === 0 || memory.total <= available;
  const change = fits ? undefined : fittingChange(model, size, options.train.accumulate, available);
  return {
    architecture: model.decoder.architecture,
    parameters,
    memory,
    available,
    fits,
    ...(change === undefined ? {} : { change }),
  };
}

/**
 * Rejects a run that cannot fit.
 * @throws LowrankError `ERR_OOM`, with the options that would make it fit
 */
export function requireMemory(
  model: ModelFiles,
  options: FinetuneOptions,
  parameters: number,
): void {
  const { fits, memory, available, change } = planOf(model, options, parameters);
  if (fits) return;
  const advice = change === undefined ? 'A smaller model is needed' : `Try ${change}`;
  const text =
    `${kOp}: the run must fit into the device's ${gib(available)}, got one of ${gib(memory.total)} ` +
    `(--dry-run shows its parts). ${advice}`;
  throw new LowrankError('ERR_OOM', text, { op: kOp });
}

const gib = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(1)} GiB`;
