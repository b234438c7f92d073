// Calls of the quantisers that contradict themselves: one typed error each, which names both sides.
import { describe, expect, it } from 'vitest';
import {
  LowrankError,
  LowrankTypeError,
  quantizeLayer,
  quantizePlanar,
  type RawTensor,
} from '../../../lib/index.js';

const w = (shape: number[], dtype: RawTensor['dtype'] = 'F32'): RawTensor => {
  const size = shape.reduce((a, b) => a * b, 1);
  const data = dtype === 'F32' ? new Float32Array(size) : new Uint8Array(size);
  return { dtype, shape, data };
};

const CALLS: [string, unknown, unknown, string][] = [
  ['ERR_TYPE', undefined, { format: 'mxfp4' }, 'w must be'],
  ['ERR_TYPE', w([2, 64]), { format: 4 }, 'format must be a format name'],
  ['ERR_FORMAT', w([2, 64]), { format: 'mxfp5' }, 'one of fp8-e4m3,'],
  ['ERR_VALUE', w([2, 64]), { format: 'mxfp4', group: 32 }, 'groupSize'],
  ['ERR_DTYPE', w([2, 64], 'I8'), { format: 'mxfp4' }, 'F32, BF16 or F16, got I8'],
  ['ERR_SHAPE', w([2, 2, 64]), { format: 'mxfp4' }, '[N, K]'],
  ['ERR_SHAPE', w([0, 64]), { format: 'mxfp4' }, '[N, K]'],
  ['ERR_SHAPE', w([2, 65]), { format: 'mxfp4' }, 'columns that groups of 32 divide, got 65'],
  ['ERR_SHAPE', w([2, 24]), { format: 'nvfp4' }, 'columns that groups of 16 divide, got 24'],
  ['ERR_SHAPE', w([2, 64]), { format: 'int4' }, 'columns that groups of 128 divide, got 64'],
  ['ERR_SHAPE', w([3, 5]), { format: 'int4', layout: 'hqq' }, 'elements that groups of 64 divide'],
  [
    'ERR_SHAPE',
    w([3, 64]),
    { format: 'int4', layout: 'hqq' },
    'groups that 2 codes a byte divide, got 3',
  ],
  ['ERR_VALUE', w([2, 64]), { format: 'mxfp4', groupSize: 16 }, '32 for mxfp4, got 16'],
  ['ERR_VALUE', w([2, 64]), { format: 'int4', groupSize: 0 }, 'a positive integer, got 0'],
  ['ERR_VALUE', w([2, 64]), { format: 'int4', groupSize: 2.5 }, 'a positive integer'],
  ['ERR_VALUE', w([2, 64]), { format: 'mxfp4', scaleRule: 'ceil' }, 'floor, even, rceil, modelopt'],
  [
    'ERR_VALUE',
    w([2, 64]),
    { format: 'nvfp4', layout: 'modelopt-nvfp4', scaleRule: 'compressed-tensors' },
    'modelopt or torchao in modelopt-nvfp4',
  ],
  [
    'ERR_VALUE',
    w([2, 64]),
    { format: 'nvfp4', layout: 'nvfp4-pack-quantized', scaleRule: 'torchao' },
    'compressed-tensors in nvfp4-pack-quantized',
  ],
  ['ERR_VALUE', w([2, 64]), { format: 'mxfp4', symmetric: true }, 'left out for mxfp4'],
  ['ERR_VALUE', w([2, 64]), { format: 'int4', axis: 0 }, 'left out for int4 in pack-quantized'],
  ['ERR_TYPE', w([2, 64]), { format: 'int4', symmetric: 1 }, 'symmetric must be a boolean'],
  ['ERR_VALUE', w([2, 64]), { format: 'int4', layout: 'hqq', axis: 2 }, 'one of 0, 1, got 2'],
  ['ERR_FORMAT', w([2, 64]), { format: 'int5', layout: 'gptq' }, 'one of pack-quantized for int5'],
  ['ERR_FORMAT', w([2, 64]), { format: 'mxfp6-e3m2', layout: 'fp8' }, 'left out for mxfp6-e3m2'],
  ['ERR_VALUE', w([2, 64]), { format: 'int4', strategy: 'block' }, 'tensor, channel, group'],
  [
    'ERR_VALUE',
    w([2, 64]),
    { format: 'int4', layout: 'gptq', strategy: 'tensor' },
    'channel, group',
  ],
  [
    'ERR_VALUE',
    w([2, 64]),
    { format: 'int4', strategy: 'channel', groupSize: 32 },
    'left out with strategy channel',
  ],
  ['ERR_TYPE', w([2, 64]), { format: 'fp8-e4m3', blockSize: 128 }, 'array of two integers'],
  ['ERR_VALUE', w([2, 64]), { format: 'fp8-e4m3', blockSize: [0, 1] }, 'blockSize[0]'],
  [
    'ERR_VALUE',
    w([2, 64]),
    { format: 'fp8-e4m3', strategy: 'tensor', blockSize: [2, 2] },
    'left out with strategy tensor',
  ],
  ['ERR_VALUE', w([2, 64]), { format: 'fp8-e4m3', scaleFormat: 'e8m0' }, 'float, ue8m0'],
];

describe('bad calls', () => {
  it.each(CALLS)('%s %#', (code, weight, options, part) => {
    for (const call of [quantizePlanar, quantizeLayer]) {
      let caught: unknown;
      try {
        call(weight as RawTensor, options as { format: 'mxfp4' });
      } catch (error) {
        caught = error;
      }
      expect(caught instanceof LowrankError || caught instanceof LowrankTypeError).toBe(true);
      expect(caught).toMatchObject({ code, message: expect.stringContaining(part) });
    }
  });

  it('a scale that f16 does not hold', () => {
    const large = { ...w([8, 128]), data: new Float32Array(8 * 128).fill(1e8) };
    for (const layout of ['gptq', 'awq'] as const) {
      expect(() => quantizeLayer(large, { format: 'int4', layout })).toThrow(/scales in f16/);
    }
  });

  it('values that are not finite', () => {
    for (const flaw of [Number.NaN, Number.NEGATIVE_INFINITY]) {
      const data = new Float32Array(128);
      data[70] = flaw;
      const call = () => quantizePlanar({ ...w([2, 64]), data }, { format: 'fp8-e4m3' });
      expect(call).toThrow(expect.objectContaining({ code: 'ERR_NON_FINITE' }));
      expect(call).toThrow('w[70]');
    }
  });
});
