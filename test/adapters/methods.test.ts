// Every adapter method, on every device, over a dense base, NF4, and int4 with zero-points: y and the merged weight
// against the method's formula in float64, gradients over a dense base against differences of the forward pass, and
// those over a quantised one against those over its dequantised values.
import { describe, expect, it } from 'vitest';
import {
  type Adapter,
  type BaseWeight,
  checkGradients,
  type Device,
  dequantize,
  devices,
  matmul,
  memoryUsage,
  quantize,
  scope,
  Tensor,
} from '../../lib/index.js';
import { Matrix, type OracleMerged } from '../oracle/adapter-layer.js';
import { FORMULAS, METHOD_CASES, settingsOf } from './settings.js';

const M = 5;
const available = devices()
  .filter(({ available }) => available)
  .map(({ device }) => device);
const BASES = ['dense', 'nf4', 'int4'] as const;
type Base = (typeof BASES)[number];

/** Values that depend on their place only, about ±1. */
const wave = (size: number, phase: number): Float32Array =>
  Float32Array.from({ length: size }, (_, i) => Math.sin(1.7 * i + phase) * Math.cos(0.31 * i * i));

interface Layer {
  readonly adapter: Adapter;
  readonly w: BaseWeight;
  readonly bias: Tensor;
  readonly x: Tensor;
  readonly inputs: Readonly<Record<string, Tensor>>;
  readonly N: number;
  readonly K: number;
}

/** A layer whose adapter has moved away from its start; over the values of its base where `dequantised`. */
function layerOf(method: string, base: Base, device: Device, dequantised = false): Layer {
  const { create, N, K, settings, inputs = {} } = settingsOf(method);
  // On its device of origin the weight is quantised once; the bytes are the same on all.
  const dense = Tensor.from(wave(N * K, 0.3), [N, K], { device });
  const packed = { blocksize: 32, zeroPoints: base === 'int4' && K % 32 === 0 };
  const stored = base === 'dense' ? dense : quantize(dense, { format: base, ...packed });
  const w = dequantised ? denseOf(stored) : stored;
  const adapter = create({
    inFeatures: K,
    outFeatures: N,
    seed: 7,
    device,
    weight: w,
    ...settings,
  });
  Object.values(adapter.parameters).forEach((tensor, i) => {
    const noise = wave(tensor.size, i + 1);
    tensor.write(tensor.readSync().map((value, j) => value + 0.3 * (noise[j] as number)));
  });
  return {
    adapter,
    w,
    bias: Tensor.from(wave(N, 5), [N], { device }),
    x: Tensor.from(wave(M * K, 9), [M, K], { device }),
    inputs: Object.fromEntries(
      Object.entries(inputs).map(([name, shape], i) => {
        const dims = shape(M, { N, K });
        const size = dims.reduce((product, dim) => product * dim, 1);
        return [name, Tensor.from(wave(size, 20 + i), dims, { device })];
      }),
    ),
    N,
    K,
  };
}

const matrixOf = (tensor: Tensor): Matrix => {
  const cols = tensor.shape.at(-1) ?? 1;
  return new Matrix(tensor.size / cols, cols, Float64Array.from(tensor.readSync()));
};

const denseOf = (w: BaseWeight): Tensor =>
  w instanceof Tensor ? w : dequantize(w, { dtype: 'f32' });

function oracleOf({ adapter, w, bias, N, K }: Layer): OracleMerged {
  const formula = FORMULAS[adapter.method];
  if (formula === undefined) throw new Error(`${adapter.method} has no formula in the oracle`);
  const dense = denseOf(w);
  const all = { ...adapter.parameters, ...adapter.buffers };
  return formula({
    N,
    K,
    w: matrixOf(dense),
    bias: Float64Array.from(bias.readSync()),
    p: Object.fromEntries(Object.entries(all).map(([name, tensor]) => [name, matrixOf(tensor)])),
    indexes: adapter.indexes,
    config: adapter.config,
  });
}

/** Largest error as a share of the largest value. */
function worst(mine: ArrayLike<number>, expected: ArrayLike<number>): number {
  let error = 0;
  let size = 1e-30;
  expect(mine.length).toBe(expected.length);
  for (let i = 0; i < expected.length; i++) {
    error = Math.max(error, Math.abs((mine[i] as number) - (expected[i] as number)));
    size = Math.max(size, Math.abs(expected[i] as number));
    if (Number.isNaN(mine[i])) return Number.NaN;
  }
  return error / size;
}

/** Roundings of f32 in a chain of a dozen steps; a wrong formula is off by a hundredth and more. */
const TOLERANCE = 1e-5;

const gradientsOf = ({ adapter, w, bias, x, inputs, N }: Layer) => {
  const { saved } = adapter.forward(x, w, { bias, inputs });
  const dy = Tensor.from(wave(M * N, 13), [M, N], { device: x.device });
  const { dx, dBias, parameters, inputs: others } = adapter.backward(dy, saved);
  return { dx, dBias, ...parameters, ...others } as Record<string, Tensor>;
};

/** Has a layer the gradients of another one, once it has its parameters? */
async function compareGradients(own: Layer, theirs: Layer): Promise<void> {
  // What starts from the weight's singular vectors found them by its own products.
  const tensors = ({ parameters, buffers }: Adapter) => ({ ...parameters, ...buffers });
  for (const [name, tensor] of Object.entries(tensors(own.adapter))) {
    tensor.write((tensors(theirs.adapter)[name] as Tensor).readSync());
  }
  const [expected, mine] = [gradientsOf(theirs), gradientsOf(own)];
  expect(Object.keys(mine).sort()).toEqual(Object.keys(expected).sort());
  for (const [name, gradient] of Object.entries(mine)) {
    const { dtype, shape } = expected[name] as Tensor;
    expect([gradient.dtype, gradient.shape]).toEqual([dtype, shape]);
    const error = worst(await gradient.read(), await (expected[name] as Tensor).read());
    expect(error, name).toBeLessThan(TOLERANCE);
  }
}

describe.each(METHOD_CASES)('%s', (method) => {
  describe.each(BASES)('over a %s base', (base) => {
    it.each(available)('has y and the merged layer of its formula, on %s', async (device) => {
      await scope(async () => {
        const layer = layerOf(method, base, device);
        const { adapter, w, bias, x, inputs } = layer;
        const { y } = adapter.forward(x, w, { bias, inputs, training: false });
        const oracle = oracleOf(layer);
        const weight = 'weight' in oracle ? oracle.weight : matrixOf(denseOf(w));
        const shift = ('bias' in oracle && oracle.bias) || Float64Array.from(bias.readSync());
        const affine = matrixOf(x)
          .times(weight.transposed())
          .map((value, _, n) => value + (shift[n] as number));
        if ('update' in oracle) {
          const others = Object.entries(inputs).map(([name, t]) => [name, matrixOf(t)] as const);
          const update = oracle.update(matrixOf(x), Object.fromEntries(others));
          expect(worst(await y.read(), affine.plus(update).data)).toBeLessThan(TOLERANCE);
          expect(adapter.definition.mergeable).toBe(false);
          expect(() => adapter.merge(w, { bias })).toThrow(/affine/);
          return;
        }
        expect(worst(await y.read(), affine.data)).toBeLessThan(TOLERANCE);
        const dense = denseOf(w);
        const merged = adapter.merge(dense, { bias });
        expect(worst(await (merged.weight as Tensor).read(), weight.data)).toBeLessThan(TOLERANCE);
        const through = matmul(x, merged.weight, { bias: merged.bias ?? bias });
        expect(worst(await through.read(), affine.data)).toBeLessThan(TOLERANCE);
        if (adapter.definition.update === undefined) {
          expect(() => adapter.unmerge(merged.weight)).toThrow(/unmerge.*product of factors/);
          return;
        }
        const taken = adapter.unmerge(merged.weight, { bias: merged.bias as Tensor });
        const back = taken.weight as Tensor;
        expect(worst(await back.read(), matrixOf(dense).data)).toBeLessThan(TOLERANCE);
        expect(worst(await (taken.bias as Tensor).read(), await bias.read())).toBeLessThan(
          TOLERANCE,
        );
        expect(adapter.unmerge(merged.weight).bias).toBeUndefined();
        // What was given stays.
        expect(worst(await (merged.weight as Tensor).read(), weight.data)).toBeLessThan(TOLERANCE);
      });
    });

    if (base === 'dense') {
      it('has the gradients that differences give', () => {
        scope(() => {
          const { adapter, w, bias, x, inputs } = layerOf(method, base, 'reference');
          const settings = settingsOf(method);
          const leaves = { dx: x, dBias: bias, ...inputs, ...adapter.parameters };
          const run = (at: Record<string, Tensor>) => {
            const moved = settings.create({
              inFeatures: adapter.inFeatures,
              outFeatures: adapter.outFeatures,
              seed: 7,
              device: 'reference',
              weight: w,
              ...settings.settings,
            });
            for (const name of Object.keys(adapter.parameters)) {
              moved.parameters[name]?.write((at[name] as Tensor).readSync());
            }
            const given = Object.fromEntries(
              Object.keys(inputs).map((name) => [name, at[name] as Tensor]),
            );
            return moved.forward(at.dx as Tensor, w, { bias: at.dBias as Tensor, inputs: given });
          };
          const reports = checkGradients({
            inputs: leaves,
            step: settings.step ?? 1 / 32,
            forward: settings.held?.(adapter, w) ?? ((at) => run(at).y),
            backward: (dy, at) => {
              const { saved } = run(at);
              const { dx, dBias, parameters, inputs: others } = adapter.backward(dy, saved);
              return { dx, dBias, ...parameters, ...others } as Record<string, Tensor>;
            },
          });
          const trained = Object.keys(leaves);
          expect(reports.map(({ name }) => name).sort()).toEqual(trained.sort());
          expect(reports.filter(({ passed }) => !passed)).toEqual([]);
        });
      });
    } else {
      it('has the gradients of its dequantised base', async () => {
        await scope(() =>
          compareGradients(
            layerOf(method, base, 'reference'),
            layerOf(method, base, 'reference', true),
          ),
        );
      });
    }

    it.each(available.filter((device) => device !== 'reference'))(
      'has the gradients of the reference device, on %s',
      async (device) => {
        await scope(() =>
          compareGradients(layerOf(method, base, device), layerOf(method, base, 'reference')),
        );
      },
    );
  });

  it('starts at the base model, in bf16 too, and leaks nothing', async () => {
    const before = memoryUsage('cpu').liveTensors;
    await scope(async () => {
      const { create, N, K, settings, inputs = {}, startsElsewhere } = settingsOf(method);
      if (startsElsewhere !== undefined) return;
      const w = Tensor.from(wave(N * K, 0.3), [N, K], { device: 'cpu' });
      const fresh = create({
        inFeatures: K,
        outFeatures: N,
        seed: 7,
        device: 'cpu',
        weight: w,
        ...settings,
      });
      const given = Object.fromEntries(
        Object.entries(inputs).map(([name, shape], i) => {
          const dims = shape(M, { N, K });
          const size = dims.reduce((product, dim) => product * dim, 1);
          return [name, Tensor.from(wave(size, 20 + i), dims, { device: 'cpu' })];
        }),
      );
      const x = Tensor.from(wave(M * K, 9), [M, K], { device: 'cpu' });
      const base = await matmul(x, w).read();
      const { y, saved } = fresh.forward(x, w, { inputs: given, seed: 3 });
      expect(worst(await y.read(), base)).toBeLessThan(TOLERANCE);
      saved.dispose();
      const half = x.to({ dtype: 'bf16' });
      const wHalf = w.to({ dtype: 'bf16' });
      const low = fresh.forward(half, wHalf, { inputs: given, training: false });
      expect(low.y.dtype).toBe('bf16');
      expect(worst(await low.y.read(), base)).toBeLessThan(0.03);
    });
    expect(memoryUsage('cpu').liveTensors).toBe(before);
  });
});
