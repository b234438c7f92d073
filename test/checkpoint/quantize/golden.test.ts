// Weights quantised to planar formats: the bytes that the recorded libraries gave, rule by rule.
import { describe, expect, it } from 'vitest';
import {
  type LayerTensors,
  type PlanarWeight,
  planarToFloat32,
  type QuantizePlanarOptions,
  quantizeLayer,
  quantizePlanar,
  type RawTensor,
  readQuantizedLayer,
  writeQuantizedLayer,
} from '../../../lib/index.js';
import { caseIds, type GoldenCase, loadCase } from '../../golden/case-file.js';
import { RuleBook } from '../../golden/rules.js';

/** The weight of a case as its file has it. */
function weightOf(golden: GoldenCase): RawTensor {
  const { dtype, shape, bytes } = golden.tensor('in.w');
  return { dtype: dtype as RawTensor['dtype'], shape, data: bytes };
}

const bytesOf = ({ data }: RawTensor): Uint8Array =>
  new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

const part = (tensors: LayerTensors, key: string): Uint8Array => bytesOf(tensors[key] as RawTensor);

/** Applies the rules of the tensors that `mine` names; all of a case but for `others`. */
function check(
  golden: GoldenCase,
  weight: PlanarWeight,
  mine: Readonly<Record<string, ArrayLike<number>>>,
): void {
  const book = new RuleBook(golden);
  const made: typeof mine = { 'out.dequant': planarToFloat32(weight), ...mine };
  for (const rule of golden.rules) {
    const answer = made[rule.tensor];
    if (answer === undefined) throw new Error(`${golden.id}: nothing for ${rule.tensor}`);
    book.apply(rule, answer);
  }
  book.finish();
}

describe('recorded weights', () => {
  it.each(caseIds('formats/fp8').filter((id) => !id.includes('/cast_')))('%s', (id) => {
    const golden = loadCase(id);
    const { params } = golden;
    const blockSize = (params.block_structure ?? params.weight_block_size) as [number, number];
    const strategy = blockSize === undefined ? (params.strategy ?? 'channel') : 'block';
    const layer = quantizeLayer(weightOf(golden), {
      format: params.element === 'e5m2' ? 'fp8-e5m2' : 'fp8-e4m3',
      strategy: strategy as 'tensor',
      ...(blockSize === undefined ? {} : { blockSize }),
      ...(params.scale_fmt === 'ue8m0' ? { scaleFormat: 'ue8m0' } : {}),
    });
    const tensors = writeQuantizedLayer(layer);
    const scale = tensors[blockSize === undefined ? 'weight_scale' : 'weight_scale_inv'];
    expect(scale?.shape).toEqual(golden.tensor('out.scale').shape);
    check(golden, layer.weight, {
      'out.scale': bytesOf(scale as RawTensor),
      'out.codes': part(tensors, 'weight'),
    });
  });

  it.each(caseIds('formats/mx').filter((id) => !/nonfinite|gptoss/.test(id)))('%s', (id) => {
    const golden = loadCase(id);
    const [, name] = /\/(mxfp\d)/.exec(id) as unknown as [string, string];
    const element = /_(e\dm\d)_/.exec(id)?.[1];
    const rule = (golden.params.scale_rule as string | undefined)?.toLowerCase() ?? 'modelopt';
    const options = {
      format: [name, element].filter((word) => word !== undefined).join('-'),
      scaleRule: rule,
    } as QuantizePlanarOptions;
    const weight = quantizePlanar(weightOf(golden), options);
    const scales = weight.scale.values.data as Uint8Array;
    if (name === 'mxfp6') {
      check(golden, weight, { 'out.scale_e8m0': scales, 'out.codes': weight.codes });
      return;
    }
    const tensors = writeQuantizedLayer(quantizeLayer(weightOf(golden), options));
    const codes = part(tensors, name === 'mxfp4' ? 'weight_packed' : 'weight');
    expect(part(tensors, 'weight_scale')).toEqual(scales);
    if (rule !== 'modelopt') {
      check(golden, weight, { 'out.scale_e8m0': scales, 'out.codes': codes });
      return;
    }
    // The peer writes the sign of 0 as it comes; the values are the same.
    const dequant = golden.numbers('out.dequant');
    check(golden, weight, { 'out.scale_e8m0': scales, 'out.codes': codes });
    expect([...planarToFloat32(weight)].map((v) => v + 0)).toEqual([...dequant].map((v) => v + 0));
  });

  it('of NaN and infinity are refused', () => {
    const golden = loadCase('formats/mx/nonfinite');
    for (const format of ['mxfp4', 'mxfp8-e4m3'] as const) {
      expect(() => quantizePlanar(weightOf(golden), { format })).toThrow(
        expect.objectContaining({ code: 'ERR_NON_FINITE' }),
      );
    }
  });

  it.each(caseIds('formats/nvfp4'))('%s', (id) => {
    const golden = loadCase(id);
    const rule = /\/(torchao|modelopt|compressed_tensors)/.exec(id)?.[1]?.replace('_', '-');
    const layer = quantizeLayer(weightOf(golden), {
      format: 'nvfp4',
      scaleRule: rule as 'torchao',
      tensorScale: golden.params.levels !== 1,
    });
    const tensors = writeQuantizedLayer(layer);
    const [codes, factor] =
      rule === 'compressed-tensors'
        ? ['weight_packed', 'weight_global_scale']
        : ['weight', 'weight_scale_2'];
    check(golden, layer.weight, {
      [rule === 'torchao' ? 'out.codes' : `out.${codes}`]: part(tensors, codes as string),
      [rule === 'torchao' ? 'out.scale_e4m3' : 'out.weight_scale']: part(tensors, 'weight_scale'),
      [rule === 'torchao' ? 'out.global_scale' : `out.${factor}`]: part(tensors, factor as string),
    });
  });

  it.each(
    // The order of columns by activations is not in the weight: requantize has that case.
    caseIds('formats/compressed_tensors').filter((id) => !id.includes('actorder')),
  )('%s', (id) => {
    const golden = loadCase(id);
    const { params } = golden;
    const bytes = golden.has('out.weight');
    const layer = quantizeLayer(weightOf(golden), {
      format: `int${params.num_bits}` as 'int4',
      layout: bytes ? 'int-quantized' : 'pack-quantized',
      symmetric: params.symmetric as boolean,
      strategy: params.strategy as 'group',
      ...(params.group_size === undefined ? {} : { groupSize: params.group_size as number }),
    });
    const tensors = writeQuantizedLayer(layer);
    // Here every tensor has the peer's bytes, which is more than the rules ask for.
    for (const [key, { shape }] of Object.entries(tensors)) {
      const peer = golden.tensor(`out.${key}`);
      expect(shape, key).toEqual(peer.shape);
      expect(part(tensors, key), key).toEqual(peer.bytes);
    }
    expect('weight_zero_point' in tensors).toBe(golden.has('out.weight_zero_point'));
    const half = 2 ** ((params.num_bits as number) - 1);
    const signed = Int8Array.from(layer.weight.codes, (code) => code - half);
    check(golden, layer.weight, { 'out.codes': signed });
  });

  it.each(caseIds('formats/hqq'))('%s', (id) => {
    const golden = loadCase(id);
    const { nbits, group_size, axis, optimize } = golden.params as Record<string, number>;
    const shared = {
      format: `int${nbits}` as 'int4',
      layout: 'hqq',
      groupSize: group_size as number,
      axis: axis as 0 | 1,
    } as const;
    const rule = golden.rules.find(({ rule }) => rule === 'quantised');
    const roundZero = id.endsWith('round_zero');
    for (const options of [shared, { ...shared, optimize: Boolean(optimize), roundZero }]) {
      const layer = quantizeLayer(weightOf(golden), options);
      const tensors = writeQuantizedLayer(layer);
      const again = readQuantizedLayer(tensors, { quant_method: 'hqq' });
      const values = planarToFloat32(again.weight);
      new RuleBook(golden).apply(rule as NonNullable<typeof rule>, values);
      for (const key of ['W_q', 'scale', 'zero']) {
        expect(tensors[key]?.dtype, key).toBe(golden.tensor(`in.${key}`).dtype);
        expect(tensors[key]?.shape, key).toEqual(golden.tensor(`in.${key}`).shape);
      }
    }
  });
});
