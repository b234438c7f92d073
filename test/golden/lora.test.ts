// LoRA and QLoRA linear layers against PEFT: forward, every gradient, merged weights.
import { describe, expect, it } from 'vitest';
import { readAlpha } from '../../lib/adapters/parts/scaling.js';
import {
  type BaseWeight,
  dequantize,
  LoraAdapter,
  loraBackward,
  loraForward,
  matmul,
  mergeLora,
  QuantizedWeight,
  scope,
  Tensor,
} from '../../lib/index.js';
import { baseOf, baseTensor } from './adapter-case.js';
import { caseIds, type GoldenCase, isOtherMethod, loadCase, numbersOf } from './case-file.js';
import { baseWeight, bytesOf, tensorOf } from './library.js';
import { RuleBook } from './rules.js';

const DEVICES = ['cpu', 'reference'] as const;
type Device = (typeof DEVICES)[number];
const PREFIX = 'base_model.model.';

/** One linear layer of a case: its base, its adapter, and the adapter's dropout mask. */
interface Layer {
  readonly name: string;
  readonly w: BaseWeight;
  readonly bias?: Tensor;
  readonly adapter: LoraAdapter;
  readonly dropoutMask?: Tensor;
}

function layerOf(golden: GoldenCase, name: string, device: Device, training: boolean): Layer {
  const { config, tensors } = golden.adapter();
  const part = (key: string): Tensor | undefined => {
    const found = tensors.get(`${PREFIX}${name}.${key}`);
    return found === undefined ? undefined : tensorOf(found, device);
  };
  const loraA = part('lora_A.weight') as Tensor;
  const loraBias = part('lora_B.bias');
  const { r, ...alpha } = readAlpha(config, name);
  expect(loraA.shape[0]).toBe(r);
  const adapter = new LoraAdapter({
    loraA,
    loraB: part('lora_B.weight') as Tensor,
    ...alpha,
    ...(training ? {} : { dropout: 0 }),
    ...(loraBias === undefined ? {} : { loraBias }),
  });
  // The scaling that the peer computed.
  const scaling = (golden.params.scaling as Record<string, number>)[name] as number;
  expect(adapter.scaling).toBeCloseTo(scaling, 12);
  const mask = `in.dropout_mask.${name}.lora_dropout`;
  const bias = baseTensor(golden, `${name}.bias`, device);
  return {
    name,
    adapter,
    w: baseOf(golden, name, device),
    ...(bias === undefined ? {} : { bias }),
    ...(golden.has(mask) ? { dropoutMask: tensorOf(golden.tensor(mask), device) } : {}),
  };
}

const forward = (layer: Layer, x: Tensor, training = true) =>
  loraForward(x, layer.w, layer.adapter, {
    training,
    ...(layer.bias === undefined ? {} : { bias: layer.bias }),
    ...(layer.dropoutMask === undefined ? {} : { dropoutMask: layer.dropoutMask }),
  });

const NAMES = {
  dLoraA: 'lora_A.weight',
  dLoraB: 'lora_B.weight',
  dBias: 'base_layer.bias',
  dLoraBias: 'lora_B.bias',
} as const;

type Gradients = ReturnType<typeof loraBackward>;

async function checkGradients(rules: RuleBook, name: string, gradients: Gradients): Promise<void> {
  for (const key of Object.keys(NAMES) as (keyof typeof NAMES)[]) {
    const tensor = `grad.${PREFIX}${name}.${NAMES[key]}`;
    if (rules.has(tensor)) rules.check(tensor, await (gradients[key] as Tensor).read());
  }
}

/** scaling · loraB · loraA: the adapter merged into nothing. */
function deltaOf(layer: Layer, device: Device): Promise<Float32Array> {
  const nothing = Tensor.zeros(layer.w.shape, { device });
  return mergeLora(nothing, layer.adapter).weight.read();
}

/** The merged weight, quantised again where the base was. Checks its rules and returns it. */
async function checkMerged(
  golden: GoldenCase,
  rules: RuleBook,
  layer: Layer,
  device: Device,
): Promise<Layer> {
  const { name, w, adapter } = layer;
  const delta = `out.delta.${name}`;
  if (rules.has(delta)) rules.check(delta, await deltaOf(layer, device));
  // A dense base is merged in place: the layer goes on with its own.
  const merged = mergeLora(w instanceof Tensor ? w.to({}) : w, adapter).weight;
  if (merged instanceof QuantizedWeight) {
    const state = await merged.toBitsandbytes();
    const dequantised = `merged_dequant.${name}.weight`;
    rules.check(dequantised, await dequantize(merged, { dtype: 'f32' }).read());
    for (const rule of golden.rules) {
      if (!rule.tensor.startsWith(`merged.${name}.weight`)) continue;
      if (rule.rule === 'quantised') {
        rules.waive(rule.tensor, `stands for ${dequantised}, which is checked`);
        continue;
      }
      const part = state[rule.tensor.slice(`merged.${name}.`.length)] as { data: Float32Array };
      rules.check(rule.tensor, new Float32Array(Uint8Array.from(bytesOf(part.data)).buffer));
    }
    const scales = `merged.${name}.SCB`;
    if (rules.has(scales)) rules.check(scales, state.SCB?.data as Float32Array);
  } else if (rules.has(`merged.${name}.weight`)) {
    rules.check(`merged.${name}.weight`, await merged.read());
  }
  let { bias } = layer;
  if (bias !== undefined && adapter.loraBias !== undefined) {
    const extra = await adapter.loraBias.read();
    const sum = (await bias.read()).map((value, n) => value + adapter.scaling * (extra[n] ?? 0));
    bias = Tensor.from(sum, bias.shape, { device });
  }
  if (rules.has(`merged.${name}.bias`)) {
    rules.check(`merged.${name}.bias`, await (bias as Tensor).read());
  }
  return { ...layer, w: merged, ...(bias === undefined ? {} : { bias }) };
}

const product = (layer: Layer, x: Tensor): Tensor =>
  matmul(x, layer.w, layer.bias === undefined ? {} : { bias: layer.bias });

describe.each(DEVICES)('linear layers on %s', (device: Device) => {
  const all = [...caseIds('lora'), ...caseIds('qlora')].filter((id) => !isOtherMethod(id));
  const hasTwo = (id: string): boolean => loadCase(id).has('base.fc1.weight');
  const single = all.filter((id) => !hasTwo(id));

  it.each(single)('%s', async (id) => {
    await scope(async () => {
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      const training = golden.params.train_mode === true;
      const layer = layerOf(golden, 'lin', device, training);
      const x = tensorOf(golden.tensor('in.x'), device);
      const dy = tensorOf(golden.tensor('in.grad_out'), device);
      const { y, saved } = forward(layer, x);
      rules.check('out.y', await y.read());
      // Without training the same layer drops nothing, whatever its adapter says.
      if (!training) {
        const dropping = layerOf(golden, 'lin', device, true);
        expect(dropping.adapter.dropout).toBeGreaterThan(0);
        rules.check('out.y', await forward(dropping, x, false).y.read());
      }
      const gradients = loraBackward(dy, saved);
      rules.check('grad.x', await (gradients.dx as Tensor).read());
      await checkGradients(rules, 'lin', gradients);
      const merged = await checkMerged(golden, rules, layer, device);
      if (rules.has('out.y_merged')) rules.check('out.y_merged', await product(merged, x).read());
      rules.finish();
    });
  });

  it.each(all.filter(hasTwo))('%s', async (id) => {
    await scope(async () => {
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      const training = golden.params.train_mode === true;
      const [first, second] = ['fc1', 'fc2'].map((name) =>
        layerOf(golden, name, device, training),
      ) as [Layer, Layer];
      const { config } = golden.adapter();
      const ranks = ['fc1', 'fc2'].map((name) => readAlpha(config, name).r);
      expect([first.adapter.r, second.adapter.r]).toEqual(ranks);
      const tanh = async (t: Tensor): Promise<Tensor> =>
        Tensor.from((await t.read()).map(Math.tanh), t.shape, { device });
      const x = tensorOf(golden.tensor('in.x'), device);
      const inner = forward(first, x);
      const hidden = await tanh(inner.y);
      const outer = forward(second, hidden);
      rules.check('out.y', await outer.y.read());
      const dy = tensorOf(golden.tensor('in.grad_out'), device);
      const back = loraBackward(dy, outer.saved);
      await checkGradients(rules, 'fc2', back);
      const t = await hidden.read();
      const dHidden = (await (back.dx as Tensor).read()).map((d, i) => d * (1 - (t[i] ?? 0) ** 2));
      const gradients = loraBackward(Tensor.from(dHidden, hidden.shape, { device }), inner.saved);
      await checkGradients(rules, 'fc1', gradients);
      rules.check('grad.x', await (gradients.dx as Tensor).read());
      const merged1 = await checkMerged(golden, rules, first, device);
      const merged2 = await checkMerged(golden, rules, second, device);
      rules.check('out.y_merged', await product(merged2, await tanh(product(merged1, x))).read());
      rules.finish();
    });
  });
});

describe('the cases', () => {
  it('hold the dequantised base that the peer computed with', async () => {
    for (const id of caseIds('qlora')) {
      const golden = loadCase(id);
      const w = baseWeight(golden, 'lin', 'reference') as QuantizedWeight;
      const mine = await dequantize(w, { dtype: 'f32' }).read();
      const peer = numbersOf(golden.tensor('base_dequant.lin.weight'));
      mine.forEach((value, i) => {
        const expected = peer[i] as number;
        expect(Math.abs(value - expected)).toBeLessThanOrEqual(4e-3 * Math.abs(expected));
      });
      w.dispose();
    }
  });
});
