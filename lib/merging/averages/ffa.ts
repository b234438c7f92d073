import { fail } from '../../core/errors.js';
import { defineMerge, type LoraUpdate } from '../definition/definition.js';
import { sumOfFactors } from '../parts/factors.js';

/** FFA-LoRA: clients share an A that is never trained, so that the average of B alone is the average of the updates. */
export const ffa = defineMerge({
  merge: 'ffa',
  reference:
    'Sun et al., Improving LoRA in Privacy-preserving Federated Learning, 2024, arXiv:2403.12313',
  defaults: {},
  weights: 'shares',
  layer: (call) => {
    const average = sumOfFactors(call, call.weights, call.weights);
    const [{ loraA }] = call.updates as readonly [LoraUpdate];
    call.updates.forEach(({ loraA: own }, i) => {
      const at = own.findIndex((value, k) => value !== loraA[k]);
      if (at < 0) return;
      const expected = 'the same in all adapters (fedavg averages it too)';
      const got = `${own[at]} instead of ${loraA[at]} at ${at} in adapters[${i}]`;
      fail('ERR_VALUE', 'combineAdapters', `loraA of ${call.module}`, expected, got);
    });
    return { ...average, loraA };
  },
});
