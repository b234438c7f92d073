/**
 * The experts of a run in bf16, chosen as the run in f32 chooses them. In bf16 the logits of a router are off by a unit of
 * their last place or two. Where two of them are as close, a token may go to another expert, and no bound on rounding
 * holds for what follows. The recorded bf16 run of the peer took the experts of its f32 run everywhere.
 */
import { ModelTape, scope, Tensor } from '../../../lib/index.js';
import type { Decoder, DecoderCall, DecoderTokens } from '../../../lib/model/decoder.js';

/** Far below every logit, and finite in bf16. */
const kNever = -1e30;

/** Of each layer of experts 0 where a row goes in f32, and {@link kNever} elsewhere: [M · E]. */
export function chosenInF32(decoder: Decoder, tokens: DecoderTokens, call: DecoderCall) {
  const masks: Float32Array[] = [];
  scope(() => {
    const tape = new ModelTape({ recording: false });
    const select = tape.selectExperts.bind(tape);
    tape.selectExperts = (logits, options) => {
      const E = logits.shape.at(-1) as number;
      const values = logits.tensor.readSync();
      const mask = new Float32Array(values.length).fill(kNever);
      for (let first = 0; first < values.length; first += E) {
        const row = values.subarray(first, first + E);
        const order = [...row.keys()].sort((a, b) => (row[b] as number) - (row[a] as number));
        for (const e of order.slice(0, options.k)) mask[first + e] = 0;
      }
      masks.push(mask);
      return select(logits, options);
    };
    decoder.forward(tape, tokens, { ...call, dtype: 'f32' });
  });
  return masks;
}

/** The tape, which chooses the experts of these masks, layer by layer. */
export function pinExperts<T extends ModelTape>(tape: T, masks: readonly Float32Array[]): T {
  const select = tape.selectExperts.bind(tape);
  let layer = 0;
  tape.selectExperts = (logits, options) => {
    const { device, dtype } = logits.tensor;
    const mask = Tensor.from(masks[layer++] as Float32Array, logits.shape, { device });
    return select(tape.add(logits, tape.own(mask.to({ dtype }))), options);
  };
  return tape;
}
