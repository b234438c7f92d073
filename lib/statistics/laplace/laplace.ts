import { fail, wrongType } from '../../core/errors.js';
import { scope } from '../../core/scope.js';
import type { Tensor } from '../../core/tensor.js';
import { checkInteger, readOptions } from '../../core/validate.js';
import { KroneckerSums } from './curvature.js';
import { classPasses, type LogitsPass } from './passes.js';
import { checkPrecision, LaplacePosterior } from './posterior.js';

/** Examples with their labels. */
export interface LabelledPass {
  readonly pass: LogitsPass;
  /** The class of each example. */
  readonly labels: ArrayLike<number>;
}

/** How {@link laplace} works. */
export interface LaplaceOptions {
  /** Default 1; {@link LaplacePosterior.fitPriorPrecision} chooses one. */
  readonly priorPrecision?: number;
  /** Directions of the sides of N and K features; default 10, as in the paper. A side of at most so many has all of them. */
  readonly rank?: number;
  /** Tensors that are uncertain; default all variables of the passes. */
  readonly trained?: readonly Tensor[];
  /** Called before each pass; may throw to stop. */
  readonly onBatch?: (done: number, total: number) => void | Promise<void>;
}

/**
 * Laplace-LoRA: a posterior of trained adapters (Yang and others, Bayesian Low-rank Adaptation for Large Language Models,
 * 2023, arXiv:2308.13111). The curvature of the cross-entropy is exact over the classes, a backward pass each, and a
 * Kronecker product per factor: covariances of its inputs and of its gradients, over all rows and 1 / rows in total. It
 * needs a matrix of [K, K] and [N, N] a layer while it is fitted, and `rank` vectors afterwards. For several answers of a
 * language model, {@link choiceLogits} gives the logits.
 *
 * The trained tensors are those of {@link perExampleGradients}.
 * @throws ERR_TYPE · ERR_SHAPE · ERR_VALUE · ERR_NON_FINITE · ERR_UNSUPPORTED for other trained tensors; what a pass throws
 * @example
 * using posterior = await laplace(batches.map(({ ids, labels }) => ({ pass: logitsOf(ids), labels })));
 * posterior.fitPriorPrecision();
 * const probabilities = predictiveProbabilities(posterior.predict(logitsOf(test)));
 */
export async function laplace(
  passes: readonly LabelledPass[],
  options?: LaplaceOptions,
): Promise<LaplacePosterior> {
  const op = 'laplace';
  const given = readOptions(op, options, {
    priorPrecision: true,
    rank: true,
    trained: true,
    onBatch: true,
  });
  const priorPrecision = checkPrecision(op, given.priorPrecision ?? 1);
  const rank = checkInteger(op, 'rank', given.rank ?? 10, 1, 2 ** 20);
  const { trained, onBatch = () => {} } = given;
  if (!Array.isArray(passes)) throw wrongType(op, 'passes', 'an array of { pass, labels }', passes);
  if (passes.length === 0) fail('ERR_VALUE', op, 'passes', 'at least one', 'none');
  const sums = new KroneckerSums();
  let [examples, logLikelihood] = [0, 0];
  try {
    for (const [i, batch] of passes.entries()) {
      await onBatch(i, passes.length);
      if (typeof batch !== 'object' || batch === null) {
        throw wrongType(op, `passes[${i}]`, 'an object of pass and labels', batch);
      }
      scope(() => {
        const made = classPasses(op, batch.pass, trained, fisherRoot);
        try {
          logLikelihood += likelihood(op, made.logits, made.classes, batch.labels);
          examples += made.examples;
          let first = true;
          for (const rows of made.backward()) {
            sums.add(rows, first);
            first = false;
            for (const { small, big } of rows) {
              small.dispose();
              big.dispose();
            }
          }
        } finally {
          made.dispose();
        }
      });
    }
    const curvatures = sums.decompose(rank);
    return new LaplacePosterior({ curvatures, examples, logLikelihood }, priorPrecision);
  } finally {
    sums.dispose();
  }
}

/**
 * Of class c, √p_c (e_c − p): the sum of their outer products is the Hessian of the cross-entropy by the logits,
 * diag(p) − p pᵀ.
 */
function fisherRoot(
  c: number,
  { examples, classes }: { readonly examples: number; readonly classes: number },
  logits: Float64Array,
): Float32Array {
  const made = new Float32Array(examples * classes);
  for (let n = 0; n < examples; n++) {
    const p = softmax(logits.subarray(n * classes, (n + 1) * classes));
    const root = Math.sqrt(p[c] as number);
    for (let i = 0; i < classes; i++) {
      made[n * classes + i] = root * ((i === c ? 1 : 0) - (p[i] as number));
    }
  }
  return made;
}

/** @internal */
export function softmax(logits: Float64Array): Float64Array {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const sizes = logits.map((value) => Math.exp(value - largest));
  const sum = sizes.reduce((a, b) => a + b, 0);
  return sizes.map((value) => value / sum);
}

/** Σ log p(label) */
function likelihood(
  op: string,
  logits: Float64Array,
  classes: number,
  labels: ArrayLike<number>,
): number {
  const examples = logits.length / classes;
  if (labels?.length !== examples) {
    fail('ERR_SHAPE', op, 'labels', `of ${examples} examples`, String(labels?.length));
  }
  let sum = 0;
  for (let n = 0; n < examples; n++) {
    const label = checkInteger(op, `labels[${n}]`, labels[n], 0, classes - 1);
    sum += Math.log(softmax(logits.subarray(n * classes, (n + 1) * classes))[label] as number);
  }
  return sum;
}
