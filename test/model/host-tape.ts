/**
 * A tape with the loss of logits on the host, in float64: the decoder needs it where an adapter changes the head, and no
 * kernel computes it.
 */
import { type Indices, ModelTape, Tensor, type Value } from '../../lib/index.js';
import type { DecoderTape, LogitLossOptions } from '../../lib/model/decoder-tape.js';
import { softcapped } from '../oracle/decoder/layers.js';
import { type Matrix, matrix } from '../oracle/decoder/matrix.js';

/** @param targetsOf the values of the targets, which no call reads back */
export function hostLossTape(recording: boolean, targetsOf: () => Int32Array): DecoderTape {
  return withHostLoss(new ModelTape({ recording }), targetsOf);
}

/** Adds the loss of logits to a tape. */
export function withHostLoss(given: ModelTape, targetsOf: () => Int32Array): DecoderTape {
  const tape: DecoderTape = given;
  tape.crossEntropy = (logits: Value, _: Indices, options: LogitLossOptions) => {
    const { scale = 1, softcap } = options;
    const V = logits.shape[logits.shape.length - 1] as number;
    const host = matrix(logits.tensor.size / V, V, Float64Array.from(logits.tensor.readSync()));
    const { losses, slopes } = rowLosses(host, targetsOf(), softcap);
    const { device, dtype } = logits.tensor;
    const total = losses.values.reduce((sum, value) => sum + value, 0);
    const loss = tape.record(
      Tensor.from([scale * total], [1], { device }),
      [logits],
      [],
      (dy, pass) => {
        const factor = scale * (dy.readSync()[0] as number);
        const values = Float32Array.from(slopes.values, (value) => factor * value);
        const full = Tensor.from(values, logits.shape, { device });
        pass.give(logits, dtype === 'f32' ? full : full.to({ dtype }));
      },
    );
    const rows = Tensor.from(Float32Array.from(losses.values), [losses.rows], { device });
    return { loss, losses: rows };
  };
  return tape;
}

/** Cross-entropy of each row in float64, with the gradient of each row's logits. */
function rowLosses(logits: Matrix, targets: Int32Array, softcap: number | undefined) {
  const capped = softcapped(logits, softcap);
  const V = logits.cols;
  const losses = matrix(logits.rows, 1);
  const slopes = matrix(logits.rows, V);
  targets.forEach((target, m) => {
    if (target < 0) return;
    const row = capped.y.values.subarray(m * V, (m + 1) * V);
    const max = Math.max(...row);
    const total = row.reduce((sum, value) => sum + Math.exp(value - max), 0);
    losses.values[m] = Math.log(total) + max - (row[target] as number);
    row.forEach((value, j) => {
      slopes.values[m * V + j] = Math.exp(value - max) / total - (j === target ? 1 : 0);
    });
  });
  return { losses, slopes: capped.back(slopes) };
}
