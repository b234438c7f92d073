import { FeatureMap } from '../../../ops/feature-map.js';
import { defineAdapter } from '../../definition/method.js';
import { checkKernel, kLinear, onesOf, tapsOf } from '../../parts/layer-kind.js';
import { coversModule } from '../../parts/scaling.js';

const reference =
  'Liu et al., Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning, 2022, arXiv:2205.05638';

/** Is this one of the config's feed-forward modules? PEFT treats one name as a pattern, several as ends of names. */
function feedforward(config: Readonly<Record<string, unknown>>, module: string): boolean {
  const names = (config.feedforward_modules ?? []) as string[] | string;
  if (typeof names === 'string') return coversModule(names, module);
  return names.some((name) => module.endsWith(name));
}

/**
 * Scales the output of a layer: `y = (x·wᵀ + bias) ⊙ scale`, scale [N, 1]. For a convolution (`kernel`,
 * the sizes of its kernel) these are its channels, and PEFT's file stores them as [1, N, 1, 1].
 */
export const ia3 = defineAdapter({
  method: 'ia3',
  reference,
  defaults: { kernel: kLinear },
  rate: 10,
  trained: ['scale'],
  shapes: ({ N }) => ({ scale: [N, 1] }),
  check: ({ K, config }) => checkKernel(config, K),
  init: (make) => ({ scale: make.full('scale', 1) }),
  forward: (t, { x, w, bias, p, N }) => t.multiply(t.linear(x, w, bias), t.reshape(p.scale, [N])),
  peft: {
    type: 'IA3',
    tensors: { scale: 'ia3_l' },
    fileShapes: ({ N, config }) => ({
      scale: config.kernel.length > 0 ? [1, N, ...onesOf(config)] : [N, 1],
    }),
    read: (_config, _module, shapeOf) => ({ kernel: shapeOf('scale')?.slice(2) ?? kLinear }),
    write: () => ({ feedforward_modules: [] }),
  },
});

/**
 * Scales the input of a feed-forward layer: `y = (x ⊙ scale)·wᵀ + bias`, scale [1, K]. For a convolution
 * (`kernel`; x are patches, {@link Im2col}) a channel has one value for all taps: scale [1, K / taps]. PEFT's
 * file gives the number of taps but not the kernel, which is read as `[taps, 1]`.
 */
export const ia3Input = defineAdapter({
  method: 'ia3-input',
  reference,
  defaults: { kernel: kLinear },
  rate: 10,
  trained: ['scale'],
  shapes: ({ K, config }) => ({ scale: [1, K / tapsOf(config)] }),
  check: ({ K, config }) => checkKernel(config, K),
  init: (make) => ({ scale: make.full('scale', 1) }),
  prepare: ({ K, config, device }) => {
    const taps = tapsOf(config);
    return taps === 1 ? undefined : FeatureMap.repeat(K / taps, taps, 'inner', { device });
  },
  forward: (t, { x, w, bias, p, state, K }) => {
    const scale = state === undefined ? p.scale : t.features(p.scale, state);
    return t.linear(t.multiply(x, t.reshape(scale, [K])), w, bias);
  },
  peft: {
    type: 'IA3',
    when: feedforward,
    // PEFT needs feedforward_modules to be among them.
    wholeTargets: true,
    tensors: { scale: 'ia3_l' },
    fileShapes: ({ K, config }) => ({ scale: [1, K / tapsOf(config), ...onesOf(config)] }),
    read: (_config, _module, shapeOf, { inFeatures: K }) => {
      const [, channels = 0, ...ones] = shapeOf('scale') ?? [];
      const whole = channels > 0 && K % channels === 0;
      return { kernel: whole ? ones.map((one, i) => (i === 0 ? K / channels : one)) : kLinear };
    },
    write: (_, modules) => ({ feedforward_modules: modules }),
  },
});
