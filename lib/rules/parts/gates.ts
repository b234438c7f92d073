import { fail } from '../../core/errors.js';
import type { RuleLayer, RuleParameter } from '../definition/run.js';

/** Methods whose ranks have a factor each: `loraE` of AdaLoRA, `gate` of SoRA. */
export const kGated = ['adalora', 'sora'] as const;

/** The factors of a layer's ranks, [r]. */
export function gateOf({ module, parameters }: RuleLayer): RuleParameter {
  const found = parameters.loraE ?? parameters.gate;
  return (
    found ?? fail('ERR_UNSUPPORTED', 'rule', module, `a layer of ${kGated.join(' or ')}`, 'another')
  );
}

/** Both factors of a layer. */
export function factorsOf({ module, parameters: { loraA, loraB } }: RuleLayer) {
  if (loraA === undefined || loraB === undefined) {
    return fail('ERR_UNSUPPORTED', 'rule', module, 'a layer with loraA and loraB', 'another');
  }
  return { loraA, loraB };
}

/** Sets the factors of the ranks that are not kept to 0. */
export function silence(layer: RuleLayer, kept: ArrayLike<number>): void {
  const gate = gateOf(layer);
  gate.write(gate.values().map((value, i) => (kept[i] === 1 ? value : 0)));
}
