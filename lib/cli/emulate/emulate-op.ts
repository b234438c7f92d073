/**
 * One op on device `cuda-emulated` with chosen operands: the part of `lowrank emulate` that runs in
 * its own process, because the emulator reads its options only once.
 */

import { createHash } from 'node:crypto';
import fs from 'node:fs';
import {
  type Device,
  type DType,
  dequantize,
  type ErrorCode,
  LoraAdapter,
  loraBackward,
  loraForward,
  matmul,
  matmulInputGrad,
  type QuantFormat,
  type QuantizedWeight,
  quantize,
  synchronize,
  Tensor,
} from '../../index.js';

export const emulatedOps = [
  'matmul',
  'matmulInputGrad',
  'loraForward',
  'loraBackward',
  'quantize',
  'dequantize',
  'cast',
  'random',
] as const;
export type EmulatedOp = (typeof emulatedOps)[number];

/** The op to run. */
export interface OpSpec {
  readonly op: EmulatedOp;
  readonly M: number;
  readonly N: number;
  readonly K: number;
  readonly r: number;
  readonly dtype: DType;
  /** `none`: a dense weight in `dtype`. */
  readonly format: QuantFormat | 'none';
  readonly blocksize: number | undefined;
  readonly doubleQuant: boolean;
  /** Dtype of the adapter's factors. */
  readonly adapterDType: DType;
  readonly dropout: number;
  readonly bias: boolean;
  readonly seed: number;
}

/** The outcome of a run. */
export interface OpOutcome {
  /** For each output: a hash of its values, and its difference from the reference device. */
  readonly outputs: readonly OutputFacts[];
  /** Bytes of the trace before the op. */
  readonly traceFrom: number;
  /** The failure, if the op failed. */
  readonly error?: string;
  /** The error code, if the op rejected its operands. */
  readonly refused?: ErrorCode;
}
export interface OutputFacts {
  readonly name: string;
  readonly shape: readonly number[];
  readonly hash: string;
  /** The largest absolute difference from the expected values; undefined if there are none. */
  readonly maxError?: number;
  readonly maxValue: number;
  /** The largest error that still passes, if there is a limit. */
  readonly limit?: number;
}

/** Operands on the host device, with the same bits in every run. */
class HostOperands {
  readonly x: Tensor;
  readonly dy: Tensor;
  readonly dense: Tensor;
  readonly w: Tensor | QuantizedWeight;
  readonly loraA: Tensor;
  readonly loraB: Tensor;
  readonly bias: Tensor | undefined;

  constructor(spec: OpSpec) {
    const { M, N, K, r, dtype, adapterDType, seed } = spec;
    const make = (shape: number[], index: number, std: number, as: DType) =>
      Tensor.randn(shape, { seed: seed + index, std, dtype: as, device: 'cpu' });
    this.x = make([M, K], 1, 1, dtype);
    this.dy = make([M, N], 2, 1, dtype);
    this.dense = make([N, K], 3, 0.02, spec.format === 'none' ? dtype : 'f32');
    this.w = spec.format === 'none' ? this.dense : quantize(this.dense, quantizeOptions(spec));
    this.loraA = make([r, K], 4, 0.02, adapterDType);
    this.loraB = make([N, r], 5, 0.02, adapterDType);
    this.bias = spec.bias ? make([N], 6, 1, dtype) : undefined;
  }
}

function quantizeOptions(spec: OpSpec) {
  return {
    format: spec.format as QuantFormat,
    doubleQuant: spec.doubleQuant,
    ...(spec.blocksize === undefined ? {} : { blocksize: spec.blocksize }),
  };
}

/** Copies everything to a device and returns the op as a call. */
function prepare(spec: OpSpec, host: HostOperands, device: Device): () => Record<string, Tensor> {
  const x = host.x.to({ device });
  const dy = host.dy.to({ device });
  const w = host.w.to({ device }) as Tensor | QuantizedWeight;
  const bias = host.bias?.to({ device });
  const options = bias === undefined ? {} : { bias };
  const adapter = () =>
    new LoraAdapter({
      loraA: host.loraA.to({ device }),
      loraB: host.loraB.to({ device }),
      loraAlpha: 2 * spec.r,
      dropout: spec.dropout,
    });
  switch (spec.op) {
    case 'matmul':
      return () => ({ y: matmul(x, w, options) });
    case 'matmulInputGrad':
      return () => ({ dx: matmulInputGrad(dy, w) });
    case 'loraForward': {
      const lora = adapter();
      return () => {
        const { y, saved } = loraForward(x, w, lora, { ...options, seed: spec.seed });
        return saved.h === undefined ? { y } : { y, h: saved.h };
      };
    }
    case 'loraBackward': {
      const { saved } = loraForward(x, w, adapter(), { ...options, seed: spec.seed });
      return () => loraBackward(dy, saved, { keep: true }) as Record<string, Tensor>;
    }
    case 'quantize': {
      const dense = host.dense.to({ device });
      // Decoded on the host, so that the launches are those of quantisation only.
      return () => {
        const packed = quantize(dense, quantizeOptions(spec));
        return { w: dequantize(packed.to({ device: 'cpu' }), { dtype: 'f32' }) };
      };
    }
    case 'dequantize':
      return () => ({ w: dequantize(w as QuantizedWeight, { dtype: spec.dtype }) });
    case 'cast':
      return () => ({ y: x.to({ dtype: spec.dtype === 'f32' ? 'bf16' : 'f32' }) });
    case 'random':
      return () => ({
        y: Tensor.randn([spec.M, spec.K], { seed: spec.seed, dtype: spec.dtype, device }),
      });
  }
}

function valuesOf(outputs: Record<string, Tensor>): Map<string, Float32Array> {
  return new Map(Object.entries(outputs).map(([name, tensor]) => [name, tensor.readSync()]));
}

/** Runs the op. A failure is part of the outcome. */
export async function runOp(spec: OpSpec, tracePath: string): Promise<OpOutcome> {
  const host = new HostOperands(spec);
  const run = prepare(spec, host, 'cuda-emulated');
  await synchronize('cuda-emulated');
  const traceFrom = fs.existsSync(tracePath) ? fs.statSync(tracePath).size : 0;
  try {
    const made = run();
    await synchronize('cuda-emulated');
    const found = valuesOf(made);
    const expected = valuesOf(prepare(spec, host, 'reference')());
    const outputs = Object.entries(made).map(([name, tensor]) => {
      const values = found.get(name) as Float32Array;
      return {
        name,
        shape: tensor.shape,
        hash: createHash('sha256').update(values).digest('hex').slice(0, 16),
        maxError: largestDifference(values, expected.get(name) as Float32Array),
        maxValue: values.reduce((most, value) => Math.max(most, Math.abs(value)), 0),
      };
    });
    return { outputs, traceFrom };
  } catch (error) {
    return { outputs: [], traceFrom, error: (error as Error).message };
  }
}

/** The largest difference between two arrays, element by element; infinite if only one of them has a NaN. */
export function largestDifference(found: ArrayLike<number>, expected: ArrayLike<number>): number {
  let most = 0;
  for (let i = 0; i < expected.length; i++) {
    const [a, b] = [found[i] as number, expected[i] as number];
    const error = Object.is(a, b) || a === b ? 0 : Math.abs(a - b);
    most = Math.max(most, Number.isNaN(error) ? Number.POSITIVE_INFINITY : error);
  }
  return most;
}
