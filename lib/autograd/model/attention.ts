import type { Tensor } from '../../core/tensor.js';
import {
  type AttentionInput,
  type AttentionOptions,
  type AttentionShape,
  attention,
  attentionBackward,
} from '../../ops/model/attention.js';
import { checkStep, type GradientTape, type Value } from '../gradient-tape.js';

/** Queries, keys and values on a tape. */
export type AttentionValues =
  | { readonly q: Value; readonly k: Value; readonly v: Value }
  | { readonly qkv: Value };

/** `o = attention(input)`: o and the logarithms of its sums are kept. No gradient goes through a cache. */
export function recordAttention(
  t: GradientTape,
  values: AttentionValues,
  { cache, sinks, ...options }: AttentionShape & Pick<AttentionOptions, 'cache' | 'sinks'>,
): Value {
  checkStep('attention', t, { ...values });
  const { inputs, input } =
    'qkv' in values
      ? { inputs: [values.qkv], input: { qkv: values.qkv.tensor } }
      : {
          inputs: [values.q, values.k, values.v],
          input: { q: values.q.tensor, k: values.k.tensor, v: values.v.tensor },
        };
  const keep = t.recording && inputs.some((value) => value.differentiable);
  const { o, lse } = attention(input, {
    ...options,
    ...(cache && { cache }),
    ...(sinks && { sinks }),
    keep,
  });
  const keeps = [...inputs.map(({ tensor }) => tensor), o, ...(lse === undefined ? [] : [lse])];
  return t.record(o, inputs, keeps, (dy, pass) => {
    if (lse === undefined) return;
    const gradients = attentionBackward<AttentionInput>(dy, input, { ...options, o, lse });
    const made =
      'dqkv' in gradients ? [gradients.dqkv] : [gradients.dq, gradients.dk, gradients.dv];
    for (const [i, value] of inputs.entries()) pass.give(value, made[i] as Tensor);
  });
}
