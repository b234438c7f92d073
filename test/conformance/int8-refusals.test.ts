// compute: 'int8' where it is not: refused by TypeScript and by the addon in the same words, saying where it is.
import { describe, expect, it } from 'vitest';
import { binding } from '../../lib/core/binding.js';
import { namesOfBits } from '../../lib/core/formats.js';
import {
  LoraAdapter,
  loraForward,
  matmul,
  QuantizedWeight,
  quantize,
  scope,
  Tensor,
} from '../../lib/index.js';
import { hasInt8, INT8_DEVICES } from '../../lib/ops/compute.js';
import { loraCase } from './lora-case.js';
import { DEVICES, operand, WEIGHTS, weightOperand } from './operands.js';

const ELSEWHERE = DEVICES.filter((device) => !INT8_DEVICES.includes(device));

it('every card has products of rowwise codes, none of 4 bits', () => {
  for (const device of ['cuda', 'cuda:1', 'cuda-emulated'] as const) {
    expect([device, hasInt8(device, true), hasInt8(device, false)]).toEqual([device, true, false]);
  }
});

/** What a call throws. */
function refusalOf(call: () => unknown): { code: unknown; message: string } {
  try {
    call();
  } catch (error) {
    return error as { code: unknown; message: string };
  }
  throw new Error('not refused');
}

describe.each(DEVICES)('refusals on %s', (device) => {
  it('the addon refuses what TypeScript does, in the same words', () => {
    scope(() => {
      const at = { seed: 1, device };
      const x = Tensor.randn([2, 64], at);
      const dense = Tensor.randn([3, 64], at);
      const weights = [
        [dense, Tensor.handleOf(dense, 'matmul', 'w'), 'int8'],
        ...(['int8', 'nf4'] as const).map((format) => {
          const w = quantize(dense, { format });
          const compute = format === 'nf4' && INT8_DEVICES.includes(device) ? 'int4' : 'int8';
          return [w, QuantizedWeight.handleOf(w, 'matmul', 'w'), compute] as const;
        }),
      ] as const;
      const adapter = LoraAdapter.init({
        inFeatures: 64,
        outFeatures: 3,
        r: 2,
        loraAlpha: 1,
        ...at,
      });
      const handle = (tensor: Tensor) => Tensor.handleOf(tensor, 'test', 'tensor');
      const xRaw = handle(x);
      const [a, b] = [handle(adapter.loraA), handle(adapter.loraB)];
      for (const [w, wRaw, compute] of weights) {
        const options = { compute: compute as 'int8' };
        const ours = refusalOf(() => matmul(x, w, options));
        const theirs = refusalOf(() => binding().matmul(xRaw, wRaw, null, compute));
        expect([theirs.code, theirs.message]).toEqual([ours.code, ours.message]);
        const oursLora = refusalOf(() => loraForward(x, w, adapter, options));
        const theirsLora = refusalOf(() =>
          binding().loraForward(xRaw, wRaw, null, a, b, null, 1, 0, 0, 0, null, compute),
        );
        expect([theirsLora.code, theirsLora.message]).toEqual([oursLora.code, oursLora.message]);
      }
    });
  });

  it('dense weights and 8-bit ones, saying which formats have it', () => {
    scope(() => {
      for (const spec of WEIGHTS.filter(
        ({ format }) => format === undefined || format === 'int8',
      )) {
        const dtype = spec.dense ?? 'f32';
        const x = operand(2, 64, { seed: 1, dtype, device });
        const { w } = weightOperand(spec, 3, 64, dtype, { seed: 2, device });
        expect(() => matmul(x.tensor, w, { compute: 'int8' })).toThrow(
          expect.objectContaining({
            code: 'ERR_UNSUPPORTED',
            message: expect.stringContaining(`${namesOfBits(4).join(', ')} or rowwise int8`),
          }),
        );
      }
    });
  });
});

// An empty list would be refused by describe.each.
for (const device of ELSEWHERE) {
  it(`${device} refuses it, naming the devices that have it`, async () => {
    await scope(async () => {
      const spec = { name: 'nf4', format: 'nf4' } as const;
      const test = loraCase({ M: 2, N: 3, K: 64, r: 2 }, {}, spec, 'bf16', device, 1);
      const refused = expect.objectContaining({
        code: 'ERR_UNSUPPORTED',
        message: expect.stringContaining('cpu and reference'),
      });
      const { x, w, adapter } = test;
      expect(() => matmul(x, w, { compute: 'int8' })).toThrow(refused);
      expect(() => loraForward(x, w, adapter, { compute: 'int8' })).toThrow(refused);
      await matmul(x, w, { compute: 'exact' }).read();
    });
  });
}
