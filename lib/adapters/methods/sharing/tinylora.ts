import { TorchRandom } from '../../../checkpoint/random/torch-random.js';
import { singularFactors } from '../../../linalg/tensors/triplets.js';
import { defineAdapter } from '../../definition/method.js';
import { inOrder, needsLayers } from '../../parts/folder-layers.js';

/**
 * LoRA-XS whose core is a combination of fixed random matrices: `core = Σᵢ vᵢ · projectionᵢ`, so that u values train
 * a layer (or many: layers may share v). loraA and loraB are the r leading singular triplets of the base weight, `Vᵀ`
 * and `U·S` as in PEFT. Without a `weight` they are random.
 */
export const tinylora = defineAdapter({
  method: 'tinylora',
  reference: 'Morris et al., Learning to Reason in 13 Parameters, 2026, arXiv:2602.04118',
  defaults: { r: 2, u: 64, initBound: 0.02, dropout: 0 },
  trained: ['v'],
  frozen: ['loraA', 'loraB', 'projection'],
  shapes: ({ N, K, config: { r, u } }) => ({
    v: [u],
    loraA: [r, K],
    loraB: [N, r],
    projection: [u, r, r],
  }),
  check: ({ N, K, config: { r } }) =>
    r <= Math.min(N, K) ? undefined : ['r', `from 1 to ${Math.min(N, K)}`, String(r)],
  init: (make) => {
    const { w, config } = make;
    const { r } = config;
    const own = { v: make.zeros('v'), projection: make.normal('projection', 1 / Math.sqrt(r)) };
    if (w === undefined) {
      return { ...own, loraA: make.kaiming('loraA'), loraB: make.kaiming('loraB') };
    }
    const { u, s, v } = singularFactors(w, r, make.seed());
    return {
      ...own,
      loraA: make.values('loraA', (i) => v[i] as number),
      loraB: make.values('loraB', (i) => (u[i] as number) * (s[i % r] as number)),
    };
  },
  forward: (t, { x, w, bias, p, config: { r, u, dropout } }) => {
    const flat = t.product(t.reshape(p.v, [1, u]), t.reshape(p.projection, [u, r * r]));
    const h = t.matmul(t.shrink(x, p.loraA, { dropout }), t.reshape(flat, [r, r]));
    return t.expand(x, w, h, p.loraB, { bias });
  },
  peft: {
    type: 'TINYLORA',
    tensors: { loraA: 'tinylora_A', loraB: 'tinylora_B', projection: 'tinylora_P' },
    shared: { v: 'tinylora_v.0' },
    // Modules in the order of the model, one v per group of equal size; the last group takes the rest.
    sharedName: (name, module, keys, layers) => {
      if (name !== 'v') return undefined;
      const groups = new Set(keys.flatMap((key) => /tinylora_v\.(\d+)$/.exec(key)?.[1] ?? [])).size;
      if (groups < 2) return 'tinylora_v.0';
      const stored = keys.flatMap(
        (key) => /^base_model\.model\.(.+)\.tinylora_A$/.exec(key)?.[1] ?? [],
      );
      const modules =
        layers ?? inOrder(stored) ?? needsLayers('which vector belongs to which layer');
      const size = Math.max(1, Math.floor(modules.length / groups));
      const group = Math.floor(Math.max(0, modules.indexOf(module)) / size);
      return `tinylora_v.${Math.min(group, groups - 1)}`;
    },
    // PEFT has no more ranks than the weight.
    read: ({ r, u, init_v_bound, tinylora_dropout }, _, __, { inFeatures, outFeatures }) => ({
      r: Math.min(Number(r ?? 2), inFeatures, outFeatures),
      u: Number(u ?? 64),
      initBound: Number(init_v_bound ?? 0.02),
      dropout: Number(tinylora_dropout ?? 0),
    }),
    regenerate: ({ save_projection, projection_seed }, { config }, _, __, { module, layers }) => {
      if (save_projection !== false) return {};
      const modules = [...(layers ?? needsLayers('each has a seed of its own')).keys()];
      const random = new TorchRandom(Number(projection_seed ?? 42) + modules.indexOf(module));
      const { r, u } = config;
      const root = Math.sqrt(r);
      return { tensors: { projection: random.normal([u, r, r]).map((value) => value / root) } };
    },
    write: ({ u, initBound, dropout }, _, configs) => ({
      r: Math.max(...configs.map(({ r }) => r)),
      u,
      init_v_bound: initBound,
      tinylora_dropout: dropout,
      // Each module has its own v.
      weight_tying: 0,
    }),
  },
});
