import type { Value } from '../../../autograd/gradient-tape.js';
import { RouterMaps, softmax, topKMask } from '../../../autograd/routing.js';
import type { Tape } from '../../../autograd/tape.js';
import { fail } from '../../../core/errors.js';
import { Tensor } from '../../../core/tensor.js';
import { FeatureMap } from '../../../ops/feature-map.js';
import { defineAdapter } from '../../definition/method.js';
import { belowOne } from '../../parts/counts.js';
import { scalingOf } from '../../parts/scaling.js';

/** Gates of the router's k best experts, summing to 1; k = 0 keeps all. */
function routed(t: Tape, logits: Value, topK: number, maps: RouterMaps): Value {
  if (topK === 0) return softmax(t, logits, maps);
  return softmax(t, logits, maps, topKMask(logits.tensor, topK, maps));
}

const checkTopK = ({ config }: { config: { experts: number; topK: number } }) =>
  belowOne(config, 'experts') ??
  (config.topK > config.experts || config.topK < 0 || !Number.isInteger(config.topK)
    ? (['topK', `an integer from 0 to experts (${config.experts})`, String(config.topK)] as const)
    : undefined);

/** The maps that select each of E experts' ranks from loraA [E·r, K] and loraB [N, E·r]. */
function partsOf(experts: number, r: number, device: Tensor['device']) {
  const all = experts * r;
  return Array.from({ length: experts }, (_, e) => {
    const rows = Float32Array.from({ length: r * all }, (_, at) =>
      at % all === e * r + Math.floor(at / all) ? 1 : 0,
    );
    return {
      rows: Tensor.from(rows, [r, all], { device }),
      columns: FeatureMap.slice(all, e * r, (e + 1) * r, { device }),
    };
  });
}

/**
 * A router over LoRA experts, dense or top-k per token:
 * `y = x·wᵀ + scaling · Σₑ gₑ · (x · loraAₑᵀ) · loraBₑᵀ`, `g = softmax` of the (k largest) `x · routerᵀ`. The
 * experts' ranks are side by side, so all experts are one shrink and one fused expand. With `sparse` a token
 * only costs its k experts ({@link Tape.mixture}), at the price of a copy of the factors and one wait per
 * call.
 */
export const loramoe = defineAdapter({
  method: 'loramoe',
  reference:
    'Dou et al., LoRAMoE: Alleviate World Knowledge Forgetting in Large Language Models via MoE-Style Plugin, 2023, arXiv:2312.09979',
  defaults: { experts: 4, topK: 0, sparse: false, r: 4, loraAlpha: 8, rslora: false, dropout: 0 },
  trained: ['loraA', 'loraB', 'router'],
  mergeable: false,
  check: (size) =>
    size.config.sparse && size.config.topK === 0
      ? (['sparse', 'false where topK is 0', 'true'] as const)
      : checkTopK(size),
  shapes: ({ N, K, config: { r, experts } }) => ({
    loraA: [experts * r, K],
    loraB: [N, experts * r],
    router: [experts, K],
  }),
  init: (make) => ({
    loraA: make.kaiming('loraA'),
    loraB: make.zeros('loraB'),
    router: make.kaiming('router'),
  }),
  prepare: ({ device, config: { r, experts, sparse } }) => ({
    maps: new RouterMaps(experts, device),
    ranks: FeatureMap.repeat(experts, r, 'inner', { device }),
    parts: sparse ? partsOf(experts, r, device) : [],
  }),
  forward: (t, { x, w, bias, p, config, state }) => {
    const { dropout, topK } = config;
    const scaling = scalingOf(config);
    const logits = t.shrink(x, p.router);
    if (config.sparse) {
      const kept = topKMask(logits.tensor, topK, state.maps);
      const gates = softmax(t, logits, state.maps, kept);
      const experts = state.parts.map(({ rows, columns }) => ({
        a: t.product(t.constant(rows), p.loraA),
        b: t.features(p.loraB, columns),
        scaling,
      }));
      return t.mixture(x, w, experts, gates, kept, { dropout, bias });
    }
    const gates = routed(t, logits, topK, state.maps);
    const h = t.multiply(t.shrink(x, p.loraA, { dropout }), t.features(gates, state.ranks));
    return t.expand(x, w, h, p.loraB, { scaling, bias });
  },
});

/**
 * One shared loraA and several routed loraB factors:
 * `y = x·wᵀ + scaling · Σₑ gₑ · (x · loraAᵀ) · loraBₑᵀ`, `g = softmax(x · routerᵀ)`.
 */
export const hydralora = defineAdapter({
  method: 'hydralora',
  reference:
    'Tian et al., HydraLoRA: An Asymmetric LoRA Architecture for Efficient Fine-Tuning, 2024, arXiv:2404.19245',
  defaults: { experts: 3, topK: 0, r: 8, loraAlpha: 16, rslora: false, dropout: 0 },
  trained: ['loraA', 'loraB', 'router'],
  mergeable: false,
  check: checkTopK,
  shapes: ({ N, K, config: { r, experts } }) => ({
    loraA: [r, K],
    loraB: [N, experts * r],
    router: [experts, K],
  }),
  init: (make) => ({
    loraA: make.kaiming('loraA'),
    loraB: make.zeros('loraB'),
    router: make.kaiming('router'),
  }),
  prepare: ({ device, config: { r, experts } }) => ({
    maps: new RouterMaps(experts, device),
    ranks: FeatureMap.repeat(experts, r, 'inner', { device }),
    copies: FeatureMap.repeat(r, experts, 'outer', { device }),
  }),
  forward: (t, { x, w, bias, p, config, state }) => {
    const gates = routed(t, t.shrink(x, p.router), config.topK, state.maps);
    const shared = t.features(t.shrink(x, p.loraA, { dropout: config.dropout }), state.copies);
    const h = t.multiply(shared, t.features(gates, state.ranks));
    return t.expand(x, w, h, p.loraB, { scaling: scalingOf(config), bias });
  },
});

/**
 * Given gates over experts of any ranks and scalings, per token, per sequence (the same rows) or for the whole
 * batch ([E]): `y = x·wᵀ + globalScaling · Σₑ gₑ · scalingₑ · (x · loraAₑᵀ) · loraBₑᵀ`. The gates come from the
 * trainer's own router, which gets their gradient (`inputs.gates`). With topK only the k largest of each row are
 * used, with softmaxTopK (even if topK is 0) after a softmax over them.
 */
export const xlora = defineAdapter({
  method: 'x-lora',
  reference:
    'Buehler and Buehler, X-LoRA: Mixture of Low-Rank Adapter Experts, 2024, arXiv:2402.07148',
  defaults: {
    ranks: [8, 8] as readonly number[],
    scalings: [2, 2] as readonly number[],
    topK: 0,
    softmaxTopK: false,
    globalScaling: 1,
  },
  trained: ['loraA', 'loraB'],
  mergeable: false,
  check: ({ config: { ranks, scalings, topK } }) => {
    const E = ranks.length;
    if (scalings.length !== E)
      return ['scalings', `of ${E} values, as ranks`, `${scalings.length}`];
    if (!(topK >= 0 && topK <= E)) return ['topK', `from 0 to ${E}`, String(topK)];
    return undefined;
  },
  shapes: ({ N, K, config: { ranks } }) => {
    const all = ranks.reduce((sum, r) => sum + r, 0);
    return { loraA: [all, K], loraB: [N, all] };
  },
  init: (make) => ({ loraA: make.kaiming('loraA'), loraB: make.zeros('loraB') }),
  prepare: ({ device, config: { ranks, scalings, globalScaling } }) => {
    const expertOf = ranks.flatMap((r, e) => Array.from({ length: r }, () => e));
    const scales = expertOf.map((e) => (scalings[e] as number) * globalScaling);
    return {
      maps: new RouterMaps(ranks.length, device),
      ranks: FeatureMap.gather(Int32Array.from(expertOf), ranks.length, { device }),
      scales: Tensor.from(Float32Array.from(scales), [scales.length], { device }),
    };
  },
  inputs: ['gates'],
  forward: (t, { x, w, bias, p, config, state, inputs }) => {
    let gates = inputs.gates;
    if (gates === undefined) {
      const E = config.ranks.length;
      return fail('ERR_VALUE', 'x-lora.forward', 'inputs.gates', `a tensor [..., ${E}]`, 'none');
    }
    const { topK, softmaxTopK } = config;
    const mask = topK > 0 ? topKMask(gates.tensor, topK, state.maps) : undefined;
    if (softmaxTopK) gates = softmax(t, gates, state.maps, mask);
    else if (mask !== undefined) gates = t.multiply(gates, t.own(mask));
    const scales = t.multiply(t.features(gates, state.ranks), t.constant(state.scales));
    const h = t.multiply(t.shrink(x, p.loraA), scales);
    return t.expand(x, w, h, p.loraB, { bias });
  },
});

/**
 * A loraA for each layer, and a router over loraB factors that the layers of one kind and size share. The gates are
 * averaged over the whole batch: `y = x·wᵀ + scaling · (x · loraAᵀ) · Σₑ ḡₑ · loraBₑ`,
 * `g = softmax((x · loraAᵀ) · routerᵀ)`.
 */
export const lily = defineAdapter({
  method: 'lily',
  reference:
    'Zhong et al., Low-Rank Interconnected Adaptation across Layers, 2024, arXiv:2407.09946',
  defaults: { r: 32, experts: 4, scaling: 1, dropout: 0 },
  trained: ['loraA', 'loraB', 'router'],
  shared: { loraB: 'kind' },
  mergeable: false,
  // loraB [experts · r, N]: expert by expert.
  check: ({ config }) => belowOne(config, 'experts'),
  shapes: ({ N, K, config: { r, experts } }) => ({
    loraA: [r, K],
    loraB: [experts * r, N],
    router: [experts, r],
  }),
  init: (make) => ({
    loraA: make.kaiming('loraA'),
    loraB: make.zeros('loraB'),
    router: make.kaiming('router'),
  }),
  prepare: ({ device, config: { r, experts } }) => ({
    maps: new RouterMaps(experts, device),
    ranks: FeatureMap.repeat(experts, r, 'inner', { device }),
    copies: FeatureMap.repeat(r, experts, 'outer', { device }),
  }),
  forward: (t, { x, w, bias, p, config, state }) => {
    const h = t.shrink(x, p.loraA, { dropout: config.dropout });
    const gates = softmax(t, t.matmul(h, p.router), state.maps);
    const rows = gates.tensor.size / config.experts;
    const mean = t.affine(t.sum(gates, 0), 1 / rows);
    const all = t.multiply(t.features(h, state.copies), t.features(mean, state.ranks));
    return t.add(t.linear(x, w, bias), t.product(all, p.loraB), 1, config.scaling);
  },
  peft: {
    type: 'LILY',
    // In PEFT, layers matched by the same name of target_modules share lily_B if their shapes are equal.
    wholeTargets: true,
    tensors: { loraA: 'lily_A.weight', loraB: 'lily_B.weight', router: 'lily_router.weight' },
    read: ({ r, num_B, scaling, lily_dropout }) => ({
      r: Number(r),
      experts: Number(num_B),
      scaling: Number(scaling ?? 1),
      dropout: Number(lily_dropout ?? 0),
    }),
    write: ({ r, experts, scaling, dropout }) => ({
      r,
      num_B: experts,
      stride_A: 1,
      scaling,
      // PEFT has no dropout here and leaves the field out.
      ...(dropout > 0 ? { lily_dropout: dropout } : {}),
    }),
  },
});
