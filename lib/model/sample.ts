import { fail } from '../core/errors.js';
import { checkFinite, checkInteger, readOptions } from '../core/validate.js';

/** How a token is drawn from logits. */
export interface SampleOptions {
  /** Divides the logits; 0 takes the most likely token. Default 1. */
  readonly temperature?: number;
  /** Only this many of the most likely tokens; default all. */
  readonly topK?: number;
  /** Only the most likely tokens whose probabilities first add up to this; default 1, all. */
  readonly topP?: number;
}

/** {@link SampleOptions}, checked. */
export type Sampling = Readonly<Required<SampleOptions>>;

/** @throws ERR_TYPE, ERR_VALUE */
export function checkSampling(op: string, options: SampleOptions | undefined): Sampling {
  const given = readOptions(op, options, { temperature: true, topK: true, topP: true });
  const temperature = checkFinite(op, 'temperature', given.temperature ?? 1);
  if (temperature < 0) fail('ERR_VALUE', op, 'temperature', 'at least 0', String(temperature));
  const most = Number.MAX_SAFE_INTEGER;
  const topK = given.topK === undefined ? most : checkInteger(op, 'topK', given.topK, 1, most);
  const topP = checkFinite(op, 'topP', given.topP ?? 1);
  if (topP <= 0 || topP > 1) fail('ERR_VALUE', op, 'topP', 'in (0, 1]', String(topP));
  return { temperature, topK, topP };
}

/**
 * The index that a random number picks: of `softmax(logits / temperature)` over the `topK` most likely indices, then over the
 * fewest of them that reach `topP` (Holtzman et al., The Curious Case of Neural Text Degeneration, 2020,
 * arXiv:1904.09751). Of equal logits the lower index is the more likely one.
 * @param random in [0, 1)
 */
export function sample(
  logits: Float32Array,
  { temperature, topK, topP }: Sampling,
  random: number,
): number {
  const best = logits.reduce((at, value, i) => (value > (logits[at] as number) ? i : at), 0);
  if (temperature === 0) return best;
  const candidates = likeliest(logits, Math.min(topK, logits.length));
  const max = logits[best] as number;
  const weights = candidates.map((id) => Math.exp(((logits[id] as number) - max) / temperature));
  const count = reaching(weights, topP);
  let rest = random * weights.slice(0, count).reduce((sum, weight) => sum + weight, 0);
  for (let i = 0; i < count; i++) {
    rest -= weights[i] as number;
    if (rest < 0) return candidates[i] as number;
  }
  return candidates[count - 1] as number;
}

/** The `count` indices of the largest logits, in descending order. */
function likeliest(logits: Float32Array, count: number): number[] {
  // Sorting the values is native; only the indices of the few that stay are sorted by a function.
  const least = logits.slice().sort()[logits.length - count] as number;
  const found: number[] = [];
  logits.forEach((value, i) => {
    if (value >= least) found.push(i);
  });
  found.sort((a, b) => (logits[b] as number) - (logits[a] as number) || a - b);
  return found.slice(0, count);
}

/** How many of the weights reach this share of their sum: at least one. */
function reaching(weights: readonly number[], share: number): number {
  if (share === 1) return weights.length;
  const goal = share * weights.reduce((sum, weight) => sum + weight, 0);
  let sum = 0;
  const at = weights.findIndex((weight) => {
    sum += weight;
    return sum >= goal;
  });
  return at < 0 ? weights.length : at + 1;
}
