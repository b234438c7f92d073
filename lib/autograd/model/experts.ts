import type { Tensor } from '../../core/tensor.js';
import { readOptions } from '../../core/validate.js';
import type { BaseWeight } from '../../ops/base-weight.js';
import { combineRows, combineRowsBackward } from '../../ops/experts/combine-rows.js';
import { type ExpertRoute, routeRows } from '../../ops/experts/expert-route.js';
import {
  type ExpertsGradient,
  expertsMatmul,
  expertsMatmulBackward,
} from '../../ops/experts/experts-matmul.js';
import {
  type SelectExpertsOptions,
  selectExperts,
  selectExpertsBackward,
} from '../../ops/experts/select-experts.js';
import { checkStep, type GradientTape, type Value } from '../gradient-tape.js';

/** How the products of experts are recorded. */
export interface ExpertsStep {
  /** [E, N] */
  bias?: Value;
  /** As {@link expertsMatmul} has it; default true. */
  gather?: boolean;
  /** [E, r, K] or [1, r, K], and [E, N, r] or [1, N, r]. */
  lora?: { readonly a: Value; readonly b: Value; readonly scaling: number };
}

const partsOf = ({ order, inverse, offsets }: ExpertRoute) => [order, inverse, offsets];

/** The experts of each row, the route of its slots, and the gates [..., k], which have gradients for the logits. */
export function recordSelection(
  t: GradientTape,
  logits: Value,
  options: SelectExpertsOptions,
): { route: ExpertRoute; gates: Value } {
  const op = 'ModelTape.selectExperts';
  checkStep(op, t, { logits });
  const { k, softmax = 'chosen' } = readOptions<SelectExpertsOptions>(op, options, {
    k: true,
    softmax: true,
  });
  const made = selectExperts(logits.tensor, { k: k as number, softmax });
  const { experts } = made;
  const [E = 0] = logits.shape.slice(-1);
  const route = routeRows(experts, { k: k as number, experts: E });
  const keeps = [logits.tensor, made.gates, experts];
  const gates = t.record(made.gates, [logits], keeps, (dy, pass) => {
    pass.give(logits, selectExpertsBackward(dy, logits.tensor, { ...made, softmax }));
  });
  return { route, gates };
}

/** `expertsMatmul(x, w, route)`: [slots, N]. Of a frozen base; bias is a constant. */
export function recordExperts(
  t: GradientTape,
  x: Value,
  w: BaseWeight,
  route: ExpertRoute,
  options: ExpertsStep,
): Value {
  const op = 'ModelTape.expertsMatmul';
  const { bias, gather, lora } = readOptions<ExpertsStep>(op, options, {
    bias: true,
    gather: true,
    lora: true,
  });
  checkStep(op, t, {
    x,
    ...(bias === undefined ? {} : { bias }),
    ...(lora === undefined ? {} : { 'lora.a': lora.a, 'lora.b': lora.b }),
  });
  const shape = {
    ...(gather === undefined ? {} : { gather }),
    ...(lora === undefined
      ? {}
      : { lora: { loraA: lora.a.tensor, loraB: lora.b.tensor, scaling: lora.scaling } }),
  };
  const { y, h } = expertsMatmul(x.tensor, w, route, {
    ...shape,
    ...(bias === undefined ? {} : { bias: bias.tensor }),
  });
  const factors = lora === undefined ? [] : [lora.a, lora.b];
  const keeps = [
    ...partsOf(route),
    ...factors.map(({ tensor }) => tensor),
    ...(lora?.a.differentiable === true ? [x.tensor] : []),
    ...(lora?.b.differentiable === true && h !== undefined ? [h] : []),
  ];
  return t.record(y, [x, ...factors], keeps, (dy, pass) => {
    const wanted: readonly (readonly [ExpertsGradient, Value | undefined])[] = [
      ['dx', x],
      ['dLoraA', lora?.a],
      ['dLoraB', lora?.b],
    ];
    const needs = wanted.flatMap(([name, value]) =>
      value !== undefined && pass.wants(value) ? [name] : [],
    );
    if (needs.length === 0) return;
    const found = expertsMatmulBackward(dy, w, route, {
      ...shape,
      needs,
      ...(needs.includes('dLoraA') ? { x: x.tensor } : {}),
      ...(needs.includes('dLoraB') && h !== undefined ? { h } : {}),
    });
    for (const [name, value] of wanted) {
      const gradient: Tensor | undefined = found[name];
      if (value !== undefined && gradient !== undefined) {
        pass.give(value, gradient.reshape(value.shape));
      }
    }
  });
}

/** `combineRows(y, route, { gates })`: [rows, N], with gradients for y and the gates. */
export function recordCombine(t: GradientTape, y: Value, gates: Value, route: ExpertRoute): Value {
  checkStep('ModelTape.combineRows', t, { y, gates });
  const out = combineRows(y.tensor, route, { gates: gates.tensor });
  const keeps = [...partsOf(route), gates.tensor, ...(gates.differentiable ? [y.tensor] : [])];
  return t.record(out, [y, gates], keeps, (dy, pass) => {
    const [wantsY, wantsGates] = [pass.wants(y), pass.wants(gates)];
    if (!wantsY && !wantsGates) return;
    const found = combineRowsBackward(dy, route, {
      gates: gates.tensor,
      dtype: y.tensor.dtype,
      needs: [...(wantsY ? (['dy'] as const) : []), ...(wantsGates ? (['dGates'] as const) : [])],
      ...(wantsGates ? { y: y.tensor } : {}),
    });
    if (found.dy !== undefined) pass.give(y, found.dy);
    if (found.dGates !== undefined) pass.give(gates, found.dGates.reshape(gates.shape));
  });
}
