/** The model that onnxruntime is given, where it is not here to judge it. */

import { describe, expect, it } from 'vitest';
import { matMulNBitsModel, quantizeBlocks } from '../../lib/bench/peers/onnx-model.js';

/** Fields of a protocol buffer: number, and value or bytes. Throws where lengths do not add up. */
function fields(data: Uint8Array): { field: number; value: number | Uint8Array }[] {
  const found: { field: number; value: number | Uint8Array }[] = [];
  let at = 0;
  const varint = () => {
    let [value, factor] = [0, 1];
    for (;;) {
      const byte = data[at++];
      if (byte === undefined) throw new Error('it ends too early');
      value += (byte & 127) * factor;
      if (byte < 128) return value;
      factor *= 128;
    }
  };
  while (at < data.length) {
    const tag = varint();
    const value = varint();
    if (tag % 8 === 0) found.push({ field: tag >> 3, value });
    else {
      expect(tag % 8).toBe(2);
      if (at + value > data.length) throw new Error('a length is too large');
      found.push({ field: tag >> 3, value: data.subarray(at, at + value) });
      at += value;
    }
  }
  return found;
}
const inside = (data: Uint8Array, field: number) =>
  fields(data)
    .filter((one) => one.field === field)
    .map(({ value }) => value as Uint8Array);
const text = (value: Uint8Array | undefined) => Buffer.from(value ?? []).toString();

describe('onnxruntime', () => {
  it('gets blocks of four bits within half a step', () => {
    // The largest of a block is level -8; two codes a byte, the first in the low half.
    const { codes, scales } = quantizeBlocks(Float32Array.of(-8, 4, 0, 7.4, 0, 0, 0, 0), 4);
    expect([...scales]).toEqual([1, -0]);
    expect([...codes]).toEqual([0 | (12 << 4), 8 | (15 << 4), 0x88, 0x88]);
    const w = Float32Array.from({ length: 256 }, (_, i) => Math.sin(i * i));
    const packed = quantizeBlocks(w, 64);
    w.forEach((value, i) => {
      const code = ((packed.codes[i >> 1] as number) >> (4 * (i % 2))) & 15;
      const scale = packed.scales[i >> 6] as number;
      // Level 8 does not exist: the other end may be a whole step off.
      const bound = code === 15 ? 1 : 0.5;
      expect(Math.abs(scale * (code - 8) - value)).toBeLessThanOrEqual(
        bound * Math.abs(scale) + 1e-6,
      );
    });
  });

  it('gets one node with its two constants', () => {
    const given = { M: 300, K: 128, N: 2, blocksize: 64, accuracyLevel: 4 };
    const codes = new Uint8Array(128).fill(7);
    const scales = Float32Array.of(1, 2, 3, 4);
    const model = matMulNBitsModel({ ...given, codes, scales });
    expect(fields(model).map(({ field }) => field)).toEqual([1, 7, 8, 8]);
    const [graph] = inside(model, 7) as [Uint8Array];
    const [node] = inside(graph, 1) as [Uint8Array];
    expect(inside(node, 1).map(text)).toEqual(['x', 'codes', 'scales']);
    expect(text(inside(node, 4)[0])).toBe('MatMulNBits');
    const attributes = inside(node, 5).map((one) => {
      const value = fields(one).find(({ field }) => field === 3)?.value;
      return [text(inside(one, 1)[0]), value];
    });
    expect(Object.fromEntries(attributes)).toEqual({
      ...{ K: 128, N: 2, bits: 4, block_size: 64, accuracy_level: 4 },
    });
    const tensors = inside(graph, 5);
    expect(tensors.map((one) => inside(one, 9)[0]?.length)).toEqual([128, 16]);
    const dims = fields(tensors[0] as Uint8Array).filter(({ field }) => field === 1);
    expect(dims.map(({ value }) => value)).toEqual([2, 2, 32]);
  });
});
