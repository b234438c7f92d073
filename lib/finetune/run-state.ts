/**
 * The state of an unfinished run in one safetensors file: adapters, the states of the optimiser, the loss history, and the
 * identity of the run, so that it is never continued with different inputs.
 */

import fs from 'node:fs';
import { jsonBounds } from '../checkpoint/files/json-bounds.js';
import { type JsonObject, parseJsonObject } from '../checkpoint/files/json-file.js';
import type { RawTensor } from '../checkpoint/raw-tensor.js';
import { openSafetensors, writeSafetensors } from '../checkpoint/safetensors.js';
import { LowrankError } from '../core/errors.js';
import { printable } from '../core/printable.js';
import { showShape } from '../core/validate.js';
import type { ModelTrainer } from '../train/model-trainer.js';

const kFormat = 'lowrank-finetune-state';
const kVersion = '4';

type Setting = string | number | boolean;
/** Everything that affects the numbers of a run, under names that a user knows. */
export type RunIdentity = Readonly<Record<string, Setting | readonly Setting[]>>;

/** Losses so far. */
export interface LossHistory {
  /** Training loss of every step. */
  readonly train: number[];
  /** Held-out loss after some steps; step 0 is before training. */
  readonly heldOut: { readonly step: number; readonly loss: number }[];
}

/** What the tensors of a state take in a file. */
export function stateBytes(trainer: ModelTrainer): number {
  return trainer.stored.reduce((sum, { shape, dtype }) => {
    const size = shape.reduce((a, b) => a * b, 1);
    return sum + { F32: 4, F64: 8, U8: 1 }[dtype] * size;
  }, 0);
}

/**
 * Writes the state atomically.
 * @throws LowrankError `ERR_DISK_FULL`, `ERR_PATH`
 */
export function saveRunState(
  file: string,
  trainer: ModelTrainer,
  identity: RunIdentity,
  history: LossHistory,
): void {
  const vector = (data: Float32Array | Float64Array): RawTensor => ({
    dtype: data instanceof Float32Array ? 'F32' : 'F64',
    shape: [data.length],
    data,
  });
  const tensors = trainer.stored.map((own): [string, RawTensor] => [
    own.name,
    { dtype: own.dtype, shape: own.shape, data: own.read() },
  ]);
  writeSafetensors(
    file,
    {
      ...Object.fromEntries(tensors),
      train_loss: vector(Float64Array.from(history.train)),
      held_out_step: vector(Float64Array.from(history.heldOut, ({ step }) => step)),
      held_out_loss: vector(Float64Array.from(history.heldOut, ({ loss }) => loss)),
    },
    {
      format: kFormat,
      version: kVersion,
      step: String(trainer.step),
      optimizer: trainer.trainer.optimizer.optimizer,
      ...ruleFields(trainer),
      identity: JSON.stringify(identity),
    },
  );
}

/** What a run with rules has beside its tensors. */
function ruleFields({ rules, trainer }: ModelTrainer): Readonly<Record<string, string>> {
  if (rules === undefined) return {};
  return {
    merges: JSON.stringify(rules.merges.counts),
    optimizer_origin: String(trainer.optimizerOrigin),
  };
}

/**
 * Restores a trainer's state from a file.
 *
 * @returns the losses up to that step
 * @throws LowrankError `ERR_CHECKPOINT` if there is no such state, or it is of another run or version ·
 * `ERR_FILE` if malformed
 */
export function restoreRunState(
  op: string,
  file: string,
  trainer: ModelTrainer,
  identity: RunIdentity,
): LossHistory {
  const refuse = (text: string): never => {
    throw new LowrankError('ERR_CHECKPOINT', `${op}: ${printable(file)} ${text}`, { op });
  };
  if (!fs.existsSync(file)) {
    return refuse(
      'must be the state of an unfinished run, got nothing there. Run without --resume',
    );
  }
  const state = openSafetensors(file);
  const text = (key: string) => state.metadata.get(key) ?? '';
  if (text('format') !== kFormat || text('version') !== kVersion) {
    const other =
      text('format') === kFormat ? `version ${printable(text('version'))}` : 'another file';
    refuse(`must be a ${kFormat} of version ${kVersion}, got ${other}`);
  }
  const { optimizer } = trainer.trainer.optimizer;
  if (text('optimizer') !== optimizer) {
    refuse(
      `must have the state of the optimizer ${optimizer}, got that of ${printable(text('optimizer'))}. ` +
        'Name that one with --optimizer to go on with it, or run without --resume to start anew',
    );
  }
  const difference = firstDifference(identity, parseIdentity(op, file, text('identity')));
  if (difference !== undefined) {
    refuse(
      `must be of this run, got one with ${difference}. ` +
        'Give the same settings to go on with it, or run without --resume to start anew',
    );
  }
  const count = (key: string) => {
    const value = /^\d{1,15}$/.test(text(key)) ? Number(text(key)) : Number.NaN;
    if (Number.isNaN(value)) refuse(`must have a count as ${key}, got ${printable(text(key))}`);
    return value;
  };
  const step = count('step');
  const { steps } = trainer.options;
  if (step > steps) refuse(`must be at most at step ${steps}, got step ${step}`);
  const read = (name: string, dtype: 'F32' | 'F64' | 'U8', shape?: readonly number[]) => {
    const tensor = state.info(name) === undefined ? undefined : state.read(name);
    if (tensor === undefined || tensor.dtype !== dtype) {
      return refuse(`must hold ${printable(name)} in ${dtype}, got something else`);
    }
    const own = showShape(tensor.shape);
    if (shape === undefined ? tensor.shape.length !== 1 : own !== showShape(shape)) {
      const expected = shape === undefined ? 'a vector' : showShape(shape);
      refuse(`must hold ${printable(name)} as ${expected}, got ${own}`);
    }
    const data = tensor.data as Float32Array | Float64Array | Uint8Array;
    if (!data.every(Number.isFinite)) refuse('holds values that are not finite');
    return data;
  };
  const merges = trainer.rules === undefined ? [] : parseMerges(text('merges'), step);
  if (merges === undefined || merges.length !== (trainer.rules?.merges.counts.length ?? 0)) {
    return refuse(
      `must have the numbers of merges of each layer, got ${printable(text('merges'))}`,
    );
  }
  const origin = trainer.rules === undefined ? 0 : count('optimizer_origin');
  if (origin > step) refuse(`must have an optimizer_origin of at most ${step}, got ${origin}`);
  const found = trainer.storedOf(merges).map((own) => ({
    own,
    values: read(own.name, own.dtype, own.shape),
  }));
  const train = read('train_loss', 'F64', [step]);
  const heldOutStep = read('held_out_step', 'F64');
  const heldOutLoss = read('held_out_loss', 'F64', [heldOutStep.length]);
  for (const { own, values } of found) {
    const negative = own.notNegative ? values.find((value) => value < 0) : undefined;
    if (negative === undefined) continue;
    refuse(`must have no ${own.name.split('/', 1)[0]} below 0, got ${negative}`);
  }
  const late = heldOutStep.find((at) => !(Number.isInteger(at) && at >= 0 && at <= step));
  if (late !== undefined) refuse(`must have held-out steps from 0 to ${step}, got ${late}`);
  for (const { own, values } of found) own.write(values);
  trainer.resumeAt(step, origin);
  return {
    train: Array.from(train),
    heldOut: Array.from(heldOutStep, (at, i) => ({ step: at, loss: heldOutLoss[i] as number })),
  };
}

/** Counts of merges, none above the number of steps; undefined if it is something else. */
function parseMerges(json: string, step: number): readonly number[] | undefined {
  if (!/^\[\d{1,9}(,\d{1,9})*\]$/.test(json)) return undefined;
  const counts = json.slice(1, -1).split(',').map(Number);
  return counts.every((count) => count <= step) ? counts : undefined;
}

function parseIdentity(op: string, file: string, json: string): JsonObject {
  const what = `identity of ${printable(file)}`;
  const bytes = new TextEncoder().encode(json);
  return parseJsonObject(op, what, bytes, jsonBounds.config, 'ERR_CHECKPOINT');
}

/** `rank 4 instead of 8`; a field that only one of them has counts too. */
function firstDifference(wanted: RunIdentity, found: JsonObject): string | undefined {
  const of = (settings: JsonObject, key: string): unknown =>
    Object.hasOwn(settings, key) ? settings[key] : undefined;
  const show = (value: unknown) =>
    typeof value === 'string' ? printable(value) : (JSON.stringify(value) ?? 'left out');
  for (const key of new Set([...Object.keys(wanted), ...Object.keys(found)])) {
    const [before, now] = [of(found, key), of(wanted, key)];
    // Compared as JSON, because a setting may be a list.
    if (JSON.stringify(before) === JSON.stringify(now)) continue;
    const name = /^[\w ().-]{1,80}$/.test(key) ? key : printable(key);
    return `${name} ${show(before)} instead of ${show(now)}`;
  }
  return undefined;
}
