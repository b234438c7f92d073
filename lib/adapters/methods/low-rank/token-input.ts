/** Methods whose adapter sees another input than the base weight, or only some tokens. */
import type { Value } from '../../../autograd/gradient-tape.js';
import { fail } from '../../../core/errors.js';
import { defineAdapter } from '../../definition/method.js';
import { alphaFields, kAlphaPatterns, readAlpha, scalingOf } from '../../parts/scaling.js';

const defaults = { r: 8, loraAlpha: 16, rslora: false, dropout: 0 };

/** An input that the call must give. @throws ERR_VALUE */
function needed(method: string, name: string, shape: string, value: Value | undefined): Value {
  if (value !== undefined) return value;
  return fail('ERR_VALUE', `${method}.forward`, `inputs.${name}`, `a tensor ${shape}`, 'none');
}

/**
 * Mixes the adapter's input with the token's first embedding x0 (`inputs.initial` [..., K]), against
 * over-smoothing in deep layers: `y = x·wᵀ + scaling · (((1 − lambda) · x + lambda · x0) · loraAᵀ) · loraBᵀ`.
 */
export const sibo = defineAdapter({
  method: 'sibo',
  reference:
    'Wen et al., SIBO: A Simple Booster for Parameter-Efficient Fine-Tuning, 2024, arXiv:2402.11896',
  defaults: { ...defaults, lambda: 0.2 },
  trained: ['loraA', 'loraB'],
  mergeable: false,
  shapes: ({ N, K, config: { r } }) => ({ loraA: [r, K], loraB: [N, r] }),
  init: (make) => ({ loraA: make.kaiming('loraA'), loraB: make.zeros('loraB') }),
  inputs: ['initial'],
  forward: (t, { x, w, bias, p, config, inputs }) => {
    const { lambda, dropout } = config;
    const initial = needed('sibo', 'initial', '[..., K]', inputs.initial);
    const mixed = t.add(x, initial, 1 - lambda, lambda);
    const h = t.shrink(mixed, p.loraA, { dropout });
    return t.expand(x, w, h, p.loraB, { scaling: scalingOf(config), bias });
  },
});

/**
 * ResLoRA's input shortcut: the adapter sees the input of this layer plus that of the previous one
 * (`inputs.previous` [..., K]): `y = x·wᵀ + scaling · ((x + previous) · loraAᵀ) · loraBᵀ`.
 */
export const resloraInput = defineAdapter({
  method: 'reslora-input',
  reference:
    'Shi et al., ResLoRA: Identity Residual Mapping in Low-Rank Adaption, 2024, arXiv:2402.18039',
  defaults,
  trained: ['loraA', 'loraB'],
  mergeable: false,
  shapes: ({ N, K, config: { r } }) => ({ loraA: [r, K], loraB: [N, r] }),
  init: (make) => ({ loraA: make.kaiming('loraA'), loraB: make.zeros('loraB') }),
  inputs: ['previous'],
  forward: (t, { x, w, bias, p, config, inputs }) => {
    const previous = needed('reslora-input', 'previous', '[..., K]', inputs.previous);
    const h = t.shrink(t.add(x, previous), p.loraA, { dropout: config.dropout });
    return t.expand(x, w, h, p.loraB, { scaling: scalingOf(config), bias });
  },
});

/**
 * ResLoRA's middle shortcut: adds the r-wide products of earlier layers (`inputs.middle` [..., r], their
 * sum) before loraB: `y = x·wᵀ + scaling · (x · loraAᵀ + middle) · loraBᵀ`.
 */
export const resloraMiddle = defineAdapter({
  method: 'reslora-middle',
  reference:
    'Shi et al., ResLoRA: Identity Residual Mapping in Low-Rank Adaption, 2024, arXiv:2402.18039',
  defaults,
  trained: ['loraA', 'loraB'],
  mergeable: false,
  shapes: ({ N, K, config: { r } }) => ({ loraA: [r, K], loraB: [N, r] }),
  init: (make) => ({ loraA: make.kaiming('loraA'), loraB: make.zeros('loraB') }),
  inputs: ['middle'],
  forward: (t, { x, w, bias, p, config, inputs }) => {
    const middle = needed('reslora-middle', 'middle', '[..., r]', inputs.middle);
    const h = t.add(t.shrink(x, p.loraA, { dropout: config.dropout }), middle);
    return t.expand(x, w, h, p.loraB, { scaling: scalingOf(config), bias });
  },
});

/** PEFT has one list for all modules. @throws ERR_VALUE if there is none, or several */
function sharedInvocation(
  modules: readonly string[],
  configs: readonly { readonly invocationTokens: readonly number[] }[],
): readonly number[] {
  const [first = []] = configs.map(({ invocationTokens }) => invocationTokens);
  configs.forEach(({ invocationTokens: own }, i) => {
    const name = `invocationTokens of ${modules[i]}`;
    const refuse = (expected: string, got: string) =>
      fail('ERR_VALUE', 'adaptersToPeft', name, expected, got);
    if (own.length === 0) refuse('at least one id, from which the adapter is active', 'none');
    if (String(own) !== String(first)) refuse(`[${first}], as of ${modules[0]}`, `[${own}]`);
  });
  return first;
}

/**
 * LoRA on some tokens only: those for which `inputs.active` [..., 1] is 1, so that the keys and values
 * of earlier tokens stay those of the base model. Activated LoRA gives 1 from the invocation tokens
 * on; partial LoRA (InternLM-XComposer2) on image tokens.
 * `y = x·wᵀ + scaling · (active ⊙ (x · loraAᵀ)) · loraBᵀ`
 *
 * `invocationTokens` are the ids that activate it, for {@link invocationOffsets}. The formula does not need them, but a PEFT
 * folder does, and cannot be written without them.
 */
export const alora = defineAdapter({
  method: 'alora',
  reference:
    'Greenewald et al., Activated LoRA: Fine-tuned LLMs for Intrinsics, 2025, arXiv:2504.12397',
  defaults: { ...defaults, invocationTokens: [] as readonly number[] },
  trained: ['loraA', 'loraB'],
  mergeable: false,
  shapes: ({ N, K, config: { r } }) => ({ loraA: [r, K], loraB: [N, r] }),
  check: ({ config: { invocationTokens: ids } }) =>
    Array.isArray(ids) && ids.every((id) => Number.isSafeInteger(id) && id >= 0)
      ? undefined
      : ['invocationTokens', 'an array of token ids', `[${ids}]`],
  init: (make) => ({ loraA: make.kaiming('loraA'), loraB: make.zeros('loraB') }),
  inputs: ['active'],
  forward: (t, { x, w, bias, p, config, inputs }) => {
    const active = needed('alora', 'active', '[..., 1] of 0 and 1', inputs.active);
    const h = t.multiply(t.shrink(x, p.loraA, { dropout: config.dropout }), active);
    return t.expand(x, w, h, p.loraB, { scaling: scalingOf(config), bias });
  },
  peft: {
    type: 'LORA',
    patterns: kAlphaPatterns,
    when: ({ alora_invocation_tokens }) => Array.isArray(alora_invocation_tokens),
    tensors: { loraA: 'lora_A.weight', loraB: 'lora_B.weight' },
    read: (config, module) => ({
      ...readAlpha(config, module),
      invocationTokens: config.alora_invocation_tokens as readonly number[],
    }),
    write: (config, modules, configs) => ({
      ...alphaFields(config),
      alora_invocation_tokens: sharedInvocation(modules, configs),
    }),
  },
});
