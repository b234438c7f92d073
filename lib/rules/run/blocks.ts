import type { Decoder } from '../../model/decoder.js';
import type { LinearWeights } from '../../model/decoder-weights.js';
import type { RuleBlock } from '../definition/run.js';

/** The halves of the blocks of a model. */
export function blocksOf({ weights, config }: Decoder): readonly RuleBlock[] {
  const size = (linears: readonly LinearWeights[]) =>
    linears.reduce((sum, { place: { N, K } }) => sum + N * K, 0);
  return weights.layers.flatMap((layer, i) => {
    const { qkv, attentionOutput, gateUp, down, experts } = layer;
    const perToken = config.layers[i]?.mlp.experts?.perToken ?? 0;
    const routed = experts === undefined ? [] : [experts.gateUp.place, experts.down.place];
    const inner = routed.reduce((sum, { N, K }) => sum + perToken * N * K, 0);
    return [
      { name: `layers.${i}.attention`, cost: size([...qkv, attentionOutput]) },
      {
        name: `layers.${i}.mlp`,
        cost: inner + size([...gateUp, ...(down === undefined ? [] : [down])]),
      },
    ];
  });
}
