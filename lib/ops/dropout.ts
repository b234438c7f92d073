import { checkShape, checkTensor } from '../core/check-tensor.js';
import { fail, wrongType } from '../core/errors.js';
import { refuseInStep } from '../core/recording.js';
import type { Tensor } from '../core/tensor.js';
import { checkSameDevice, seedWords } from '../core/validate.js';

/** Dropout options of a call. */
export interface DropoutCall {
  seed?: number | undefined;
  dropoutMask?: Tensor | undefined;
}

/** Dropout of one call in the addon's form. */
export interface Dropout {
  dropout: number;
  seed: number;
  words: [number, number];
  mask: Tensor | undefined;
}

/** The option `training`; true by default. @throws ERR_TYPE */
export function checkTraining(op: string, training: unknown = true): boolean {
  if (typeof training !== 'boolean') throw wrongType(op, 'training', 'a boolean', training);
  return training;
}

/**
 * Dropout with probability `dropout` over an x of `shape`, on the device of `near`.
 * @throws ERR_TYPE, ERR_VALUE, ERR_SHAPE, ERR_DEVICE, ERR_DISPOSED
 */
export function resolveDropout(
  op: string,
  dropout: number,
  owner: string,
  shape: readonly number[],
  near: Tensor,
  given: DropoutCall,
  training: boolean,
): Dropout {
  const { seed, dropoutMask } = given;
  const words = seed === undefined ? undefined : seedWords(op, seed);
  if (dropoutMask !== undefined) {
    checkTensor(op, 'dropoutMask', dropoutMask);
    checkShape(op, 'dropoutMask', dropoutMask, shape);
    checkSameDevice(op, 'dropoutMask', dropoutMask, near);
  }
  if (!training) return { dropout: 0, seed: 0, words: [0, 0], mask: undefined };
  if (dropout > 0 && dropoutMask === undefined && words === undefined) {
    fail('ERR_VALUE', op, 'seed', `given (${owner} has dropout)`, 'none');
  }
  if (dropout > 0 && dropoutMask === undefined) refuseInStep(op, near.device, 'seed');
  return { dropout, seed: seed ?? 0, words: words ?? [0, 0], mask: dropoutMask };
}
