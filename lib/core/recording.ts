/** What the step that is being captured on this thread forbids, and what it notes. */

import type { Device } from './device.js';
import { fail } from './errors.js';
import type { Freeable } from './scope.js';
import { outsideScopes } from './scope.js';

/** A step that {@link captureStep} records. */
export interface StepRecord {
  readonly device: Device;
  /** What a replay writes, beside the step's own tensors. */
  readonly written: Set<object>;
  /** What the graph needs although its owner may free it. */
  readonly held: Freeable[];
}

let current: StepRecord | undefined;

/** Runs `body` with the record of a step. @throws ERR_UNSUPPORTED inside of another one */
export function whileRecording<T>(op: string, record: StepRecord, body: () => T): T {
  if (current !== undefined) {
    fail('ERR_UNSUPPORTED', op, 'the call', 'outside of a captured step', 'one inside');
  }
  current = record;
  try {
    return body();
  } finally {
    current = undefined;
  }
}

/** Notes that an op of a captured step writes to a tensor: each replay does. */
export function noteWritten(tensor: object): void {
  current?.written.add(tensor);
}

/** A view that lives as long as the step which is being captured, or else in the scope. */
export function keepForStep<T extends Freeable>(make: () => T): T {
  if (current === undefined) return make();
  const made = outsideScopes(make);
  current.held.push(made);
  return made;
}

const kRefused = {
  host: [
    'data',
    'on the device before a step is captured (make it outside of the step, and write() to it before each replay)',
    'values of the host, which every replay would repeat',
  ],
  read: ['tensor', 'read outside of a captured step', 'a read inside of it, before anything ran'],
  seed: ['seed', 'a DeviceSeed in a captured step', 'a number, which every replay would repeat'],
  sampled: [
    'the method',
    'one that draws nothing on the host in a captured step',
    'one that does, as every replay would repeat it',
  ],
} as const;

/** @throws ERR_UNSUPPORTED if a step is being captured on the device, which cannot contain this */
export function refuseInStep(op: string, device: Device, what: keyof typeof kRefused): void {
  if (current?.device !== device) return;
  const [operand, expected, actual] = kRefused[what];
  fail('ERR_UNSUPPORTED', op, operand, expected, actual);
}
