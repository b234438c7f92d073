import { defineRule } from '../definition/define.js';
import type { RuleLayer, RuleRun } from '../definition/run.js';

/**
 * The rule by which DyLoRA needs less time: a step whose passes use the first b ranks of the adapter `dylora` changes rank b
 * alone, the last row of `loraA` and the last column of `loraB` that have a gradient. Without the rule it changes all b.
 */
export const dylora = defineRule<Record<never, never>>({
  rule: 'dylora',
  reference:
    'Valipour et al., DyLoRA: Parameter-Efficient Tuning of Pre-trained Models using Dynamic Search-Free Low-Rank Adaptation, 2022, arXiv:2210.07558',
  defaults: {},
  claims: ['step'],
  adapters: ['dylora'],
  mask: (run, name) => {
    const layer = layerOf(run, name);
    const at = layer === undefined ? -1 : lastRank(layer);
    if (layer === undefined || at < 0) return undefined;
    const { r, K, N, parameters } = layer;
    const down = parameters.loraA?.name === name;
    const mask = new Uint8Array(r * (down ? K : N));
    if (down) mask.fill(1, at * K, (at + 1) * K);
    else for (let n = 0; n < N; n++) mask[n * r + at] = 1;
    return mask;
  },
});

const layerOf = ({ layers, parameters }: RuleRun<object>, name: string) => {
  const { module } = parameters.get(name) ?? {};
  return layers.find((layer) => layer.module === module);
};

/** The last rank that a pass has used; -1 without gradients. */
function lastRank({ r, K, N, parameters: { loraA, loraB } }: RuleLayer): number {
  const [a, b] = [loraA?.gradient, loraB?.gradient];
  for (let i = r - 1; i >= 0; i--) {
    if (a?.subarray(i * K, (i + 1) * K).some((value) => value !== 0)) return i;
    for (let n = 0; n < N; n++) if (b !== undefined && b[n * r + i] !== 0) return i;
  }
  return -1;
}
