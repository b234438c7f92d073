/** Steps of differentially private training: clipped sums of single examples' gradients, with noise. */

import { fail, wrongType } from '../core/errors.js';
import { Tensor } from '../core/tensor.js';
import { checkFinite, readOptions } from '../core/validate.js';
import { multiplyAdd } from '../ops/elementwise.js';
import { perExampleGradients } from '../statistics/per-example/gradients.js';
import { derivedSeed } from '../statistics/privacy/draws.js';
import type { PassPlace, TrainPass } from './train-pass.js';

/** Makes the steps of a {@link Trainer} differentially private: see {@link privacyAccountant}. */
export interface PrivateSteps {
  /** The noise's standard deviation over the trainer's `clip`, which bounds the norm of each example's gradient; 0 adds none. */
  readonly noise: number;
  /** Examples of a step on average, by which the sum of gradients is divided. */
  readonly examples: number;
}

/** @throws ERR_TYPE, ERR_VALUE */
export function checkPrivacy(
  op: string,
  privacy: PrivateSteps | undefined,
  clip: number | undefined,
): PrivateSteps | undefined {
  if (privacy === undefined) return undefined;
  const given = readOptions(op, privacy, { noise: true, examples: true });
  const noise = checkFinite(op, 'privacy.noise', given.noise);
  if (noise < 0) fail('ERR_VALUE', op, 'privacy.noise', 'at least 0', String(noise));
  const examples = checkFinite(op, 'privacy.examples', given.examples);
  if (examples <= 0) fail('ERR_VALUE', op, 'privacy.examples', 'above 0', String(examples));
  if (clip === undefined) {
    const expected = 'given with privacy (it bounds the norm of an example)';
    fail('ERR_VALUE', op, 'clip', expected, 'none');
  }
  return { noise, examples };
}

/** What one pass gives: its loss, the clipped sum of each parameter's gradients, and the number of examples. */
export interface PrivatePass {
  readonly loss: Tensor;
  readonly sums: readonly (Tensor | undefined)[];
  readonly examples: number;
}

/** @param trained the parameters whose gradients count */
export function runPrivatePass(
  op: string,
  pass: TrainPass,
  place: PassPlace,
  { trained, all, clip }: { trained: readonly Tensor[]; all: readonly Tensor[]; clip: number },
): PrivatePass {
  const found = perExampleGradients(
    (tape) => {
      const made = pass(tape, place);
      if (!('loss' in made) || made.examples === undefined) {
        throw wrongType(op, 'examples', 'the number of examples of a private pass', undefined);
      }
      const [added] = made.added ?? [];
      if (added !== undefined) {
        fail('ERR_UNSUPPORTED', op, 'added', 'without gradients in private steps', 'gradients');
      }
      return { loss: made.loss, examples: made.examples };
    },
    { trained },
  );
  const sums = found.clipped(clip);
  // A handle of its own, because the scope of the caller frees `found`.
  const loss = found.loss.reshape([1]);
  return {
    loss,
    sums: all.map((tensor) => sums.get(tensor)),
    examples: found.examples,
  };
}

/** The gradient of a private step: the clipped sum and normal noise, over the mean number of examples. */
export function noisyMean(
  sum: Tensor | undefined,
  like: Tensor,
  { noise, examples }: PrivateSteps,
  { clip, seed, step, name }: { clip: number; seed: number; step: number; name: string },
): Tensor {
  const { shape, device } = like;
  const whole = sum ?? Tensor.zeros(shape, { device });
  if (noise === 0) return multiplyAdd({ a: whole, alpha: 1 / examples });
  const drawn = Tensor.randn(shape, { seed: derivedSeed(seed, 'noise', step, name), device });
  const beta = (noise * clip) / examples;
  return multiplyAdd({ a: whole, c: drawn, alpha: 1 / examples, beta });
}
