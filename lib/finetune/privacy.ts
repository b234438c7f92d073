/** Differential privacy of a fine-tune: what it asks of the other options, its noise, and what it guarantees. */

import { LowrankError } from '../core/errors.js';
import { printable } from '../core/printable.js';
import { MOST_EXPERTS } from '../ops/experts/expert-route.js';
import { needsData } from '../starts/starter.js';
import { noiseForPrivacy, privacyAccountant } from '../statistics/privacy/accountant.js';
import type { TrainOptions } from '../train/model-trainer.js';
import type { FinetuneOptions } from './finetune-files.js';

const kOp = 'finetune';

/** What a private run guarantees its training sequences. */
export interface RunPrivacy {
  /** The adapter is (epsilon, delta)-differentially private with respect to one training sequence more or less. */
  readonly epsilon: number;
  readonly delta: number;
  /** Standard deviation over the bound of a sequence's gradient. */
  readonly noise: number;
  readonly clip: number;
  /** The probability with which a step takes a sequence. */
  readonly sampleRate: number;
  readonly sequences: number;
}

const refuse = (code: 'ERR_UNSUPPORTED' | 'ERR_VALUE', text: string): never => {
  throw new LowrankError(code, `${kOp}: ${text}`, { op: kOp });
};

/**
 * Rejects what a private run cannot have, before anything is read.
 * @throws LowrankError `ERR_UNSUPPORTED`, `ERR_VALUE`
 */
export function requirePrivate({ privacy, adapter, adapterFile, train }: FinetuneOptions): void {
  if (privacy === undefined) return;
  const { method, settings, start, targets } = adapter;
  const known = adapterFile !== undefined || ['lora', 'lora-fa'].includes(method.method);
  if (!known) {
    const expected = 'lora or lora-fa, whose gradients of single sequences are known';
    refuse(
      'ERR_UNSUPPORTED',
      `--adapter must be ${expected}, in private runs, got ${method.method}`,
    );
  }
  const { dropout, loraBias } = { ...method.definition.defaults, ...settings } as Readonly<
    Record<string, unknown>
  >;
  if (typeof dropout === 'number' && dropout > 0) {
    refuse('ERR_UNSUPPORTED', `--dropout must be 0 in private runs, got ${dropout}`);
  }
  if (loraBias === true) {
    refuse('ERR_UNSUPPORTED', 'loraBias must be false in private runs, got true');
  }
  if (start !== undefined && needsData(start.start)) {
    const got = `${start.start.start}, which reads the training text`;
    refuse('ERR_UNSUPPORTED', `--init must be one without data in private runs, got ${got}`);
  }
  if (train.recompute) {
    const text =
      '--recompute must be left out in private runs, which keep the gradients of outputs';
    refuse(
      'ERR_UNSUPPORTED',
      `${text}. A smaller --batch with more --accumulate needs less memory`,
    );
  }
  if (train.dpoBeta !== undefined) {
    refuse('ERR_UNSUPPORTED', '--loss must be lm in private runs, got dpo');
  }
  if (train.batch > MOST_EXPERTS) {
    const expected = `at most ${MOST_EXPERTS} in private runs`;
    refuse(
      'ERR_VALUE',
      `--batch must be ${expected}, got ${train.batch}. More go into --accumulate`,
    );
  }
  const experts =
    targets === 'all-linear' ? undefined : targets.find((name) => /^experts\./.test(name));
  if (experts !== undefined) {
    const got = printable(experts);
    refuse('ERR_UNSUPPORTED', `--targets must be without experts in private runs, got ${got}`);
  }
}

/**
 * The noise of a run, and its guarantee.
 * @param count training sequences
 * @throws LowrankError `ERR_VALUE`
 */
export function privacyOf(
  { privacy, train }: FinetuneOptions,
  count: number,
): RunPrivacy | undefined {
  if (privacy === undefined) return undefined;
  const { steps, batch, accumulate, clip } = train;
  const { delta } = privacy;
  const mean = batch * accumulate;
  if (mean > count) {
    const text = `--batch times --accumulate must be at most the ${count} training sequences, got ${mean}`;
    refuse('ERR_VALUE', text);
  }
  if (!(delta < 1 / count)) {
    const text = `--delta must be below 1 / ${count}, one over the training sequences, got ${delta}`;
    refuse('ERR_VALUE', text);
  }
  const run = { sampleRate: mean / count, steps, delta };
  const noise =
    'noise' in privacy ? privacy.noise : noiseForPrivacy({ ...run, epsilon: privacy.epsilon });
  const { epsilon } = privacyAccountant({ ...run, noise });
  return { epsilon, delta, noise, clip, sampleRate: run.sampleRate, sequences: count };
}

/** The settings of training with the noise of a private run. */
export function privateTrain(train: TrainOptions, privacy: RunPrivacy | undefined): TrainOptions {
  return privacy === undefined ? train : { ...train, privacy: { noise: privacy.noise } };
}
