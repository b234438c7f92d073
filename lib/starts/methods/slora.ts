import { readAdapterFolder } from '../../adapters/peft/folder.js';
import { adapterFromPeft } from '../../adapters/peft/peft.js';
import type { Tensor } from '../../core/tensor.js';
import { svd } from '../../linalg/tensors/svd.js';
import { multiplyAdd } from '../../ops/elementwise.js';
import { defineStart } from '../definition/definition.js';
import { balanced } from '../parts/factors.js';
import { checkIterations, passesOf } from '../parts/iterations.js';

/**
 * SLoRA's second stage: the first one has trained some entries of w (`shira`), and the nearest update of rank r to theirs begins
 * this one, `s · loraB · loraA = (w₁ − w)ᵣ`. The base is w. `stage` is the adapter folder of the first stage, of any method that
 * merges.
 */
export const slora = defineStart({
  start: 'slora',
  reference:
    'Babakniya et al., SLoRA: Federated Parameter Efficient Fine-Tuning of Language Models, 2023, arXiv:2308.06522',
  from: 'weight',
  defaults: { stage: '', iterations: 12 },
  check: (settings) =>
    settings.stage === ''
      ? ['stage', 'the adapter folder of the first stage', 'none']
      : checkIterations(settings),
  factors: ({ w, module, N, K, device }, { r, scaling, seed, settings }) => {
    const place = { inFeatures: K, outFeatures: N, device, weight: w };
    const { weight } = adapterFromPeft(readAdapterFolder(settings.stage), module, place).merge(w);
    const update = multiplyAdd({ a: weight as Tensor, c: w, beta: -1 });
    return balanced(svd(update, { r, seed, iterations: passesOf(settings) }), scaling);
  },
});
