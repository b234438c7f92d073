import type { Value } from '../../autograd/gradient-tape.js';
import type { ModelTape } from '../../autograd/model/model-tape.js';
import { wrongType } from '../../core/errors.js';
import { Tensor } from '../../core/tensor.js';
import { checkInteger } from '../../core/validate.js';
import type { Decoder } from '../../model/decoder.js';
import { denseRows, putRows, rowStep } from '../../ops/dense-rows.js';
import { embedding } from '../../ops/model/embedding.js';
import { Indices } from '../../ops/model/indices.js';

/** Which logits {@link choiceLogits} gives. */
export interface ChoiceLogits {
  /** Of each example the position of the token that the answer follows, below T. */
  readonly positions: readonly number[];
  /** Ids of the answers' tokens, the classes. */
  readonly tokens: readonly number[];
}

/**
 * The logits of a few tokens after one position of each row: a question with several answers. Only those rows of the head are
 * read.
 * @param features [B, T, hiddenSize] of {@link Decoder.forward}
 * @returns [B, tokens]
 * @throws ERR_TYPE · ERR_VALUE for positions and tokens that are not there
 * @example
 * const pass = (tape) => {
 *   const { features } = decoder.forward(tape, { ids, B, T }, { adapters });
 *   return choiceLogits(decoder, tape, features, { positions, tokens: [a, b, c, d] });
 * };
 */
export function choiceLogits(
  decoder: Decoder,
  tape: ModelTape,
  features: Value,
  { positions, tokens }: ChoiceLogits,
): Value {
  const op = 'choiceLogits';
  const { head, device } = decoder.weights;
  const { vocabSize, finalSoftcap: cap } = decoder.config;
  const [B = 0, T = 0, D = 0] = features.shape;
  if (!Array.isArray(tokens)) throw wrongType(op, 'tokens', 'an array of ids', tokens);
  for (const [i, id] of tokens.entries()) checkInteger(op, `tokens[${i}]`, id, 0, vocabSize - 1);
  if (!Array.isArray(positions) || positions.length !== B) {
    throw wrongType(op, 'positions', `an array of ${B} numbers`, positions);
  }
  const rows = positions.map((position, b) => {
    return b * T + checkInteger(op, `positions[${b}]`, position, 0, T - 1);
  });
  const flat = tape.reshape(features, [B * T, D]);
  const { dtype } = features.tensor;
  const chosen = tape.record(
    embedding(Indices.from(rows, { limit: B * T, device }), flat.tensor),
    [flat],
    [],
    (dy, pass) => {
      const whole = Tensor.zeros([B * T, D], { device, dtype });
      for (const [b, row] of rows.entries())
        putRows(whole, denseRows(dy, b, b + 1, { dtype }), row);
      pass.give(flat, whole);
    },
  );
  const step = rowStep(head.w);
  const w = Tensor.zeros([tokens.length, D], { device });
  for (const [i, id] of tokens.entries()) {
    const first = id - (id % step);
    const block = denseRows(head.w, first, Math.min(first + step, vocabSize));
    putRows(w, denseRows(block, id - first, id - first + 1), i);
  }
  const logits = tape.matmul(chosen, tape.own(w));
  if (cap === undefined) return logits;
  return tape.affine(tape.map(tape.affine(logits, 1 / cap), 'tanh'), cap);
}
