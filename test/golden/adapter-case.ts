/** Golden cases of adapters on linear layers, run through the library's methods. */
import { type AlphaConfig, scalingOf } from '../../lib/adapters/parts/scaling.js';
import {
  type Adapter,
  type AdapterSaved,
  adapterFromPeft,
  type BaseWeight,
  type Device,
  dequantize,
  type MergedLayer,
  mapTensor,
  matmul,
  matmulInputGrad,
  multiplyAdd,
  type PeftFolder,
  type QuantFormat,
  QuantizedWeight,
  quantize,
  type RawTensor,
  Tensor,
} from '../../lib/index.js';
import type { GoldenCase, GoldenTensor } from './case-file.js';
import { baseWeight, tensorOf } from './library.js';
import type { RuleBook } from './rules.js';

export const PREFIX = 'base_model.model.';

const rawOf = ({ dtype, shape, bytes }: GoldenTensor): RawTensor => ({
  dtype: dtype as 'F32',
  shape,
  data:
    dtype === 'F32'
      ? new Float32Array(bytes.buffer)
      : dtype === 'I64'
        ? new BigInt64Array(bytes.buffer)
        : dtype === 'I32'
          ? new Int32Array(bytes.buffer)
          : bytes,
});

export interface GoldenLayer {
  readonly name: string;
  readonly w: BaseWeight;
  readonly bias: Tensor | undefined;
  readonly adapter: Adapter | undefined;
  /** A weight [N, K] as the peer stores it. */
  readonly back: (weight: Tensor) => Tensor;
}

/** Names of the case's layers. */
export function layerNames(golden: GoldenCase): string[] {
  return [...golden.tensors.keys()].flatMap(
    (key) => /^base\.([^.]+)\.weight$/.exec(key)?.[1] ?? [],
  );
}

/** The case's checkpoint, and what it leaves out. */
export function folderOf(golden: GoldenCase): PeftFolder {
  const { config, tensors } = golden.adapter();
  const all = new Map<string, RawTensor>();
  for (const [key, tensor] of golden.tensors) {
    if (key.startsWith('adapter.')) all.set(key.slice('adapter.'.length), rawOf(tensor));
  }
  for (const [key, tensor] of tensors) all.set(key, rawOf(tensor));
  return { config, tensors: all };
}

/** A base tensor of layer `name` as it is in the run, where it has one. */
export function baseTensor(golden: GoldenCase, name: string, device: Device): Tensor | undefined {
  const key = [`aux.base_now.${name}`, `base.${name}`].find((candidate) => golden.has(candidate));
  return key === undefined ? undefined : tensorOf(golden.tensor(key), device);
}

/** The base weight of linear layer `name` as it is in the run: dense, or quantised as the peer stored it. */
export const baseOf = (golden: GoldenCase, name: string, device: Device): BaseWeight =>
  golden.has(`aux.base_now.${name}.weight`)
    ? (baseTensor(golden, `${name}.weight`, device) as Tensor)
    : baseWeight(golden, name, device);

/** The config of the run: without training nothing is dropped, and gradients are taken all the same. */
function configIn(golden: GoldenCase, config: PeftFolder['config']): PeftFolder['config'] {
  if (golden.params.train_mode !== false) return config;
  const dropouts = Object.entries(config).filter(
    ([name, value]) => name.endsWith('dropout') && typeof value === 'number',
  );
  return { ...config, ...Object.fromEntries(dropouts.map(([name]) => [name, 0])) };
}

/** Layer `name` with its adapter, where it has one, over the weight w [N, K]. */
export function layerOver(
  golden: GoldenCase,
  name: string,
  w: BaseWeight,
  back: GoldenLayer['back'] = (weight) => weight,
): GoldenLayer {
  const all = folderOf(golden);
  const folder = { ...all, config: configIn(golden, all.config) };
  const { device } = w;
  const [outFeatures = 0, inFeatures = 0] = w.shape;
  const adapted = [...folder.tensors.keys()].some((key) => key.startsWith(`${PREFIX}${name}.`));
  const place = { inFeatures, outFeatures, device, weight: w };
  const adapter = adapted ? adapterFromPeft(folder, name, place) : undefined;
  return { name, w, bias: baseTensor(golden, `${name}.bias`, device), adapter, back };
}

/** Linear layer `name`: its base as it is in the run, and its adapter, where it has one. */
export function layerOf(golden: GoldenCase, name: string, device: Device): GoldenLayer {
  const stored = baseOf(golden, name, device);
  // A layer that stores its weight as [K, N].
  if (golden.adapter().config.fan_in_fan_out !== true) return layerOver(golden, name, stored);
  return layerOver(golden, name, transposed(stored as Tensor), transposed);
}

/** [rows, cols] to [cols, rows]. */
export function transposed(w: Tensor): Tensor {
  const [rows = 0, cols = 0] = w.shape;
  const values = w.readSync();
  const out = Float32Array.from(
    values,
    (_, i) => values[(i % rows) * cols + Math.floor(i / rows)] as number,
  );
  return Tensor.from(out, [cols, rows], { dtype: w.dtype, device: w.device });
}

/** @param rows what a layer makes of an input, and of the mask that drops some of it */
export function forwardOf(
  golden: GoldenCase,
  { name, w, bias, adapter }: GoldenLayer,
  x: Tensor,
  rows: (input: Tensor) => Tensor = (input) => input,
): { y: Tensor; saved?: AdapterSaved } {
  const given = bias === undefined ? {} : { bias };
  if (adapter === undefined) return { y: matmul(rows(x), w, given) };
  const mask = [...golden.tensors.keys()].find((key) => key.startsWith(`in.dropout_mask.${name}.`));
  return adapter.forward(rows(x), w, {
    ...given,
    ...(mask === undefined ? {} : { dropoutMask: rows(tensorOf(golden.tensor(mask), x.device)) }),
  });
}

/** A gradient under the peer's name behind the module's; the entries of a stack are tensors of their own there. */
function named(
  { definition: { peft }, config }: Adapter,
  parameter: string,
  values: Float32Array,
  shape: readonly number[],
): readonly (readonly [name: string, values: Float32Array])[] {
  const stack = peft?.stacks?.[parameter];
  if (stack !== undefined) {
    const [count = 0] = shape;
    const size = values.length / count;
    return Array.from({ length: count }, (_, i) => [
      stack(i),
      values.slice(i * size, (i + 1) * size),
    ]);
  }
  const own = peft?.otherNames?.(config)[parameter] ?? peft?.tensors[parameter];
  return own === undefined ? [] : [[own, values]];
}

/** The peer's names of a gradient: parameters have `.weight` behind where they are modules of their own. */
export function gradientKeys(rules: RuleBook, module: string, name: string): readonly string[] {
  const [first = '', ...rest] = name.split('.');
  return [[first, ...rest].join('.'), [first, 'default', ...rest].join('.')]
    .flatMap((key) => [key, `${key}.weight`])
    .map((key) => `grad.${PREFIX}${module}.${key}`)
    .filter((key) => rules.has(key));
}

/**
 * Checks the gradients of the trained tensors under the peer's names. What layers share has one
 * gradient, the sum of theirs, listed under the first layer.
 */
export async function checkGradients(
  golden: GoldenCase,
  rules: RuleBook,
  layers: readonly { layer: GoldenLayer; gradients: Readonly<Record<string, Tensor>> }[],
): Promise<void> {
  const keys = [...golden.adapter().tensors.keys(), ...golden.tensors.keys()];
  const sums = new Map<string, Float32Array>();
  for (const { layer, gradients } of layers) {
    const { adapter } = layer;
    if (adapter === undefined) continue;
    const { peft } = adapter.definition;
    for (const [parameter, gradient] of Object.entries(gradients)) {
      const values = await gradient.read();
      const own = named(adapter, parameter, values, gradient.shape);
      const shared = peft?.sharedName?.(parameter, layer.name, keys) ?? peft?.shared?.[parameter];
      const all: typeof own = own.length > 0 ? own : [[String(shared), values]];
      for (const [name, part] of all) {
        const module = own.length > 0 ? layer.name : (layerNames(golden)[0] as string);
        for (const key of gradientKeys(rules, module, name)) {
          const sum = sums.get(key);
          sums.set(key, sum === undefined ? part : sum.map((v, i) => v + (part[i] as number)));
        }
      }
    }
  }
  for (const [key, values] of sums) rules.check(key, values);
}

/**
 * The merged layer. The peer's DoRA rounds the merged weight to the dtype of the base before it
 * quantises it, which decides the 8-bit codes of absmax; the library does not.
 */
function mergeAsPeer(adapter: Adapter, w: BaseWeight, bias: Tensor | undefined): MergedLayer {
  const given = bias === undefined ? {} : { bias };
  if (!(w instanceof QuantizedWeight) || adapter.method !== 'dora') return adapter.merge(w, given);
  const { blocksize, doubleQuant, rowwise, sourceDType: dtype } = w;
  const format = w.format as QuantFormat;
  const { weight } = adapter.merge(dequantize(w, { dtype }), given);
  const options = rowwise ? { format, rowwise } : { format, blocksize, doubleQuant };
  return { ...given, weight: quantize(weight as Tensor, options) };
}

/** The merged weight and, for additive methods, the update, under the case's rules. */
export async function checkMerged(
  golden: GoldenCase,
  rules: RuleBook,
  layer: GoldenLayer,
): Promise<{ weight: BaseWeight; bias: Tensor | undefined }> {
  const { name, w, bias, adapter, back } = layer;
  const none = { weight: w, bias };
  if (adapter === undefined || adapter.definition.mergeable === false) return none;
  const merged = mergeAsPeer(adapter, w, bias);
  const dense = merged.weight instanceof QuantizedWeight ? 'merged_dequant' : 'merged';
  const values = await (merged.weight instanceof QuantizedWeight
    ? dequantize(merged.weight, { dtype: 'f32' })
    : back(merged.weight)
  ).read();
  if (rules.has(`${dense}.${name}.weight`)) rules.check(`${dense}.${name}.weight`, values);
  if (merged.bias !== undefined && rules.has(`merged.${name}.bias`)) {
    rules.check(`merged.${name}.bias`, await merged.bias.read());
  }
  if (rules.has(`merged.${name}.SCB`)) {
    const { SCB } = await (merged.weight as QuantizedWeight).toBitsandbytes();
    rules.check(`merged.${name}.SCB`, SCB?.data as Float32Array);
  }
  for (const { tensor, rule } of golden.rules) {
    if (tensor === `out.delta.${name}`) await checkUpdate(golden, rules, tensor, layer);
    else if (tensor.startsWith(`merged.${name}.weight`) && dense === 'merged_dequant') {
      rules.waive(tensor, `${rule}: stands for ${dense}.${name}.weight, which is checked`);
    }
  }
  return { weight: merged.weight, bias: merged.bias ?? bias };
}

/**
 * `out.delta`: what the peer calls the update of the base weight. Of additive methods that is what
 * merging adds to a base of zeros, of others the difference that merging makes, and of LoRA's
 * relatives the product of the factors alone (the peer leaves magnitude and diagonal out); of
 * rotations of the input, the rotation.
 */
async function checkUpdate(
  golden: GoldenCase,
  rules: RuleBook,
  tensor: string,
  layer: GoldenLayer,
): Promise<void> {
  const { adapter, w, back } = layer;
  if (adapter === undefined) return;
  if (ROTATIONS.has(adapter.method)) {
    rules.check(tensor, await rotationOf(golden, layer.name, adapter));
    return;
  }
  const { loraA, loraB } = adapter.parameters;
  const kind = LORA_DELTA[adapter.method];
  if (kind !== undefined && loraA !== undefined && loraB !== undefined) {
    const scaling = scalingOf(adapter.config as AlphaConfig);
    const product = back(matmulInputGrad(loraB, loraA));
    rules.check(
      tensor,
      (await product.read()).map((v) => v * scaling),
    );
    return;
  }
  const own = OWN_DELTA[adapter.method];
  if (own !== undefined) {
    rules.check(tensor, await own(adapter, w).read());
    return;
  }
  if (!MULTIPLICATIVE.has(adapter.method)) {
    const zeros = Tensor.zeros(w.shape, { device: adapter.device });
    rules.check(tensor, await back(adapter.merge(zeros).weight as Tensor).read());
    return;
  }
  const dense = w instanceof QuantizedWeight ? dequantize(w, { dtype: 'f32' }) : w;
  const before = await back(dense).read();
  const after = await back(adapter.merge(dense).weight as Tensor).read();
  rules.check(
    tensor,
    after.map((value, i) => value - (before[i] as number)),
  );
}

/** Methods whose `out.delta` is the product of the LoRA factors. */
const LORA_DELTA: Readonly<Record<string, true>> = { bdlora: true, kasa: true, dora: true };
/** Methods of whose `out.delta` the peer has a formula of its own. */
const OWN_DELTA: Readonly<Record<string, (adapter: Adapter, w: BaseWeight) => Tensor>> = {
  hira: ({ parameters: { hiraA, hiraB } }) => matmulInputGrad(hiraB as Tensor, hiraA as Tensor),
  deft: ({ parameters }, w) => {
    const { p, inject } = parameters as { p: Tensor; inject?: Tensor };
    const taken = matmulInputGrad(transposed(mapTensor(p, 'relu')), w);
    const put = inject ?? Tensor.zeros(taken.shape, { device: taken.device });
    return matmulInputGrad(p, multiplyAdd({ a: put, c: taken, beta: -1 }));
  },
};
/** Methods whose update depends on the base weight. */
const MULTIPLICATIVE: ReadonlySet<string> = new Set([
  'ia3',
  'ia3-input',
  'peanut',
  'frod',
  'osf',
  'deft-qr',
]);

/** Methods whose `out.delta` is a rotation of the K input features. */
const ROTATIONS: ReadonlySet<string> = new Set(['hra', 'oft']);

/** What the adapter makes of the identity as base weight. */
async function rotationOf(
  golden: GoldenCase,
  name: string,
  { inFeatures: K, device }: Adapter,
): Promise<Float32Array> {
  const eye = Tensor.from(
    Float32Array.from({ length: K * K }, (_, i) => (i % (K + 1) === 0 ? 1 : 0)),
    [K, K],
    { device },
  );
  const place = { inFeatures: K, outFeatures: K, device, weight: eye };
  const square = adapterFromPeft(folderOf(golden), name, place);
  const made = await (square.merge(eye).weight as Tensor).read();
  if (square.method !== 'oft') return made;
  // The peer has x · R, and means R.
  return made.map((_, i) => made[(i % K) * K + Math.floor(i / K)] as number);
}
