/** DEFT in its two variants, over p as it is and over an orthonormal basis of it: one form of both. */

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

/** More vectors than outputs PEFT does not take: its layers have as many as outputs then. */
const check = ({ N, config: { r } }: { N: number; config: DeftConfig }) =>
  r >= 1 && r <= N ? undefined : (['r', `from 1 to N (${N})`, String(r)] as const);

/** What inject, where there is one, starts with of what is taken out: with the scaling 1 in all. @throws ERR_VALUE */
function startOf(op: string, { scaling, para }: DeftConfig): number {
  if (scaling === 0 && !para) {
    fail('ERR_VALUE', op, 'scaling', 'other than 0 (inject starts divided by it)', '0');
  }
  return 1 / scaling;
}

/**
 * `x·wᵀ + bias + (scaling · dropout(x)·injectᵀ - (x·wᵀ)·right) · leftᵀ`, right and left [N, r]: what is seen of
 * the outputs is taken out along left.
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

/** Of more than N vectors PEFT takes N; PaRa has no injection that could be dropped or scaled. */
function readDeft(
  { r, alpha, deft_dropout, para }: Readonly<Record<string, unknown>>,
  { outFeatures }: StoredLayer,
): DeftConfig {
  const rank = Math.min(Number(r ?? defaults.r), outFeatures);
  if (para === true) return { r: rank, scaling: 1, dropout: 0, para };
  const scaling = typeof alpha === 'number' && alpha !== 0 ? alpha / rank : 1;
  return { r: rank, scaling, dropout: Number(deft_dropout ?? 0), para: false };
}

/** PEFT takes the number of a layer's outputs where r is above it, and divides alpha by what it has taken. */
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

/** p and, but with `para`, what is put in: at the start what `right`, [N, r], takes out. */
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

/** What both variants have in common; PEFT tells them apart by `decomposition_method`. */
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
 * A subspace of the outputs is taken out and something else put in:
 * `ΔW = p · (scaling · inject - relu(p)ᵀ · w)` with p [N, r] and inject [r, K], that is
 * `y = x·wᵀ + (scaling · x·injectᵀ - (x·wᵀ)·relu(p)) · pᵀ`. At the start inject is what is taken out.
 * With `para` nothing is put in (PaRa, Chen et al., 2024, arXiv:2406.05641): p alone is trained, and the start is
 * not the base model.
 *
 * This is the variant whose projector is `p · relu(p)ᵀ`; {@link deftQr} is the one over an orthonormal
 * basis of p.
 */
export const deft = defineAdapter({
  method: 'deft',
  ...common('relu'),
  init: (make) =>
    initOf('deft', make, (tape, p) => tape.own(mapTensor(p, 'relu', { dtype: 'f32' }))),
  forward: (t, call) => exchange(t, call, t.map(call.p.p, 'relu'), call.p.p),
});

/**
 * {@link deft} over an orthonormal basis q of the columns of p: `ΔW = q · (scaling · inject - qᵀ · w)`, which takes
 * exactly the subspace out. The basis is found in every step (Gram and Schmidt), and gradients go through
 * it; its signs are those of `torch.linalg.qr`, as `inject` depends on them. `para` as there.
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
