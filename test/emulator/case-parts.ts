/** What the kernel cases have in common. */
import { createHash } from 'node:crypto';
import { type Device, type DType, type Tensor, Tensor as Tensors } from '../../lib/index.js';
import { tensorOf } from '../conformance/operands.js';
import { type Matrix, matrix } from '../oracle.js';
import { record } from './case-oracle.js';

export interface KernelCase {
  readonly name: string;
  /** The compute capability that it is for; elsewhere it repeats what others do. */
  readonly sm?: string;
  /** The same of how many multiprocessors (of DEVICES in case-runs.mjs). */
  readonly multiprocessors?: string;
  /**
   * Kernels that must be launched, must not be, and must be launched exactly once. A case that breaks one of these
   * is an error: it is not what its name says.
   */
  readonly launches?: readonly RegExp[];
  readonly without?: RegExp;
  readonly once?: RegExp;
  /** Bits of everything that the call computes, hashed. */
  run(device: Device): Promise<string>;
  /** How far its values may be from the reference's, in what the comparison allows: more where terms are rounded too. */
  readonly allowed?: number;
  /** Is it one of a smoke run's? Default yes. */
  readonly smoke?: boolean;
}

export async function hashOf(tensors: ReadonlyArray<Tensor | undefined>): Promise<string> {
  const hash = createHash('sha256');
  for (const tensor of tensors) {
    if (tensor === undefined) continue;
    const bytes = tensor.dtype === 'f32' ? await tensor.read() : await tensor.readBits();
    hash.update(new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength));
    await record(tensor);
  }
  return hash.digest('hex').slice(0, 16);
}

/** Where no kernel runs values say nothing, and need not be drawn. */
const RUNS = process.env.LOWRANK_EMULATOR_RUN !== '0';

/** Drawn on the processor, where it is quantised too: those kernels have cases of their own. */
export const random = (seed: number, shape: number[], as: DType, std = 1): Tensor =>
  RUNS
    ? Tensors.randn(shape, { seed, std, dtype: as, device: 'cpu' })
    : Tensors.zeros(shape, { dtype: as, device: 'cpu' });

/** An infinity in a column of each row: what a copy from there would multiply by zero. */
export function withInfinities(
  of: { matrix: Matrix },
  at: { dtype: DType; device: Device },
  column = 0,
): Tensor {
  const { rows, cols, data } = of.matrix;
  const spoilt = Float64Array.from(data);
  for (let row = 0; row < rows; row++)
    spoilt[row * cols + column] = row % 2 === 0 ? Infinity : -Infinity;
  return tensorOf(matrix(rows, cols, spoilt), at);
}

/** The same tensor in memory of the caller's, one element past a boundary of 16 bytes. */
export async function misplaced(tensor: Tensor): Promise<Tensor> {
  const { shape, dtype, device } = tensor;
  if (dtype === 'f32') {
    const values = await tensor.read();
    const room = new Float32Array(new SharedArrayBuffer(4 * (values.length + 1)), 4);
    room.set(values);
    return Tensors.wrap(room, shape, { dtype, device });
  }
  const bits = await tensor.readBits();
  const room = new Uint16Array(new SharedArrayBuffer(2 * (bits.length + 1)), 2);
  room.set(bits);
  return Tensors.wrap(room, shape, { dtype, device });
}
