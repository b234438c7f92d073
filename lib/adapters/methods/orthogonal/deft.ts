/** DEFT in its two variants, over p itself and over an orthonormal basis of it, in one common form. */

import type { Value } from '../../../autograd/gradient-tape.js';
import { Tape } from '../../../autograd/tape.js';
import { fail } from '../../../core/errors.js';
import { scope } from '../../../core/scope.js';
import type { Tensor } from '../../../core/tensor.js';
import { mapTensor, multiplyAdd } from '../../../ops/elementwise.js';
import { matmulInputGrad } from '../../../ops/matmul.js';
import type { AdapterCall, AdapterMaker } from '../../definition/maker.js';
import { defineAdapter } from '../../definition/method.js';
import type { StoredLayer } from '../../definition/peft-form.js';
import { columnMasks, orthonormalColumns } from './orthonormal.js';

type DeftTensor = 'p' | 'inject';

interface DeftConfig {
  readonly r: number;
  readonly scaling: number;
  readonly dropout: number;
  readonly para: boolean;
}

const defaults: DeftConfig = { r: 8, scaling: 1, dropout: 0, para: false };

const shapes = (size: { N: number; K: number; config: DeftConfig }) => {
  const { r, para } = size.config;
  return { p: [size.N, r], ...(para ? {} : { inject: [r, size.K] }) };
};

/** PEFT does not support more vectors than outputs: its layers then have as many as outputs. */
const check = ({ N, config: { r } }: { N: number; config: DeftConfig }) =>
  r >= 1 && r <= N ? undefined : (['r', `from 1 to N (${N})`, String(r)] as const);

/**
 * The factor of the initial inject relative to the removed part: with it, the scaling is 1 in
 * total. @throws ERR_VALUE
 */
function startOf(op: string, { scaling, para }: DeftConfig): number {
  if (scaling === 0 && !para) {
    fail('ERR_VALUE', op, 'scaling', 'other than 0 (the initial inject is divided by it)', '0');
  }
  return 1 / scaling;
}

/**
 * `x·wᵀ + bias + (scaling · dropout(x)·injectᵀ - (x·wᵀ)·right) · leftᵀ`, right and left [N, r]: removes along
 * left what right sees of the outputs.
 */
function exchange<S>(
  t: Tape,
  { x, w, bias, p, config }: AdapterCall<DeftConfig, DeftTensor, S>,
  right: Value,
  left: Value,
): Value {
  const { scaling, dropout, para } = config;
  const base = t.linear(x, w);
  const put = para ? undefined : t.shrink(x, p.inject, { scaling, dropout });
  const taken = t.product(t.cast(base, 'f32'), right);
  const moved = put === undefined ? t.affine(taken, -1) : t.add(put, taken, 1, -1);
  const y = t.add(base, t.matmul(moved, left));
  return bias === undefined ? y : t.add(y, bias);
}

/** For more than N vectors PEFT uses N. PaRa has no injection, and thus no dropout or scaling. */
function readDeft(
  { r, alpha, deft_dropout, para }: Readonly<Record<string, unknown>>,
  { outFeatures }: StoredLayer,
): DeftConfig {
  const rank = Math.min(Number(r ?? defaults.r), outFeatures);
  if (para === true) return { r: rank, scaling: 1, dropout: 0, para };
  const scaling = typeof alpha === 'number' && alpha !== 0 ? alpha / rank : 1;
  return { r: rank, scaling, dropout: Number(deft_dropout ?? 0), para: false };
}

/** If r exceeds the number of a layer's outputs, PEFT uses that number, and divides alpha by it. */
const writeDeft = (
  { r, scaling, dropout, para }: DeftConfig,
  _: readonly string[],
  configs: readonly DeftConfig[],
) => ({
  r: Math.max(...configs.map((each) => each.r)),
  alpha: scaling === 1 ? null : scaling * r,
  deft_dropout: dropout,
  para,
});

/** p and, except with `para`, the injected part: initially what `right`, [N, r], removes. */
function initOf(
  method: string,
  make: AdapterMaker<DeftConfig, DeftTensor>,
  right: (tape: Tape, p: Tensor) => Value,
): { p: Tensor; inject?: Tensor } {
  const alpha = startOf(`${method}.create`, make.config);
  const p = make.normal('p', 0.02);
  if (make.config.para) return { p };
  const w = make.weight(`${method}.create`);
  const inject = scope(() => {
    const tape = new Tape({ recording: false });
    const taken = matmulInputGrad(tape.transpose(right(tape, p)).tensor, w);
    return multiplyAdd({ a: taken, alpha, dtype: make.dtype });
  });
  return { p, inject };
}

/** The common part of both variants. PEFT tells them apart by `decomposition_method`. */
const common = (decomposition: 'relu' | 'qr') =>
  ({
    reference:
      'Kumar et al., DEFT: Decompositional Efficient Fine-Tuning for Text-to-Image Models, 2025, arXiv:2509.22793',
    defaults,
    trained: ['p', 'inject'],
    shapes,
    check,
    peft: {
      type: 'DEFT',
      // PEFT's own default is qr.
      when: ({ decomposition_method }: Readonly<Record<string, unknown>>) =>
        (decomposition_method ?? 'qr') === decomposition,
      tensors: { p: 'deft_P', inject: 'deft_R' },
      read: (
        config: Readonly<Record<string, unknown>>,
        _module: string,
        _shapeOf: unknown,
        layer: StoredLayer,
      ) => readDeft(config, layer),
      write: (config: DeftConfig, modules: readonly string[], configs: readonly DeftConfig[]) => ({
        ...writeDeft(config, modules, configs),
        decomposition_method: decomposition,
      }),
    },
  }) as const;

/**
 * Removes a subspace of the outputs and injects something else: `ΔW = p · (scaling · inject - relu(p)ᵀ · w)` with
 * p [N, r] and inject [r, K], that is `y = x·wᵀ + (scaling · x·injectᵀ - (x·wᵀ)·relu(p)) · pᵀ`. Initially inject
 * is what is removed. With `para` nothing is injected (PaRa, Chen et al., 2024, arXiv:2406.05641): only p is
 * trained, and training does not start at the base model.
 *
 * This variant has the projector `p · relu(p)ᵀ`; {@link deftQr} uses an orthonormal basis of p.
 */
export const deft = defineAdapter({
  method: 'deft',
  ...common('relu'),
  init: (make) =>
    initOf('deft', make, (tape, p) => tape.own(mapTensor(p, 'relu', { dtype: 'f32' }))),
  forward: (t, call) => exchange(t, call, t.map(call.p.p, 'relu'), call.p.p),
});

/**
 * {@link deft} over an orthonormal basis q of the columns of p: `ΔW = q · (scaling · inject - qᵀ · w)`, which
 * removes exactly the subspace. The basis is computed in every step (Gram-Schmidt) with gradients through it. Its
 * signs are those of `torch.linalg.qr`, because `inject` depends on them. `para` is as in {@link deft}.
 */
export const deftQr = defineAdapter({
  method: 'deft-qr',
  ...common('qr'),
  init: (make) =>
    initOf('deft-qr', make, (tape, p) =>
      orthonormalColumns(
        tape,
        tape.own(p.to({ dtype: 'f32' })),
        columnMasks(make.config.r, make.device),
      ),
    ),
  prepare: ({ config: { r }, device }) => columnMasks(r, device),
  forward: (t, call) => {
    const q = orthonormalColumns(t, t.cast(call.p.p, 'f32'), call.state);
    return exchange(t, call, q, q);
  },
});
