import type { NativeHandle } from './binding.js';
import { native } from './binding.js';
import { type Device, resolveDevice } from './device.js';
import { fail, markClass, notConstructed, wrongType } from './errors.js';
import { type StepRecord, whileRecording } from './recording.js';
import { freeAll, outsideScopes, scope, track } from './scope.js';
import { Tensor } from './tensor.js';
import { readOptions } from './validate.js';

/** How {@link captureStep} works. */
export interface CaptureOptions {
  /** A CUDA device; default {@link defaultDevice}. */
  device?: Device;
}

/**
 * A step as a graph of its device, made by {@link captureStep}. It owns the memory of its tensors until
 * {@link CapturedStep.dispose}, or the end of the scope.
 */
export class CapturedStep<T> implements Disposable {
  /** What the step returned. Its tensors have the values of the last replay, and an error before the first. */
  readonly result: T;
  /** Launches of kernels in the graph. The host makes one for all of them. */
  readonly launches: number;
  #handle: NativeHandle | undefined;
  readonly #record: StepRecord;

  /** @internal */
  constructor(handle: NativeHandle, record: StepRecord, result: T, launches: number) {
    if (record?.written === undefined) throw notConstructed('CapturedStep', 'captureStep');
    this.#handle = handle;
    this.#record = record;
    this.result = result;
    this.launches = launches;
    track(this);
  }

  get disposed(): boolean {
    return this.#handle === undefined;
  }

  /**
   * Queues one run of the step, in the order of the device's queue: one launch, no allocation, and no wait.
   * @throws ERR_DISPOSED if the step, or a tensor from outside that it uses, was freed
   */
  replay(): void {
    const op = 'replay';
    const handle = this.#handle;
    if (handle === undefined) fail('ERR_DISPOSED', op, 'this', 'a live step', 'a disposed one');
    native(op, (raw) => raw.replay(handle));
    for (const tensor of this.#record.written) Tensor.written(tensor as Tensor);
  }

  /** Frees the graph and its memory once no queued replay needs them. Twice is a no-op. */
  dispose(): void {
    const handle = this.#handle;
    if (handle === undefined) return;
    this.#handle = undefined;
    freeAll(this.result);
    for (const each of this.#record.held) each.dispose();
    native('CapturedStep.dispose', (raw) => raw.disposeRecording(handle));
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
markClass(CapturedStep, 'CapturedStep');

/**
 * Records the ops of `body` as a CUDA graph. The body runs once, to say what the step is; nothing is computed until
 * {@link CapturedStep.replay}, which runs all of it again with one launch. All tensors of the step stay at their
 * addresses, so a replay reads what those from outside hold then: write ids, targets, a learning rate or a
 * {@link DeviceSeed} before it. Shapes, numbers and choices of JavaScript are those of the recording: another shape
 * is another captured step.
 *
 * Run the step once or twice as usual before: what it makes only once, like a table, then exists. Ops of other
 * threads on the device are not part of it. What a kernel alone can judge (a value that is not finite in f16, rows of
 * documents) is not reported by a replay.
 * @param body synchronous. What it returns becomes {@link CapturedStep.result}; all else that it makes is freed
 * @throws ERR_TYPE; ERR_UNSUPPORTED if the device is no CUDA device, or for an op that cannot be recorded: a read, host
 * values, a number as seed, adapters of a batch. The error names the op. Nothing was computed then, and no tensor changed
 * @example
 * const step = captureStep(() => ({ loss: trainOnce(ids, targets) }), { device: 'cuda' });
 * ids.write(next); // new values in the same memory
 * step.replay();
 * const [loss] = await step.result.loss.read();
 */
export function captureStep<T>(body: () => T, options?: CaptureOptions): CapturedStep<T> {
  const op = 'captureStep';
  if (typeof body !== 'function') throw wrongType(op, 'body', 'a function', body);
  const device = resolveDevice(op, readOptions(op, options, { device: true }).device);
  const record: StepRecord = { device, written: new Set(), held: [] };
  const handle = whileRecording(op, record, () => native(op, (raw) => raw.beginRecording(device)));
  let result: T;
  try {
    result = whileRecording(op, record, () => outsideScopes(() => scope(body)));
  } catch (error) {
    abandon(handle, record);
    throw error;
  }
  try {
    if (result instanceof Promise) {
      result.catch(() => {});
      throw wrongType(op, 'body', 'a synchronous function', result);
    }
    const launches = native(op, (raw) => raw.endRecording(handle, false));
    return new CapturedStep(handle, record, result, launches);
  } catch (error) {
    freeAll(result);
    abandon(handle, record);
    throw error;
  }
}

function abandon(handle: NativeHandle, { held }: StepRecord): void {
  for (const each of held) each.dispose();
  native('captureStep', (raw) => {
    raw.endRecording(handle, true);
    raw.disposeRecording(handle);
  });
}
