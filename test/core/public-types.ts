/**
 * What the public types allow and refuse. Never run: types.test.ts compiles it, and so does
 * `npm run types`. A line under `@ts-expect-error` that compiles is an error itself.
 */
import {
  type AnyMethod,
  adapterMethods,
  adapters,
  type BaseWeight,
  blockMatmul,
  blockWeightGrad,
  type ComputePrecision,
  checkAdapter,
  coreScale,
  coreScaleBackward,
  type Device,
  type DType,
  dequantize,
  devices,
  type ErrorCode,
  FeatureMap,
  type FormatInfo,
  factoredNorm,
  type GroupedAdapterGradients,
  GroupedLora,
  type GroupedSaved,
  LoraAdapter,
  type LoraGradient,
  type LoraSaved,
  LowrankError,
  loraBackward,
  loraExpand,
  loraExpandBackward,
  type loraExpandWithNorms,
  loraForward,
  loraShrink,
  loraShrinkBackward,
  type MapKind,
  type MergeLoss,
  type MergeResult,
  mapFeatures,
  mapTensor,
  matmul,
  matmulInputGrad,
  memoryUsage,
  mergeLora,
  multiplyAdd,
  type QuantFormat,
  QuantizedWeight,
  quantize,
  scope,
  sumProduct,
  type synchronize,
  Tensor,
  weightGrad,
  weightNorms,
} from '../../lib/index.js';

/** Compiles only where A and B are the same type. */
type Same<A, B> =
  (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
export const same = <A, B>(_: Same<A, B>): void => undefined;

export function tensors(x: Tensor, bits: Uint16Array): void {
  same<DType, 'f32' | 'bf16' | 'f16'>(true);
  same<typeof x.shape, readonly number[]>(true);
  same<typeof x.dtype, DType>(true);
  same<typeof x.device, Device>(true);
  same<typeof x.disposed, boolean>(true);
  same<ReturnType<typeof x.read>, Promise<Float32Array>>(true);
  same<ReturnType<typeof x.readBits>, Promise<Uint16Array>>(true);
  same<ReturnType<typeof x.readSync>, Float32Array>(true);
  same<ReturnType<typeof x.to>, Tensor>(true);
  Tensor.from([1, 2], [2]);
  Tensor.from(new Float64Array(2), [2], { dtype: 'f16', device: 'cpu' });
  Tensor.from(bits, [2], { dtype: 'bf16' });
  Tensor.randn([2], { seed: 1, std: 2 });
  Tensor.zeros([2], { device: 'cuda:1' });
  using held: Disposable = x;
  held[Symbol.dispose]();
  // @ts-expect-error a seed is needed
  Tensor.randn([2], { std: 1 });
  // @ts-expect-error no such dtype
  Tensor.zeros([2], { dtype: 'f64' });
  // @ts-expect-error no such device
  Tensor.zeros([2], { device: 'gpu' });
  // @ts-expect-error strings are no data
  Tensor.from(['1'], [1]);
  // @ts-expect-error the shape is fixed
  x.shape = [1];
  // @ts-expect-error so is each dimension
  x.shape[0] = 1;
  // @ts-expect-error made by from, zeros, randn, uniform and wrap only
  new Tensor();
}

export function weights(w: Tensor): void {
  same<FormatInfo['name'], QuantFormat>(true);
  const w4 = quantize(w, { format: 'nf4', blocksize: 64, doubleQuant: true });
  same<typeof w4, QuantizedWeight>(true);
  same<typeof w4.byteLength, number>(true);
  same<ReturnType<typeof dequantize>, Tensor>(true);
  same<BaseWeight, Tensor | QuantizedWeight>(true);
  dequantize(w4, { dtype: 'f16' });
  void w4.toBitsandbytes().then((state) => QuantizedWeight.fromBitsandbytes(state));
  // @ts-expect-error a format is needed
  quantize(w, {});
  // @ts-expect-error no such format
  quantize(w, { format: 'nf5' });
  // @ts-expect-error a dense tensor is not quantised
  dequantize(w);
  // @ts-expect-error a quantised weight is not quantised again
  quantize(w4, { format: 'nf4' });
}

export function ops(x: Tensor, w: BaseWeight, adapter: LoraAdapter, dy: Tensor): void {
  same<ReturnType<typeof matmul>, Tensor>(true);
  matmul(x, w, { bias: x });
  same<ComputePrecision, 'exact' | 'int8'>(true);
  matmul(x, w, { compute: 'int8' });
  // @ts-expect-error no such precision
  matmul(x, w, { compute: 'int4' });
  matmulInputGrad(dy, w);
  const { y, saved } = loraForward(x, w, adapter, {
    seed: 1,
    training: true,
    compute: 'exact',
  });
  same<typeof y, Tensor>(true);
  same<typeof saved, LoraSaved>(true);
  const { dx, dLoraA } = loraBackward(dy, saved, {
    needs: ['dx', 'dLoraA', 'dLoraBias'],
    accumulateInto: { dLoraA: x },
    keep: true,
  });
  same<typeof dx, Tensor | undefined>(true);
  same<typeof dLoraA, Tensor | undefined>(true);
  same<LoraGradient, 'dx' | 'dLoraA' | 'dLoraB' | 'dBias' | 'dLoraBias'>(true);
  new LoraAdapter({ loraA: x, loraB: x, loraAlpha: 16, rslora: true, dropout: 0.1, trainA: false });
  LoraAdapter.init({
    inFeatures: 8,
    outFeatures: 4,
    r: 2,
    loraAlpha: 4,
    seed: 1,
    init: 'gaussian',
  });
  same<typeof adapter.scaling, number>(true);
  // @ts-expect-error x cannot be quantised
  matmul(quantize(x, { format: 'nf4' }), w);
  // @ts-expect-error no adapter
  loraForward(x, w);
  // @ts-expect-error no such gradient
  loraBackward(dy, saved, { needs: ['dW'] });
  // @ts-expect-error loraAlpha is needed
  new LoraAdapter({ loraA: x, loraB: x });
  // @ts-expect-error read only
  adapter.scaling = 2;
}

export function batches(x: Tensor, w: BaseWeight, adapter: LoraAdapter, dy: Tensor): void {
  const group = new GroupedLora({ inFeatures: 8, outFeatures: 4 });
  group.add('one', adapter);
  same<typeof group.names, readonly string[]>(true);
  const { y, saved } = group.forward(x, w, ['one', null], { rowScale: x, compute: 'exact' });
  same<typeof y, Tensor>(true);
  same<typeof saved, GroupedSaved>(true);
  const { dx, adapters } = group.backward(dy, saved, { needs: ['dx', 'adapters'], keep: true });
  same<typeof dx, Tensor | undefined>(true);
  same<typeof adapters, Map<string, GroupedAdapterGradients>>(true);
  group.backward(dy, saved, { accumulateInto: { adapters } });
  // @ts-expect-error a row has a name or null
  group.forward(x, w, [1]);
  // @ts-expect-error no such gradient
  group.backward(dy, saved, { needs: ['dLoraA'] });
}

export function parts(x: Tensor, w: BaseWeight, dy: Tensor): void {
  const h: Tensor = loraShrink(x, x, { scaling: 2, dropout: 0.1, seed: 1 });
  same<ReturnType<typeof loraExpand>, Tensor>(true);
  loraExpand(x, w, h, x, { bias: x });
  const { dh, dLoraB } = loraExpandBackward(dy, h, x, { needs: ['dh', 'dLoraB'] });
  same<typeof dh, Tensor | undefined>(true);
  loraExpandBackward(dy, undefined, x, { needs: ['dh'] });
  loraShrinkBackward(dy, w, h, x, { x, accumulateInto: { dLoraA: dLoraB ?? x } });
  weightGrad(dy, x, { dtype: 'bf16' });
  same<
    MapKind,
    | 'reciprocal'
    | 'sqrt'
    | 'rsqrt'
    | 'exp'
    | 'log'
    | 'tanh'
    | 'sigmoid'
    | 'relu'
    | 'abs'
    | 'sign'
    | 'square'
    | 'sin'
    | 'cos'
  >(true);
  mapTensor(multiplyAdd({ a: x, b: h, alpha: 2 }), 'exp', { dtype: 'f32' });
  sumProduct(x, undefined, { axis: 1 });
  const features: FeatureMap = FeatureMap.repeat(4, 2, 'inner');
  same<ReturnType<typeof mapFeatures>, Tensor>(true);
  mapFeatures(x.reshape([4]), features.adjoint, { c: x, alpha: 2 });
  blockWeightGrad(blockMatmul(x, w as Tensor), x);
  same<MergeResult<QuantizedWeight>['weight'], QuantizedWeight>(true);
  const { kept }: MergeLoss = mergeLora(w, { loraA: x, loraB: x }).lost;
  same<typeof kept, number>(true);
  factoredNorm({ w, loraA: x, loraB: x, weightNorms: weightNorms(w) });
  same<ReturnType<typeof loraExpandWithNorms>, { y: Tensor; norms: Tensor }>(true);
  const methods: readonly AnyMethod[] = [adapters.vera, adapters.dora, ...adapterMethods];
  checkAdapter(methods[0] ?? adapters.oft);
  checkAdapter(adapters.lora, { settings: { r: 2 } });
  // @ts-expect-error a repetition is inner or outer
  FeatureMap.repeat(4, 2, 'middle');
  const { h2, saved } = coreScale(h, { core: x });
  same<ReturnType<typeof coreScaleBackward>['dh'], Tensor>(true);
  coreScaleBackward(h2, saved, { keep: true });
  // @ts-expect-error no such function
  mapTensor(x, 'cosh');
  // @ts-expect-error no such axis
  sumProduct(x, x, { axis: 2 });
  // @ts-expect-error no such gradient
  loraExpandBackward(dy, h, x, { needs: ['dx'] });
  // @ts-expect-error a is needed
  multiplyAdd({ b: x });
}

export async function rest(x: Tensor): Promise<void> {
  const number: number = scope(() => 3);
  const inner: Promise<Tensor> = scope(async () => x);
  same<ReturnType<typeof synchronize>, Promise<void>>(true);
  const { liveBytes, peakBytes, liveTensors } = memoryUsage('cpu');
  const sums: number = number + liveBytes + peakBytes + liveTensors;
  const reason: string | undefined = devices()[0]?.reason;
  const code: ErrorCode = new LowrankError('ERR_SHAPE', `${sums} ${reason}`).code;
  // @ts-expect-error no such code
  const wrong: ErrorCode = 'ERR_MAGIC';
  await inner;
  throw new Error(code + wrong);
}
