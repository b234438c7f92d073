// Every adapter method against PEFT: forward, every gradient, merged weights.
import { describe, expect, it } from 'vitest';
import {
  type AdapterSaved,
  type Device,
  matmul,
  matmulInputGrad,
  scope,
  Tensor,
} from '../../lib/index.js';
import {
  checkGradients,
  checkMerged,
  forwardOf,
  type GoldenLayer,
  layerNames,
  layerOf,
} from './adapter-case.js';
import {
  caseIds,
  configOf,
  type GoldenCase,
  isOtherLayer,
  isOtherMethod,
  loadCase,
} from './case-file.js';
import { tensorOf } from './library.js';
import { RuleBook } from './rules.js';

const DEVICES = ['cpu', 'reference'] as const;

/** Methods of which the peer's gradient of x is not that of its own forward pass; it is dy · the merged weight. */
const WRONG_INPUT_GRADIENT: Readonly<Record<string, string>> = {
  c3a: 'the peer transforms the kernel backwards: kernel[t + s] where y has kernel[t - s]',
};

async function checkOne(golden: GoldenCase, rules: RuleBook, layer: GoldenLayer, device: Device) {
  const x = tensorOf(golden.tensor('in.x'), device);
  const dy = tensorOf(golden.tensor('in.grad_out'), device);
  const { y, saved } = forwardOf(golden, layer, x);
  rules.check('out.y', await y.read());
  const { adapter } = layer;
  if (adapter === undefined || saved === undefined) throw new Error('no adapter');
  const { dx, parameters } = adapter.backward(dy, saved);
  const wrong = WRONG_INPUT_GRADIENT[adapter.method];
  if (wrong === undefined) rules.check('grad.x', await (dx as Tensor).read());
  else rules.waive('grad.x', wrong);
  await checkGradients(golden, rules, [{ layer, gradients: parameters }]);
  const merged = await checkMerged(golden, rules, layer);
  if (wrong !== undefined) {
    const expected = await matmulInputGrad(dy, merged.weight as Tensor).read();
    const error = (await (dx as Tensor).read()).map((v, i) => Math.abs(v - (expected[i] ?? 0)));
    expect(Math.max(...error)).toBeLessThan(1e-5);
  }
  if (rules.has('out.y_merged')) {
    const given = merged.bias === undefined ? {} : { bias: merged.bias };
    rules.check('out.y_merged', await matmul(x, merged.weight, given).read());
  }
}

/** Gradients of a layer, with an adapter or without. */
function backwardOf(layer: GoldenLayer, dy: Tensor, saved: AdapterSaved | undefined) {
  if (layer.adapter === undefined || saved === undefined) {
    return { dx: matmulInputGrad(dy, layer.w), parameters: {} };
  }
  const { dx, parameters } = layer.adapter.backward(dy, saved);
  return { dx: dx as Tensor, parameters };
}

/** fc2(tanh(fc1(x))) */
async function checkTwo(golden: GoldenCase, rules: RuleBook, device: Device) {
  const tanh = async (t: Tensor): Promise<Tensor> =>
    Tensor.from((await t.read()).map(Math.tanh), t.shape, { device });
  const [first, second] = ['fc1', 'fc2'].map((name) => layerOf(golden, name, device)) as [
    GoldenLayer,
    GoldenLayer,
  ];
  const x = tensorOf(golden.tensor('in.x'), device);
  const inner = forwardOf(golden, first, x);
  const hidden = await tanh(inner.y);
  const outer = forwardOf(golden, second, hidden);
  rules.check('out.y', await outer.y.read());
  const dy = tensorOf(golden.tensor('in.grad_out'), device);
  const back = backwardOf(second, dy, outer.saved);
  const t = await hidden.read();
  const dHidden = (await back.dx.read()).map((d, i) => d * (1 - (t[i] ?? 0) ** 2));
  const dInner = Tensor.from(dHidden, hidden.shape, { device });
  const front = backwardOf(first, dInner, inner.saved);
  rules.check('grad.x', await front.dx.read());
  await checkGradients(golden, rules, [
    { layer: first, gradients: front.parameters },
    { layer: second, gradients: back.parameters },
  ]);
  const one = await checkMerged(golden, rules, first);
  const two = await checkMerged(golden, rules, second);
  if (rules.has('out.y_merged')) {
    const through = (input: Tensor, layer: typeof one): Tensor =>
      matmul(input, layer.weight, layer.bias === undefined ? {} : { bias: layer.bias });
    rules.check('out.y_merged', await through(await tanh(through(x, one)), two).read());
  }
}

/** Types whose cases have a test of their own. */
const ELSEWHERE: readonly unknown[] = ['ADAMSS', 'LN_TUNING', 'TRAINABLE_TOKENS'];

const cases = [
  ...caseIds('tuners').filter(
    (id) => !ELSEWHERE.includes(configOf(id).peft_type) && !isOtherLayer(id),
  ),
  ...[...caseIds('lora'), ...caseIds('qlora')].filter(
    (id) => (isOtherMethod(id) || configOf(id).lora_bias === true) && !isOtherLayer(id),
  ),
];

async function checkCase(golden: GoldenCase, device: Device): Promise<void> {
  await scope(async () => {
    const rules = new RuleBook(golden);
    const names = layerNames(golden);
    if (names.includes('fc1')) await checkTwo(golden, rules, device);
    else await checkOne(golden, rules, layerOf(golden, names[0] as string, device), device);
    rules.finish();
    expect(names.length).toBeGreaterThan(0);
  });
}

describe.each(DEVICES)('adapters on %s', (device) => {
  it.each(cases)('%s', async (id) => {
    await checkCase(loadCase(id), device);
  });

  // What the peer does not save, and decomposes the base weight for: the case has it beside the folder.
  it.each([['tuners/osf', /_osf_[USV]_high$/]] as const)(
    '%s, from the folder and the base weight alone',
    async (id, beside) => {
      const golden = loadCase(id);
      const left = [...golden.tensors.keys()].filter((key) => beside.test(key));
      expect(left.length).toBeGreaterThan(0);
      for (const key of left) golden.tensors.delete(key);
      await checkCase(golden, device);
    },
  );
});
