import { native } from '../../core/binding.js';
import { checkShape, checkTensor, lastDim } from '../../core/check-tensor.js';
import { fail, shown } from '../../core/errors.js';
import { Tensor } from '../../core/tensor.js';
import {
  checkInteger,
  checkSameDevice,
  orDefault,
  readOptions,
  showShape,
} from '../../core/validate.js';
import { withLast } from '../base-weight.js';
import { Indices } from '../model/indices.js';
import { MOST_EXPERTS } from './expert-route.js';

/** Over which logits of a row the softmax goes. */
export type GateSoftmax = 'chosen' | 'all';

/** How {@link selectExperts} works. */
export interface SelectExpertsOptions {
  /** Experts of a row, from 1 to E. */
  k: number;
  /**
   * `chosen`: the gates of a row are the softmax of its k logits, and sum to 1. `all`: its k largest shares of the softmax
   * over all logits. Default `chosen`.
   */
  softmax?: GateSoftmax;
}

/** The experts of each row. */
export interface SelectedExperts {
  /** [M · k], row by row, the largest logit first. */
  experts: Indices;
  /** [..., k] f32 */
  gates: Tensor;
}

function checkSoftmax(op: string, softmax: unknown): boolean {
  if (softmax !== 'chosen' && softmax !== 'all') {
    fail('ERR_VALUE', op, 'softmax', 'one of chosen, all', shown(softmax));
  }
  return softmax === 'chosen';
}

function checkLogits(op: string, logits: Tensor): number {
  checkTensor(op, 'logits', logits);
  const E = logits.shape.length === 0 ? 0 : lastDim(logits);
  if (E < 1 || E > MOST_EXPERTS) {
    const expected = `of shape [..., E] with E from 1 to ${MOST_EXPERTS}`;
    fail('ERR_SHAPE', op, 'logits', expected, showShape(logits.shape));
  }
  return E;
}

/**
 * The k experts of each row with the largest logits, and their gates. Of equal logits the first counts as larger, and NaN
 * as the largest. With C the chosen experts of a row (`softmax: 'chosen'`) or all of them (`'all'`):
 *
 * `gates[m, j] = exp z[m, e_j] / Σ_C exp z[m, c]`
 *
 * in double, rounded once. `chosen` is the softmax over all experts with the k largest shares scaled to a sum of 1 (Jiang
 * et al., Mixtral of Experts, 2024, arXiv:2401.04088).
 * @param logits [..., E] of a router, any dtype
 * @throws ERR_TYPE, ERR_SHAPE, ERR_VALUE, ERR_DISPOSED, ERR_OOM
 * @example
 * const { experts, gates } = selectExperts(matmul(x, router), { k: 2 });
 */
export function selectExperts(logits: Tensor, options: SelectExpertsOptions): SelectedExperts {
  const op = 'selectExperts';
  const E = checkLogits(op, logits);
  const given = readOptions(op, options, { k: true, softmax: true });
  const k = checkInteger(op, 'k', given.k, 1, E);
  const chosenOnly = checkSoftmax(op, orDefault(given.softmax, 'chosen'));
  const handle = Tensor.handleOf(logits, op, 'logits');
  const [experts, gates] = native(op, (raw) => raw.selectExperts(handle, k, chosenOnly));
  const { device } = logits;
  return {
    experts: Indices.adopt(experts, { length: (logits.size / E) * k, limit: E, device }),
    gates: Tensor.adopt(gates, withLast(logits, k), 'f32', device),
  };
}

/**
 * Gradient of {@link selectExperts} by the logits. The choice itself has none. With p the softmax of a row over C (0
 * outside of it), d[e] the gradient of the gate of a chosen expert e, else 0, and `s = Σⱼ gates[j] · dGates[j]`:
 *
 * `dLogits[e] = p[e] · (d[e] - s)`
 * @param dGates [..., k] f32
 * @param logits of the forward pass
 * @param options `softmax` of the forward pass, and its results
 * @returns [..., E], dtype of `logits`
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_VALUE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
 * @example
 * const dLogits = selectExpertsBackward(dGates, logits, { experts, gates });
 */
export function selectExpertsBackward(
  dGates: Tensor,
  logits: Tensor,
  options: SelectedExperts & Pick<SelectExpertsOptions, 'softmax'>,
): Tensor {
  const op = 'selectExpertsBackward';
  checkTensor(op, 'dGates', dGates);
  const E = checkLogits(op, logits);
  const given = readOptions(op, options, { experts: true, gates: true, softmax: true });
  const chosenOnly = checkSoftmax(op, orDefault(given.softmax, 'chosen'));
  const gates = checkTensor(op, 'gates', given.gates);
  const k = gates.shape.length === 0 ? 0 : lastDim(gates);
  checkShape(op, 'gates', gates, withLast(logits, k));
  checkShape(op, 'dGates', dGates, gates.shape);
  const experts = Indices.handleOf(given.experts as Indices, op, 'experts');
  const { length } = given.experts as Indices;
  if (length !== gates.size) {
    fail('ERR_SHAPE', op, 'experts', `${gates.size} indices, one a gate`, String(length));
  }
  for (const [name, value] of Object.entries({ gates, dGates })) {
    if (value.dtype !== 'f32') fail('ERR_DTYPE', op, name, 'f32', value.dtype);
    checkSameDevice(op, name, value, logits);
  }
  if (k < 1 || k > E) fail('ERR_SHAPE', op, 'gates', `of 1 to ${E} columns`, String(k));
  const [dHandle, logitsHandle, gatesHandle] = [
    Tensor.handleOf(dGates, op, 'dGates'),
    Tensor.handleOf(logits, op, 'logits'),
    Tensor.handleOf(gates, op, 'gates'),
  ];
  const dLogits = native(op, (raw) =>
    raw.selectExpertsBackward(dHandle, logitsHandle, experts, gatesHandle, chosenOnly),
  );
  return Tensor.adopt(dLogits, logits.shape, logits.dtype, logits.device);
}
