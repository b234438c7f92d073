import { denseUpdate } from '../../../autograd/dense-update.js';
import type { Value } from '../../../autograd/gradient-tape.js';
import type { Tape } from '../../../autograd/tape.js';
import { Tensor } from '../../../core/tensor.js';
import { denseRows, rowStep } from '../../../ops/dense-rows.js';
import type { AdapterCall } from '../../definition/maker.js';
import { defineAdapter } from '../../definition/method.js';

const PATHS = {
  pathAB: ['lora', 'vector', 'constant', 'none'],
  pathC: ['lora', 'vector', 'none'],
  pathDE: ['vector', 'constant', 'none'],
} as const;

interface GloraConfig {
  readonly r: number;
  readonly pathAB: string;
  readonly pathC: string;
  readonly pathDE: string;
}

type Name = 'aD' | 'aU' | 'aX' | 'bD' | 'bU' | 'bX' | 'cD' | 'cU' | 'cX' | 'd' | 'e';
type Call = AdapterCall<GloraConfig, Name, { readonly rows: Tensor; readonly cols: Tensor }>;

/** `x·(w + w ⊙ A + B)ᵀ + bias` */
function moved(t: Tape, { x, w, bias, p, config, state, N }: Call): Value {
  const { pathAB } = config;
  if (pathAB === 'none') return t.linear(x, w, bias);
  if (pathAB === 'lora') {
    const y = t.expand(x, w, t.shrink(x, p.bU), p.bD, { bias });
    const scaled = denseUpdate(t, x, {
      N,
      step: rowStep(w),
      rows: { d: p.aD },
      inputs: { u: p.aU },
      tile: (tape, { d, u }, begin, end) =>
        tape.multiply(tape.product(d, u), tape.own(denseRows(w, begin, end))),
    });
    return t.add(y, scaled);
  }
  // B has the same value in every column: a low-rank product with ones.
  const sums = t.shrink(x, t.constant(state.cols));
  const of = (value: Value): Value => t.reshape(t.cast(value, 'f32'), [value.tensor.size]);
  const column =
    pathAB === 'vector'
      ? t.cast(p.bX, 'f32')
      : t.multiply(t.constant(state.rows), t.cast(p.bX, 'f32'));
  const y = t.multiply(t.linear(x, w), t.affine(of(p.aX), 1, 1));
  const sum = t.add(y, t.matmul(sums, column));
  return bias === undefined ? sum : t.add(sum, bias);
}

/** `bias ⊙ d + e + w·C` [N], if the layer has a bias and any of these paths. */
function shiftOf(t: Tape, { w, bias, p, config, N, K }: Call): Value | undefined {
  if (bias === undefined) return undefined;
  let shift: Value | undefined;
  if (config.pathC !== 'none') {
    const c = config.pathC === 'lora' ? t.product(p.cD, p.cU) : t.cast(p.cX, 'f32');
    shift = t.reshape(t.linear(t.reshape(c, [1, K]), w), [N]);
  }
  if (config.pathDE === 'none') return shift;
  const zeros = t.own(Tensor.zeros([N], { device: p.e.tensor.device }));
  shift = t.add(shift ?? zeros, p.e);
  return t.add(shift, t.multiply(t.cast(bias, 'f32'), p.d));
}

/**
 * Generalised LoRA in the form that PEFT trains: weight and bias are both rescaled and shifted,
 * `y = x·(w + w ⊙ A + B)ᵀ + bias ⊙ (1 + d) + e + w·C`. A setting selects the form of each path:
 *
 * - `pathAB` of A and B: `lora`, A = aD·aU and B = bD·bU of rank r · `vector`, aX and bX [N, 1], one value per
 *   row · `constant`, one value [1] · `none`
 * - `pathC` of C [K]: `lora`, cD·cU of rank r · `vector`, cX [K, 1] · `none`
 * - `pathDE` of d and e: `vector` [N] · `constant` [1] · `none`
 *
 * A layer without a bias gets none: C, d and e then have no effect. PEFT makes none of them for such a layer and ignores
 * those in a folder.
 */
export const glora = defineAdapter({
  method: 'glora',
  reference:
    'Chavan et al., One-for-All: Generalized LoRA for Parameter-Efficient Fine-tuning, 2023, arXiv:2306.07967',
  defaults: { r: 4, pathAB: 'lora', pathC: 'lora', pathDE: 'constant' },
  trained: ['aD', 'aU', 'aX', 'bD', 'bU', 'bX', 'cD', 'cU', 'cX', 'd', 'e'],
  shapes: ({ N, K, config: { r, pathAB, pathC, pathDE } }) => {
    const each = pathAB === 'vector' ? [N, 1] : [1];
    const one = pathDE === 'vector' ? [N] : [1];
    return {
      ...(pathAB === 'lora' ? { aD: [N, r], aU: [r, K], bD: [N, r], bU: [r, K] } : {}),
      ...(pathAB === 'vector' || pathAB === 'constant' ? { aX: each, bX: each } : {}),
      ...(pathC === 'lora' ? { cD: [K, r], cU: [r, 1] } : {}),
      ...(pathC === 'vector' ? { cX: [K, 1] } : {}),
      ...(pathDE === 'none' ? {} : { d: one, e: one }),
    };
  },
  check: ({ config }) => {
    for (const name of ['pathAB', 'pathC', 'pathDE'] as const) {
      const known: readonly string[] = PATHS[name];
      if (!known.includes(config[name])) {
        return [name, `one of ${known.join(', ')}`, `"${config[name]}"`];
      }
    }
    return undefined;
  },
  init: (make) => {
    const drawn: readonly Name[] = ['aU', 'bU', 'cU'];
    const names = Object.keys(make.shapes) as Name[];
    return Object.fromEntries(
      names.map((name) => [name, drawn.includes(name) ? make.kaiming(name) : make.zeros(name)]),
    );
  },
  prepare: ({ N, K, device }) => ({
    rows: Tensor.from(new Float32Array(N).fill(1), [N, 1], { device }),
    cols: Tensor.from(new Float32Array(K).fill(1), [1, K], { device }),
  }),
  forward: (t, call) => {
    const y = moved(t, call);
    const shift = shiftOf(t, call);
    return shift === undefined ? y : t.add(y, shift);
  },
  peft: {
    type: 'GLORA',
    tensors: {
      aD: 'glora_A.Xd',
      aU: 'glora_A.Xu',
      aX: 'glora_A.X',
      bD: 'glora_B.Xd',
      bU: 'glora_B.Xu',
      bX: 'glora_B.X',
      cD: 'glora_C.Xd',
      cU: 'glora_C.Xu',
      cX: 'glora_C.X',
      d: 'glora_D.X',
      e: 'glora_E.X',
    },
    read: ({ r, config_A_B, config_C, config_D_E }, _module, shapeOf) => {
      const ofBias = ['cD', 'cU', 'cX', 'd', 'e'] as const;
      const biased = ofBias.some((name) => shapeOf(name) !== undefined);
      return {
        r: Number(r ?? 4),
        pathAB: String(config_A_B ?? 'lora'),
        pathC: biased ? String(config_C ?? 'lora') : 'none',
        pathDE: biased ? String(config_D_E ?? 'constant') : 'none',
      };
    },
    // Layers without a bias may be among the others; the initial value of a path in PEFT adds
    // nothing.
    write: ({ r, pathAB }, _, configs) => {
      const used = (path: 'pathC' | 'pathDE') =>
        configs.map((each) => each[path]).find((form) => form !== 'none') ?? 'none';
      return { r, config_A_B: pathAB, config_C: used('pathC'), config_D_E: used('pathDE') };
    },
  },
});
