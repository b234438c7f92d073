/** What both variants of DEFT have in common: tensors, formula, and the fields of PEFT's config. */

import type { Value } from '../autograd/gradient-tape.js';
import type { Tape } from '../autograd/tape.js';
import { fail } from '../core/errors.js';
import type { AdapterCall, StoredLayer } from './definition.js';

export interface DeftConfig {
  readonly r: number;
  readonly scaling: number;
  readonly dropout: number;
  readonly para: boolean;
}

export const deftDefaults: DeftConfig = { r: 8, scaling: 1, dropout: 0, para: false };

export const deftShapes = (size: { N: number; K: number; config: DeftConfig }) => {
  const { r, para } = size.config;
  return { p: [size.N, r], ...(para ? {} : { inject: [r, size.K] }) };
};

/** More vectors than outputs PEFT does not take: its layers have as many as outputs then. */
export const checkDeft = ({ N, config: { r } }: { N: number; config: DeftConfig }) =>
  r >= 1 && r <= N ? undefined : (['r', `from 1 to N (${N})`, String(r)] as const);

/** What inject, where there is one, starts with of what is taken out: with the scaling 1 in all. @throws ERR_VALUE */
export function startOf(op: string, { scaling, para }: DeftConfig): number {
  if (scaling === 0 && !para) {
    fail('ERR_VALUE', op, 'scaling', 'other than 0 (inject starts divided by it)', '0');
  }
  return 1 / scaling;
}

/**
 * `x·wᵀ + bias + (scaling · dropout(x)·injectᵀ - (x·wᵀ)·right) · leftᵀ`, right and left [N, r]: what is seen of
 * the outputs is taken out along left.
 */
export function exchange<S>(
  t: Tape,
  { x, w, bias, p, config }: AdapterCall<DeftConfig, 'p' | 'inject', S>,
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
export function readDeft(
  { r, alpha, deft_dropout, para }: Readonly<Record<string, unknown>>,
  { outFeatures }: StoredLayer,
): DeftConfig {
  const rank = Math.min(Number(r ?? deftDefaults.r), outFeatures);
  if (para === true) return { r: rank, scaling: 1, dropout: 0, para };
  const scaling = typeof alpha === 'number' && alpha !== 0 ? alpha / rank : 1;
  return { r: rank, scaling, dropout: Number(deft_dropout ?? 0), para: false };
}

/** PEFT takes the number of a layer's outputs where r is above it, and divides alpha by what it has taken. */
export const writeDeft = (
  { r, scaling, dropout, para }: DeftConfig,
  _: readonly string[],
  configs: readonly DeftConfig[],
) => ({
  r: Math.max(...configs.map((each) => each.r)),
  alpha: scaling === 1 ? null : scaling * r,
  deft_dropout: dropout,
  para,
});
