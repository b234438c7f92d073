/** A layer's adapter as steps of a larger tape: how a model records its adapted layers. */
import type { Value } from '../../autograd/gradient-tape.js';
import { checkStep } from '../../autograd/gradient-tape.js';
import type { Tape } from '../../autograd/tape.js';
import { fail } from '../../core/errors.js';
import { refuseInStep } from '../../core/recording.js';
import { checkSameDevice, showShape } from '../../core/validate.js';
import { type BaseWeight, checkWeight } from '../../ops/base-weight.js';
import type { Adapter } from './adapter.js';
import { checkResult } from './adapter-saved.js';

/** What {@link recordAdapter} takes beside the adapter. */
export interface RecordCall {
  /** [..., K] */
  readonly x: Value;
  /** [N, K], frozen */
  readonly w: BaseWeight;
  /** [N] */
  readonly bias?: Value | undefined;
  /** Of what the method samples on the host; dropout takes the tape's. */
  readonly seed?: number | undefined;
  /** Further operands that the method names, by name. */
  readonly inputs?: Readonly<Record<string, Value>>;
}

/**
 * Records an adapted layer on a tape of the caller's: y [..., N] and the trained tensors as values of that tape, for its
 * gradients. The tape's `recording` decides whether dropout is on.
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE; what the method's formula throws
 */
export function recordAdapter(
  t: Tape,
  adapter: Adapter,
  { x, w, bias, seed, inputs = {} }: RecordCall,
): { readonly y: Value; readonly parameters: Readonly<Record<string, Value>> } {
  const op = `${adapter.method}.record`;
  checkStep(op, t, { x, ...(bias === undefined ? {} : { bias }), ...inputs });
  const { N, K } = checkWeight(op, w);
  const { inFeatures, outFeatures, definition, config, state } = adapter;
  if (N !== outFeatures || K !== inFeatures) {
    const expected = `of shape [N = ${outFeatures}, K = ${inFeatures}]`;
    fail('ERR_SHAPE', op, 'w', expected, showShape(w.shape));
  }
  checkSameDevice(op, 'the adapter', adapter, x.tensor);
  const valuesOf = (tensors: Adapter['parameters'], trained: boolean) =>
    Object.fromEntries(
      Object.entries(tensors).map(([name, tensor]) => [
        name,
        trained ? t.variable(tensor) : t.constant(tensor),
      ]),
    );
  const parameters = valuesOf(adapter.parameters, true);
  const y = definition.forward(t, {
    x,
    w,
    bias,
    p: { ...parameters, ...valuesOf(adapter.buffers, false) },
    config,
    state,
    inputs,
    N,
    K,
    training: t.recording,
    // Only a method that draws on the host reads it.
    get seed() {
      if (seed !== undefined) refuseInStep(`${adapter.method}.forward`, x.tensor.device, 'sampled');
      return seed;
    },
  });
  checkResult(op, y, x.tensor, N);
  return { y, parameters };
}
