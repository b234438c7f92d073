// Every recorded layer and block of other programs on every device: decoded to the peer's bits, and LoRA over it.
import { describe, expect, it } from 'vitest';
import type { PlanarWeight } from '../../lib/checkpoint/planar/planar-weight.js';
import {
  dequantize,
  type GgufBlockType,
  ggufToPlanar,
  LoraAdapter,
  loraBackward,
  loraForward,
  planarToFloat32,
  QuantizedWeight,
  quantizedLayers,
  readQuantizedLayer,
  scope,
} from '../../lib/index.js';
import { layerCases } from '../checkpoint/codecs/cases.js';
import { DEVICES } from '../conformance/operands.js';
import { exact } from '../oracle.js';
import { caseIds, type GoldenCase, loadCase } from './case-file.js';
import { tensorOf } from './library.js';
import { RuleBook } from './rules.js';

const layers = layerCases(quantizedLayers);

/** The blocks of a case of GGUF. */
function blocksOf(golden: GoldenCase, name: string, values: string, type: string): PlanarWeight {
  const data = Uint8Array.from(golden.tensor(name).bytes);
  return ggufToPlanar({ type: type as GgufBlockType, shape: golden.tensor(values).shape, data });
}

/** Whatever its own tests compare with the peer: here the devices must decode the same numbers. */
const weights: readonly { readonly id: string; readonly planes: () => PlanarWeight }[] = [
  ...layers.map(({ id, tensors, config }) => ({
    id,
    planes: () => readQuantizedLayer(tensors, config).weight,
  })),
  ...caseIds('formats/gguf').map((id) => ({
    id,
    planes: () => {
      const golden = loadCase(id);
      return blocksOf(golden, 'out.bytes', 'out.dequant', golden.params.type as string);
    },
  })),
];

/** The base weight of a case of LoRA. */
function baseOf(golden: GoldenCase): PlanarWeight {
  const format = golden.params.format as string;
  if (format.startsWith('gguf:')) {
    const type = format.slice('gguf:'.length);
    return blocksOf(golden, 'base.lin.bytes', 'base_dequant.lin.weight', type);
  }
  const layer = layers.find(({ id }) => id.startsWith(golden.id));
  if (layer === undefined) throw new Error(`no layer of ${golden.id}`);
  return readQuantizedLayer(layer.tensors, layer.config).weight;
}

describe.each(DEVICES)('%s', (device) => {
  it.each(weights)('$id', ({ planes }) => {
    scope(() => {
      const weight = planes();
      const w = QuantizedWeight.fromPlanes(weight, { device });
      const mine = dequantize(w, { dtype: 'f32' }).readSync();
      exact('values', mine, planarToFloat32(weight));
    });
  });

  it.each(caseIds('formats/lora'))('%s', (id) => {
    const golden = loadCase(id);
    const { scaling, r } = golden.params as { scaling: number; r: number };
    const on = (name: string) => tensorOf(golden.tensor(name), device);
    scope(() => {
      const w = QuantizedWeight.fromPlanes(baseOf(golden), { device });
      const adapter = new LoraAdapter({
        loraA: on('adapter.lin.lora_A.weight'),
        loraB: on('adapter.lin.lora_B.weight'),
        loraAlpha: scaling * r,
      });
      const bias = golden.has('base.lin.bias') ? { bias: on('base.lin.bias') } : {};
      const { y, saved } = loraForward(on('in.x'), w, adapter, bias);
      const { dx, dLoraA, dLoraB } = loraBackward(on('in.grad_out'), saved);
      const answers = {
        'base_dequant.lin.weight': dequantize(w, { dtype: 'f32' }),
        'out.y': y,
        'grad.x': dx,
        'grad.lin.lora_A.weight': dLoraA,
        'grad.lin.lora_B.weight': dLoraB,
      };
      const book = new RuleBook(golden);
      for (const rule of golden.rules) {
        const answer = answers[rule.tensor as keyof typeof answers];
        if (answer === undefined) throw new Error(`${id}: no answer for ${rule.tensor}`);
        book.apply(rule, answer.to({ dtype: 'f32' }).readSync());
      }
      book.finish();
    });
  });
});

it('has layers and blocks of all kinds', () => {
  expect(weights.length).toBeGreaterThan(130);
});
