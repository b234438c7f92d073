import { fail } from '../../core/errors.js';
import { permutation } from '../../core/random.js';
import { Tensor } from '../../core/tensor.js';
import { defineStart } from '../definition/definition.js';

/** Settings of {@link s2ft}. */
export interface S2ftSettings {
  /** Inputs that are chosen together: the size of a head for `o_proj`, 1 for `down_proj`. r is a multiple of it. */
  readonly group: number;
  /** `random`, or the groups whose columns of w have the `largest` or the `smallest` norm. */
  readonly by: string;
}

const kKinds: readonly string[] = ['random', 'largest', 'smallest'];

/**
 * r columns of w are trained: `loraA` has a row for each, 1/s at its input, and stays as it is, and `loraB = 0` is their change.
 * The authors train heads of `o_proj` and channels of `down_proj`.
 */
export const s2ft = defineStart<S2ftSettings>({
  start: 's2ft',
  reference:
    'Yang et al., S2FT: Efficient, Scalable and Generalizable LLM Fine-tuning by Structured Sparsity, 2024, arXiv:2412.06289',
  from: 'weight',
  defaults: { group: 1, by: 'random' },
  frozen: ['loraA'],
  check: ({ group, by }) => {
    if (!Number.isInteger(group) || group < 1) {
      return ['group', 'a whole number of at least 1', String(group)];
    }
    return kKinds.includes(by) ? undefined : ['by', `one of ${kKinds.join(', ')}`, by];
  },
  factors: ({ w, N, K, device, module }, { r, scaling, seed, settings }) => {
    const { group } = settings;
    const groups = Math.floor(K / group);
    const wanted = r / group;
    if (!Number.isInteger(wanted) || wanted > groups) {
      const expected = `a multiple of group (${group}), at most ${groups * group} in ${module}`;
      fail('ERR_VALUE', 'start s2ft', 'r', expected, String(r));
    }
    const chosen = orderOf(w, { N, K, groups, seed, settings }).slice(0, wanted).sort();
    const a = new Float32Array(r * K);
    chosen.forEach((own, i) => {
      for (let k = 0; k < group; k++) a[(i * group + k) * K + own * group + k] = 1 / scaling;
    });
    return { loraA: Tensor.from(a, [r, K], { device }), loraB: Tensor.zeros([N, r], { device }) };
  },
});

/** All groups, those to be chosen first. */
function orderOf(
  w: Tensor,
  {
    N,
    K,
    groups,
    seed,
    settings: { by, group },
  }: {
    readonly N: number;
    readonly K: number;
    readonly groups: number;
    readonly seed: number;
    readonly settings: S2ftSettings;
  },
): Uint32Array {
  if (by === 'random') return permutation(groups, seed, 's2ft');
  const values = w.readSync();
  const sizes = new Float64Array(groups);
  for (let n = 0; n < N; n++) {
    for (let k = 0; k < groups * group; k++) {
      const at = Math.floor(k / group);
      sizes[at] = (sizes[at] as number) + (values[n * K + k] as number) ** 2;
    }
  }
  const sign = by === 'largest' ? -1 : 1;
  const order = Uint32Array.from(sizes.keys());
  return order.sort((a, b) => sign * ((sizes[a] as number) - (sizes[b] as number)) || a - b);
}
