/** Operands of a case, twice: as the library's tensors and as the oracle's matrices. */
import {
  type BaseWeight,
  type Device,
  type DType,
  devices,
  FORMATS,
  type QuantFormat,
  QuantizedWeight,
  quantize,
  Tensor,
} from '../../lib/index.js';
import { integerMatrix, normalMatrix } from '../oracle/inputs.js';
import {
  dequantiseBlocks,
  encodeAll,
  type Matrix,
  matrix,
  nestAbsmax,
  quantiseBlocks,
  roundAll,
  unnestAbsmax,
} from '../oracle.js';
import { PLANAR_SPECS, type PlanarSpec, planarCase } from './planar-cases.js';

/** Every device of this build that can run here. */
export const DEVICES: readonly Device[] = devices()
  .filter(({ available }) => available)
  .map(({ device }) => device);

export const DTYPES: readonly DType[] = ['f32', 'bf16', 'f16'];

export interface Operand {
  readonly tensor: Tensor;
  readonly matrix: Matrix;
}

export interface Fill {
  readonly seed: number;
  readonly dtype?: DType;
  readonly device: Device;
  readonly std?: number;
  /** Integers in [-limit, limit] in place of normal values. */
  readonly integers?: number;
  /** Shape of the tensor, where it is not [rows, cols]. */
  readonly shape?: readonly number[];
}

/** A tensor that holds exactly the values of the matrix. */
export function tensorOf(
  values: Matrix,
  fill: { dtype?: DType; device: Device; shape?: readonly number[] },
): Tensor {
  const { dtype = 'f32', device } = fill;
  const shape = fill.shape ?? [values.rows, values.cols];
  // The 16-bit values go in as the oracle's bits, so that the library's rounding plays no part.
  const data = dtype === 'f32' ? Float32Array.from(values.data) : encodeAll(dtype, values.data);
  return Tensor.from(data, shape, { dtype, device });
}

/** Random values that the dtype holds exactly. */
export function operand(rows: number, cols: number, fill: Fill): Operand {
  const { seed, dtype = 'f32', std = 1, integers } = fill;
  const drawn =
    integers === undefined
      ? normalMatrix(rows, cols, seed, std)
      : integerMatrix(rows, cols, seed, integers);
  const exact = matrix(rows, cols, roundAll(dtype, drawn.data));
  return { tensor: tensorOf(exact, fill), matrix: exact };
}

/** How a base weight is stored. */
export interface WeightSpec {
  readonly name: string;
  readonly dense?: DType;
  readonly format?: QuantFormat;
  readonly doubleQuant?: boolean;
  readonly planar?: PlanarSpec;
}

const quantised: readonly WeightSpec[] = [
  // Double quantisation is of the scales, whatever the format: those that checkpoints have with it.
  ...FORMATS.flatMap(({ name: format, bitsandbytes }) => [
    { name: format, format },
    ...(bitsandbytes
      ? [{ name: `${format} with double quantisation`, format, doubleQuant: true }]
      : []),
  ]),
];
export const WEIGHTS: readonly WeightSpec[] = [
  ...DTYPES.map((dense) => ({ name: `dense ${dense}`, dense })),
  ...quantised,
];
export const QUANTISED: readonly WeightSpec[] = quantised;
/** Planar weights of every kind of code and grid. To all but the decoding of a run, they are alike. */
const planar: readonly WeightSpec[] = PLANAR_SPECS.filter(({ inProducts }) => inProducts).map(
  (spec) => ({ name: `planes as ${spec.name}`, planar: spec }),
);

/** f32 goes with every dtype, the two 16-bit ones not with each other. */
export const mixes = (spec: WeightSpec, dtype: DType): boolean =>
  spec.dense === undefined || spec.dense === dtype || spec.dense === 'f32' || dtype === 'f32';

/** The full sweep of what the suite takes a sample of (`npm run test:sweep`). */
export const FULL_SWEEP = process.env.LOWRANK_SWEEP === 'full';

/**
 * Does a sample have this weight with this dtype of x? The formats of as many bits take the dtypes in turns: every
 * format meets one, and every dtype meets weights of 4 and of 8 bits.
 */
function isSampled({ format, planar: planes, name }: WeightSpec, dtype: DType): boolean {
  if (planes !== undefined) {
    const at = planar.findIndex((spec) => spec.name === name);
    return at % DTYPES.length === DTYPES.indexOf(dtype);
  }
  if (format === undefined) return true;
  const bitsOf = (of?: QuantFormat) => FORMATS.find((row) => row.name === of)?.bits;
  const alike = quantised.filter((spec) => bitsOf(spec.format) === bitsOf(format));
  const turns = Math.min(alike.length, DTYPES.length);
  const at = alike.findIndex((spec) => spec.name === name);
  return at % turns === DTYPES.indexOf(dtype) % turns;
}

/**
 * Each device with the products that it is tested for: dtypes of x and the base weights that go with them. The CPU
 * has them all, since each is a loop of its own there. The other devices decode to f32 and then round, so that a
 * format and a dtype meet in no code: they take a sample without LOWRANK_SWEEP=full.
 */
export const PRODUCTS = DEVICES.flatMap((device) =>
  DTYPES.flatMap((dtype) =>
    [...WEIGHTS, ...planar]
      .filter(
        (spec) => mixes(spec, dtype) && (FULL_SWEEP || device === 'cpu' || isSampled(spec, dtype)),
      )
      .map((spec) => ({ device, dtype, spec })),
  ),
);

/** Dequantised values of the oracle's own quantiser. */
export function oracleWeight(
  values: ArrayLike<number>,
  format: QuantFormat,
  blocksize: number,
  doubleQuant: boolean,
): Float64Array {
  const blocks = quantiseBlocks(values, format, blocksize);
  const absmax = doubleQuant ? unnestAbsmax(nestAbsmax(blocks.absmax)) : blocks.absmax;
  return dequantiseBlocks({ ...blocks, absmax });
}

export interface WeightOperand {
  readonly w: BaseWeight;
  /**
   * The values that a product uses: a quantised weight is decoded to the dtype of activations, once they are
   * asked for. The emulator's cases only need the weight.
   */
  readonly matrix: Matrix;
}

export interface WeightFill extends Fill {
  readonly blocksize?: number;
}

/** A weight [N, K] for activations of `dtype`. */
export function weightOperand(
  spec: WeightSpec,
  N: number,
  K: number,
  activations: DType,
  fill: WeightFill,
): WeightOperand {
  // No planar weight is empty.
  if (spec.planar !== undefined && N * K > 0) {
    const { planes, values } = planarCase(spec.planar, N, K, fill.seed, fill.integers);
    const w = QuantizedWeight.fromPlanes(planes, { device: fill.device });
    return { w, matrix: matrix(N, K, roundAll(activations, values)) };
  }
  const dense = operand(N, K, { std: 0.5, ...fill, dtype: spec.dense ?? 'f32' });
  if (spec.format === undefined) return { w: dense.tensor, matrix: dense.matrix };
  const { format, doubleQuant = false } = spec;
  const { blocksize = 64 } = fill;
  const w = quantize(dense.tensor, { format, blocksize, doubleQuant });
  dense.tensor.dispose();
  let decoded: Matrix | undefined;
  return {
    w,
    get matrix() {
      const values = () => oracleWeight(dense.matrix.data, format, blocksize, doubleQuant);
      decoded ??= matrix(N, K, roundAll(activations, values()));
      return decoded;
    },
  };
}

/** `fill` of a case, told apart per operand by its seed. */
export const seeded = (base: number, operandIndex: number): number => base * 101 + operandIndex;
