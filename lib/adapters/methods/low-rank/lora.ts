import { fail } from '../../../core/errors.js';
import type { AdapterSize } from '../../definition/maker.js';
import { defineAdapter } from '../../definition/method.js';
import type { StoredLayer } from '../../definition/peft-form.js';
import {
  checkGroups,
  type GroupsConfig,
  readGroups,
  wholeMap,
  wholeOf,
  wholeValue,
} from '../../parts/grouped-factor.js';
import {
  checkLayer,
  type EmbeddingConfig,
  embeddingNames,
  kLinear,
  onesOf,
  readLayer,
  tapsOf,
} from '../../parts/layer-kind.js';
import {
  type AlphaConfig,
  alphaFields,
  kAlphaPatterns,
  readAlpha,
  scalingOf,
} from '../../parts/scaling.js';

type LoraConfig = AlphaConfig & EmbeddingConfig & GroupsConfig & { readonly loraBias: boolean };

/**
 * Low-rank adaptation: `y = x·wᵀ + scaling · (dropout(x) · loraAᵀ) · loraBᵀ`, with
 * `scaling = loraAlpha / r`, or `/ sqrt(r)` with rsLoRA.
 *
 * For a convolution (`kernel` has its sizes; x are patches, {@link Im2col}) with `groups`, each group of outputs has
 * its own r / groups values of x·loraAᵀ, which see all channels: loraB [N, r / groups] holds the blocks of a
 * block-diagonal matrix, and w is that of {@link groupedWeight}. The merged layer sees all channels too. `embedding`
 * is an embedding over {@link oneHot}; PEFT applies no dropout to its input. `loraBias` (PEFT's `lora_bias`) trains a
 * bias [N] of the up-projection, which is scaled with it: `y += scaling · loraBias`. Merging adds it to the layer's
 * bias.
 */
export const lora = defineAdapter({
  method: 'lora',
  reference:
    'Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv:2106.09685',
  defaults: {
    r: 8,
    loraAlpha: 8,
    rslora: false,
    dropout: 0,
    kernel: kLinear,
    groups: 1,
    embedding: false,
    loraBias: false,
  },
  trained: ['loraA', 'loraB', 'loraBias'],
  shapes: ({ N, K, config: { r, groups, loraBias } }) => ({
    loraA: [r, K],
    loraB: [N, r / groups],
    ...(loraBias ? { loraBias: [N] } : {}),
  }),
  check: (size) => checkLayer(size.config, size.K) ?? checkGroups(size) ?? checkBias(size),
  init: (make) => ({
    ...(make.config.embedding
      ? { loraA: make.zeros('loraA'), loraB: make.normal('loraB', 1) }
      : { loraA: make.kaiming('loraA'), loraB: make.zeros('loraB') }),
    ...(make.config.loraBias ? { loraBias: make.zeros('loraBias') } : {}),
  }),
  prepare: (make) => wholeMap(make, make.device),
  forward: (t, { x, w, bias, p, config, state }) => {
    const h = t.shrink(x, p.loraA, { dropout: config.dropout });
    const loraB = wholeValue(t, p.loraB, state, config.r);
    const scaling = scalingOf(config);
    if (!config.loraBias) return t.expand(x, w, h, loraB, { scaling, bias });
    // Adds one row to the other, rather than a third summand to all of y.
    const own = t.cast(p.loraBias, 'f32');
    const shift = bias === undefined ? t.affine(own, scaling) : t.add(own, bias, scaling);
    return t.expand(x, w, h, loraB, { scaling, bias: shift });
  },
  update: ({ loraA, loraB, loraBias }, config, size) => ({
    loraA,
    loraB: wholeOf(loraB, size),
    scaling: scalingOf(config),
    ...(config.loraBias ? { loraBias } : {}),
  }),
  peft: {
    type: 'LORA',
    patterns: kAlphaPatterns,
    features: ['lora_bias'],
    tensors: { loraA: 'lora_A.weight', loraB: 'lora_B.weight', loraBias: 'lora_B.bias' },
    otherNames: embeddingNames,
    fileShapes: ({ N, K, config }) => ({
      loraA: [config.r, K / tapsOf(config), ...config.kernel],
      loraB: [N, config.r / config.groups, ...onesOf(config)],
    }),
    read: (config, module, shapeOf, layer) => {
      const alpha = readAlpha(config, module);
      const kind = readLayer(layer);
      const [rows = alpha.r] = shapeOf('loraA') ?? [];
      const { target_parameters: parameters } = config;
      if (rows !== alpha.r && Array.isArray(parameters) && parameters.length > 0) {
        const expected = 'a matrix (expertsFromPeft reads a parameter of several experts)';
        const got = `${rows} rows of lora_A for r = ${alpha.r}`;
        fail('ERR_UNSUPPORTED', 'adapterFromPeft', module, expected, got);
      }
      const groups = readGroups(alpha.r, kind.kernel, shapeOf('loraB'));
      return { ...alpha, ...kind, groups, loraBias: readBias(config, module, layer) };
    },
    write: (config, _, configs) => {
      const { loraBias } = config;
      if (configs.some((other) => other.loraBias !== loraBias)) {
        const expected = 'the same in all layers (PEFT has one lora_bias)';
        fail('ERR_VALUE', 'adaptersToPeft', 'loraBias', expected, 'true and false');
      }
      return { ...alphaFields(config), ...(loraBias ? { lora_bias: true } : {}) };
    },
  },
});

/** PEFT's embeddings have no lora_bias. */
function checkBias({ config: { embedding, loraBias } }: AdapterSize<LoraConfig>) {
  return embedding && loraBias
    ? (['loraBias', 'false for an embedding', 'true'] as const)
    : undefined;
}

/** Does the config say that loraB has a bias? The file must have it in exactly this case. */
function readBias(
  config: Readonly<Record<string, unknown>>,
  module: string,
  { stored }: StoredLayer,
): boolean {
  const biased = config.lora_bias === true;
  if (!biased && stored('lora_B.bias') !== undefined) {
    const expected = `without lora_B.bias, as lora_bias is ${String(config.lora_bias ?? false)}`;
    fail('ERR_FILE', 'adapterFromPeft', module, expected, 'one');
  }
  return biased;
}
