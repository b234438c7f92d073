import type { Device } from '../../../core/device.js';
import type { DType } from '../../../core/dtype.js';
import { outsideScopes, scope } from '../../../core/scope.js';
import { Tensor } from '../../../core/tensor.js';
import type { BaseWeight } from '../../../ops/base-weight.js';
import { mapTensor } from '../../../ops/elementwise.js';
import { FeatureMap, mapFeatures } from '../../../ops/feature-map.js';
import { factoredNorm, weightNorms } from '../../../ops/lora/factored-norm.js';
import { dequantize } from '../../../ops/quantize.js';
import { QuantizedWeight } from '../../../quant/quantized-weight.js';
import type { AdapterSize } from '../../definition/maker.js';
import { defineAdapter } from '../../definition/method.js';
import {
  checkGroups,
  type GroupsConfig,
  readGroups,
  wholeMap,
  wholeValue,
} from '../../parts/grouped-factor.js';
import {
  checkLayer,
  embeddingNames,
  kLinear,
  onesOf,
  readLayer,
  tapsOf,
} from '../../parts/layer-kind.js';
import { alphaFields, kAlphaPatterns, readAlpha, scalingOf } from '../../parts/scaling.js';

/** How often the values of a weight have changed: by a merge in place, or by a write. */
const writesOf = (w: BaseWeight): number => {
  const values = Tensor.is(w) ? w : w.zeroPoints;
  return values === undefined ? 0 : Tensor.writesOf(values);
};

interface KeptNorms {
  readonly weight: WeakRef<BaseWeight>;
  readonly norms: Tensor;
  /** The weight's number of writes when the norms were computed. */
  readonly writes: number;
}

/** ‖w‖² of each row, kept for every base weight of a layer while both are alive and the weight is unchanged. */
class NormCache implements Disposable {
  readonly #norms = new WeakMap<BaseWeight, KeptNorms>();
  #kept: KeptNorms[] = [];

  of(w: BaseWeight): Tensor {
    const known = this.#norms.get(w);
    if (known?.writes === writesOf(w)) return known.norms;
    this.#kept = this.#kept.filter((each) => {
      const holds = each !== known && each.weight.deref()?.disposed === false;
      if (!holds) each.norms.dispose();
      return holds;
    });
    // A forward pass is a scope and would free them.
    const norms = outsideScopes(() => weightNorms(w));
    const kept = { weight: new WeakRef(w), norms, writes: writesOf(w) };
    this.#norms.set(w, kept);
    this.#kept.push(kept);
    return norms;
  }

  [Symbol.dispose](): void {
    for (const { norms } of this.#kept) norms.dispose();
  }
}

/** Maps of a grouped convolution: to loraB [N, r], and to the operands of PEFT's norm, {@link groupedNorm}. */
interface GroupMaps {
  readonly whole: FeatureMap;
  readonly weight: FeatureMap;
  readonly loraB: FeatureMap;
}

function groupMaps(size: AdapterSize<GroupsConfig>, device: Device): GroupMaps | undefined {
  const { N, K } = size;
  const { r, groups } = size.config;
  const whole = wholeMap(size, device);
  if (whole === undefined) return undefined;
  const width = K / groups;
  const weight = new Int32Array(N * width);
  const loraB = new Int32Array(N * r * groups).fill(-1);
  for (let n = 0; n < N; n++) {
    const left = Math.floor(n / (N / groups)) * width;
    for (let j = 0; j < width; j++) weight[n * width + j] = n * K + left + j;
    for (let k = 0; k < r; k++) {
      loraB[n * r * groups + k * groups + (n % groups)] = Math.floor(n / groups) * r + k;
    }
  }
  return {
    whole,
    weight: FeatureMap.gather(weight, N * K, { device }),
    loraB: FeatureMap.gather(loraB, (N * r) / groups, { device }),
  };
}

/**
 * The norm by which PEFT divides for a grouped convolution; magnitudes were trained with it. It reads loraB [N, r /
 * groups] as [N / groups, r], and takes its product with loraA, [N / groups, K], for an update [N, K / groups] of the
 * channels that an output sees: row n is the n-th piece of that length. So the update in the norm is not that of the
 * layer, unless loraB is zero. As a product: loraA in the same pieces, [r · groups, K / groups], and from loraB the values
 * of row ⌊n / groups⌋ that belong to piece n mod groups.
 */
function groupedNorm(
  w: BaseWeight,
  { loraA, loraB, scaling }: { loraA: Tensor; loraB: Tensor; scaling: number },
  maps: GroupMaps,
  { r, groups }: GroupsConfig,
  norms: Tensor,
  dtype: DType,
): Tensor {
  const [N = 0, K = 0] = w.shape;
  const dense = w instanceof QuantizedWeight ? dequantize(w, { dtype: w.sourceDType }) : w;
  const own = mapFeatures(dense.reshape([1, N * K]), maps.weight, { dtype: dense.dtype });
  const left = mapFeatures(loraB.reshape([1, loraB.size]), maps.loraB, { dtype: loraB.dtype });
  return factoredNorm({
    w: own.reshape([N, K / groups]),
    loraA: loraA.reshape([r * groups, K / groups]),
    loraB: left.reshape([N, r * groups]),
    scaling,
    weightNorms: norms,
    dtype,
  });
}

/**
 * Weight-decomposed LoRA, with direction and magnitude separated: `y = magnitude / ‖w'‖ ⊙ (x · w'ᵀ) + bias` with
 * `w' = w + scaling · loraB · loraA` and the norm of each of its rows. The norm is a constant in the backward pass, as in
 * the paper (section 4.3) and in PEFT. With dropout the whole adapter term sees the dropped input: `y = x·wᵀ + bias +
 * (magnitude / ‖w'‖ − 1) ⊙ (x̃·wᵀ) + magnitude / ‖w'‖ ⊙ scaling · (x̃ · loraAᵀ) · loraBᵀ`. `kernel`, `groups` and
 * `embedding` are as in {@link lora}. With groups the norm is PEFT's, which belongs to another update than the layer's; see
 * `groupedNorm` in this file.
 */
export const dora = defineAdapter({
  method: 'dora',
  reference: 'Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, 2024, arXiv:2402.09353',
  defaults: {
    r: 8,
    loraAlpha: 16,
    rslora: false,
    dropout: 0,
    kernel: kLinear,
    groups: 1,
    embedding: false,
  },
  trained: ['loraA', 'loraB', 'magnitude'],
  shapes: ({ N, K, config: { r, groups } }) => ({
    loraA: [r, K],
    loraB: [N, r / groups],
    magnitude: [N],
  }),
  check: (size) => checkLayer(size.config, size.K) ?? checkGroups(size),
  init: (make) => ({
    ...(make.config.embedding
      ? { loraA: make.zeros('loraA'), loraB: make.normal('loraB', 1) }
      : { loraA: make.kaiming('loraA'), loraB: make.zeros('loraB') }),
    magnitude: scope(() => mapTensor(weightNorms(make.weight('dora.create')), 'sqrt')),
  }),
  prepare: (make) => ({ norms: new NormCache(), maps: groupMaps(make, make.device) }),
  forward: (t, { x, w, bias, p, config, state, training }) => {
    const scaling = scalingOf(config);
    const { norms, maps } = state;
    const { loraA } = p;
    const loraB = wholeValue(t, p.loraB, maps?.whole, config.r);
    const factors = { loraA: loraA.tensor, loraB: p.loraB.tensor, scaling };
    const { dtype } = x.tensor;
    const kept = norms.of(w);
    const normOf = () =>
      maps === undefined
        ? factoredNorm({ w, ...factors, weightNorms: kept, dtype })
        : groupedNorm(w, factors, maps, config, kept, dtype);
    const shareOf = (norm: Tensor) => t.multiply(p.magnitude, t.own(mapTensor(norm, 'reciprocal')));
    const dropout = training ? config.dropout : 0;
    if (dropout === 0) {
      const h = t.shrink(x, loraA);
      const both =
        maps === undefined
          ? t.expandWithNorms(x, w, h, { a: loraA, b: loraB, scaling }, kept)
          : { norms: normOf(), y: t.expand(x, w, h, loraB, { scaling }) };
      const y = t.multiply(both.y, shareOf(both.norms));
      return bias === undefined ? y : t.add(y, bias);
    }
    const share = shareOf(normOf());
    const dropped = t.dropout(x, dropout);
    // Recorded before the product of the same input, so that its gradient includes that product.
    const h = t.shrink(dropped, loraA, { scaling });
    const base = t.linear(dropped, w);
    const both = t.add(base, t.matmul(h, loraB));
    return t.add(t.add(t.linear(x, w, bias), base, 1, -1), t.multiply(both, share));
  },
  peft: {
    type: 'LORA',
    patterns: kAlphaPatterns,
    when: ({ use_dora }) => use_dora === true,
    tensors: {
      loraA: 'lora_A.weight',
      loraB: 'lora_B.weight',
      magnitude: 'lora_magnitude_vector',
    },
    otherNames: embeddingNames,
    fileShapes: ({ N, K, config }) => ({
      loraA: [config.r, K / tapsOf(config), ...config.kernel],
      loraB: [N, config.r / config.groups, ...onesOf(config)],
      ...(config.kernel.length > 0 ? { magnitude: [1, N, ...onesOf(config)] } : {}),
    }),
    read: (config, module, shapeOf, layer) => {
      const [alpha, kind] = [readAlpha(config, module), readLayer(layer)];
      return { ...alpha, ...kind, groups: readGroups(alpha.r, kind.kernel, shapeOf('loraB')) };
    },
    write: (config) => ({ ...alphaFields(config), use_dora: true }),
  },
});
