import { defineAdapter } from './method.js';
import { coversModule } from './scaling.js';

const reference =
  'Liu et al., Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning, 2022, arXiv:2205.05638';

/** Is this one of the config's feed-forward modules? PEFT takes one name for a pattern, several for ends of names. */
function feedforward(config: Readonly<Record<string, unknown>>, module: string): boolean {
  const names = (config.feedforward_modules ?? []) as string[] | string;
  if (typeof names === 'string') return coversModule(names, module);
  return names.some((name) => module.endsWith(name));
}

/** Scales the output of a layer: `y = (x·wᵀ + bias) ⊙ scale`. */
export const ia3 = defineAdapter({
  method: 'ia3',
  reference,
  defaults: {},
  rate: 10,
  trained: ['scale'],
  shapes: ({ N }) => ({ scale: [N, 1] }),
  init: (make) => ({ scale: make.full('scale', 1) }),
  forward: (t, { x, w, bias, p, N }) => t.multiply(t.linear(x, w, bias), t.reshape(p.scale, [N])),
  peft: {
    type: 'IA3',
    tensors: { scale: 'ia3_l' },
    read: () => ({}),
    write: () => ({ feedforward_modules: [] }),
  },
});

/** The same on the input of a feed-forward layer: `y = (x ⊙ scale)·wᵀ + bias`. */
export const ia3Input = defineAdapter({
  method: 'ia3-input',
  reference,
  defaults: {},
  rate: 10,
  trained: ['scale'],
  shapes: ({ K }) => ({ scale: [1, K] }),
  init: (make) => ({ scale: make.full('scale', 1) }),
  forward: (t, { x, w, bias, p, K }) => t.linear(t.multiply(x, t.reshape(p.scale, [K])), w, bias),
  peft: {
    type: 'IA3',
    when: feedforward,
    tensors: { scale: 'ia3_l' },
    read: () => ({}),
    write: (_, modules) => ({ feedforward_modules: modules }),
  },
});
