/** A layer of experts for the committed counters. */
import {
  type BaseWeight,
  combineRows,
  combineRowsBackward,
  type Device,
  type DType,
  expertsMatmul,
  expertsMatmulBackward,
  Indices,
  routeRows,
  selectExperts,
  selectExpertsBackward,
  type Tensor,
} from '../../lib/index.js';
import { quantized, random } from './counted-operands.js';

const DTYPES = ['f32', 'bf16', 'f16'] as const satisfies readonly DType[];

/** M tokens with two experts each, of whole tiles and pieces; and rows that are no whole 16-byte pieces. */
export function countedExperts(device: Device, M: number, E: number): void {
  const [k, N, K, r] = [2, 256, 256, 16];
  const ids = Array.from({ length: M * k }, (_, i) => (i * 5 + (i >> 3)) % E);
  const route = routeRows(Indices.from(ids, { limit: E, device }), { k, experts: E });
  for (const dtype of DTYPES) {
    const logits = random(device, 7, [M, 128], dtype);
    const chosen = selectExperts(logits, { k });
    selectExpertsBackward(random(device, 3, [M, k], 'f32'), logits, chosen);
    const x = random(device, 1, [M, K], dtype);
    const weights: BaseWeight[] = [
      random(device, 2, [E * N, K], dtype),
      quantized(device, 2, [E * N, K], dtype, { format: 'nf4' }),
      quantized(device, 2, [E * N, K], dtype, { format: 'int8' }),
    ];
    for (const w of weights) {
      const loraA = random(device, 5, [E, r, K], dtype);
      const loraB = random(device, 6, [E, N, r], dtype);
      const lora = { loraA, loraB, scaling: 1.5 };
      const { y, h } = expertsMatmul(x, w, route, { lora });
      const { gates } = chosen;
      const { dy } = combineRowsBackward(combineRows(y, route, { gates }), route, { gates, y });
      expertsMatmulBackward(dy as Tensor, w, route, { lora, x, h: h as Tensor });
    }
    const ragged = quantized(device, 8, [E * 64, 204], dtype, { format: 'nf4' });
    expertsMatmul(random(device, 9, [M, 204], dtype), ragged, route);
    expertsMatmulBackward(random(device, 10, [M * k, 64], dtype), ragged, route);
  }
}
