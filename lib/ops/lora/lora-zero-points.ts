import { native } from '../../core/binding.js';
import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import { withLast } from '../base-weight.js';
import { multiplyAdd } from '../elementwise.js';
import { productWithZeros, type ZeroTerm } from '../zero-points.js';
import type { LoraAdapter } from './lora-adapter.js';
import type { LoraForwardCall, LoraSaved } from './lora-saved.js';

/** For a weight with zero-points: the two halves. The second adds both low-rank terms. */
export function forwardWithZeros(
  op: string,
  x: Tensor,
  zeros: ZeroTerm,
  adapter: LoraAdapter,
  call: LoraForwardCall,
  bias: Tensor | undefined,
): { y: Tensor; saved: LoraSaved } {
  const { loraB, loraBias, scaling } = adapter;
  const { handle, loraA, dropout, words, mask, compute } = call.parts;
  return scope(() => {
    const xHandle = Tensor.handleOf(x, op, 'x');
    const h = Tensor.adopt(
      native(op, (raw) => raw.loraShrink(xHandle, loraA, 1, dropout, words[0], words[1], mask)),
      withLast(x, adapter.r),
      'f32',
      x.device,
    );
    const sum =
      loraBias === undefined
        ? bias
        : multiplyAdd({
            a: loraBias.reshape([loraBias.size]),
            ...(bias === undefined ? {} : { c: bias.reshape([bias.size]) }),
            alpha: scaling,
            dtype: 'f32',
          });
    const y = productWithZeros(op, zeros, {
      x,
      handle,
      bias: sum === undefined ? null : Tensor.handleOf(sum, op, 'bias'),
      compute,
      N: zeros.zeros.shape[0] ?? 0,
      adapter: { h, loraB, scaling },
    });
    const held = call.keepX ? native(op, (raw) => raw.share(xHandle)) : null;
    return call.complete(y, h, held);
  });
}
