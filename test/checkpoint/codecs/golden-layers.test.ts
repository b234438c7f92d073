// Every layout against the values that its own library decodes, against the oracle, and back to its bytes.
import { describe, expect, it } from 'vitest';
import { bytesOf } from '../../../lib/checkpoint/raw-tensor.js';
import {
  type LayerTensors,
  planarToFloat32,
  quantizedLayers,
  readQuantizedLayer,
  writeQuantizedLayer,
} from '../../../lib/index.js';
import { decodeLayer, type Layer } from '../../oracle/formats/layouts.js';
import { folderCases, type LayerCase, layerCases } from './cases.js';

const bitsOf = (values: ArrayLike<number>): Uint32Array =>
  new Uint32Array(Float32Array.from(values).map((v) => (Number.isNaN(v) ? Number.NaN : v)).buffer);

/** The same bits, where all NaNs are one. */
function sameBits(actual: ArrayLike<number>, expected: ArrayLike<number>): void {
  expect(actual.length).toBe(expected.length);
  const [mine, other] = [bitsOf(actual), bitsOf(expected)];
  const bad = mine.findIndex((bits, i) => bits !== other[i]);
  if (bad >= 0) throw new Error(`${actual[bad]} at ${bad}, expected ${expected[bad]}`);
}

/** A tensor's dtype, shape and bytes. */
const disk = (tensors: LayerTensors) =>
  Object.fromEntries(
    Object.entries(tensors).map(([key, { dtype, shape, data }]) => [
      key,
      { dtype, shape: [...shape], bytes: Uint8Array.from(bytesOf(data)) },
    ]),
  );

/** What the oracle decodes. It reads one config group, and for modelopt a factor. */
function oracleOf({ tensors, config }: LayerCase): ArrayLike<number> {
  return decodeLayer(disk(tensors) as Layer, config);
}

const cases = layerCases(quantizedLayers);
/** Layouts and dtypes that the oracle of layouts does not take: FP8 by rows of e5m2 and e8m0 scales, GPTQ by field. */
const kBeyondOracle = /, by field|row_e5m2|mxfp8|, bytes|hqq_axis/;

describe('quantised layers of the golden data', () => {
  it('has cases of every layout', () => {
    const layouts = new Set(cases.map(({ layout }) => layout));
    expect([...layouts].sort()).toEqual([
      'awq',
      'bitsandbytes',
      'fp8',
      'gptq',
      'hqq',
      'int-quantized',
      'modelopt-nvfp4',
      'mxfp4',
      'mxfp4-pack-quantized',
      'nvfp4-pack-quantized',
      'pack-quantized',
    ]);
    expect(cases.length).toBeGreaterThan(110);
  });

  it.each(cases)('$id', (golden) => {
    const { tensors, config, expected, layout } = golden;
    const layer = readQuantizedLayer(tensors, config);
    expect(layer.layout.name).toBe(layout);
    const values = planarToFloat32(layer.weight);
    // ModelOpt decodes the code of -0 to either zero, by the device.
    const zeros = layout === 'modelopt-nvfp4' ? 0 : -0;
    sameBits(
      values.map((value) => value + zeros),
      Array.from(expected, (value) => value + zeros),
    );
    if (!kBeyondOracle.test(golden.id)) sameBits(values, oracleOf(golden));
    expect(disk(writeQuantizedLayer(layer))).toEqual(disk(tensors));
  });

  it.each(folderCases())('$id: every tensor of the folder', ({ tensors, config, expected }) => {
    const { layers, rest } = quantizedLayers(tensors, config);
    expect([...layers.keys()].sort()).toEqual([...expected.keys()].sort());
    const names = [...layers].flatMap(([name, layer]) =>
      Object.keys(layer.tensors).map((key) =>
        key.startsWith('_') ? name + key : `${name}.${key}`,
      ),
    );
    expect([...names, ...rest.keys()].sort()).toEqual([...tensors.keys()].sort());
    expect(rest.has('model.embed_tokens.weight')).toBe(true);
    for (const name of layers.keys()) expect(name).toMatch(/_proj$/);
  });
});
