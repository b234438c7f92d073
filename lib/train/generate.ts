import { valuesOf } from '../tfjs/backend-memory.js';
import { tensorflow } from '../tfjs/tensorflow.js';
import type { BaseModel } from './base-model.js';
import type { ModelKernels } from './kernels.js';
import { type AdapterLookup, llamaFeatures, llamaLogits } from './llama.js';
import { uniform } from './random.js';

/** How {@link generate} samples. */
export interface GenerateOptions {
  /** Maximum number of tokens to add. */
  readonly tokens: number;
  /** Divides the logits; 0 takes the most likely token. */
  readonly temperature: number;
  /** Sample among this many most likely tokens. */
  readonly topK: number;
  readonly seed: number;
  /** Ends the text; not part of the result. */
  readonly eosIds: readonly number[];
  /** Called before each token; may throw to stop. */
  readonly onToken?: () => void | Promise<void>;
}

/**
 * Continues a text. Every token runs the whole sequence again: for the short samples of a report, a
 * cache of keys and values would not pay off.
 *
 * @param prompt at least one token id
 * @returns the new ids, without the prompt
 */
export async function generate(
  base: BaseModel,
  prompt: readonly number[],
  kernels: ModelKernels,
  adapters: AdapterLookup | undefined,
  options: GenerateOptions,
): Promise<number[]> {
  const tf = tensorflow();
  const { maxPositionEmbeddings } = base.config;
  const random = uniform(options.seed, 'sample');
  const ids = [...prompt];
  for (let i = 0; i < options.tokens; i++) {
    await options.onToken?.();
    const context = Int32Array.from(ids.slice(-maxPositionEmbeddings));
    const logits = tf.tidy(() => {
      const batch = { ids: context, B: 1, T: context.length };
      const features = llamaFeatures(base, batch, kernels, adapters);
      const last = tf.slice(features, [context.length - 1, 0], [1, -1]);
      return valuesOf(llamaLogits(base, last, kernels)).slice();
    });
    const next = draw(logits, options.temperature, options.topK, random());
    if (options.eosIds.includes(next)) break;
    ids.push(next);
  }
  return ids.slice(prompt.length);
}

/** An index sampled from softmax(logits / temperature) over the topK largest. */
function draw(logits: Float32Array, temperature: number, topK: number, random: number): number {
  const order = Array.from(logits.keys()).sort(
    (a, b) => (logits[b] as number) - (logits[a] as number) || a - b,
  );
  const best = order[0] as number;
  if (temperature <= 0) return best;
  const candidates = order.slice(0, Math.max(1, topK));
  const max = logits[best] as number;
  const weights = candidates.map((id) => Math.exp(((logits[id] as number) - max) / temperature));
  let rest = random * weights.reduce((sum, weight) => sum + weight, 0);
  for (const [i, weight] of weights.entries()) {
    rest -= weight;
    if (rest < 0) return candidates[i] as number;
  }
  return candidates[candidates.length - 1] as number;
}
