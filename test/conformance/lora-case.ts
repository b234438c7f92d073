/** One LoRA layer as tensors and as the oracle's inputs. */
import {
  type BaseWeight,
  type Device,
  type DType,
  LoraAdapter,
  type LoraForwardOptions,
  type Tensor,
} from '../../lib/index.js';
import { dropoutMask64, gateOf, type LoraInputs, type Matrix } from '../oracle.js';
import {
  type Operand,
  operand,
  seeded,
  tensorOf,
  type WeightSpec,
  weightOperand,
} from './operands.js';

export interface LoraShape {
  readonly M: number;
  readonly N: number;
  readonly K: number;
  readonly r: number;
}

export interface LoraVariant {
  readonly bias?: boolean;
  readonly loraBias?: boolean;
  readonly rslora?: boolean;
  /** Adapter factors in the dtype of x; f32 otherwise, as PEFT has them. */
  readonly sameDType?: boolean;
  readonly dropout?: number;
  /** The mask is given in place of a seed. */
  readonly maskGiven?: boolean;
  readonly trainA?: boolean;
  readonly trainB?: boolean;
  readonly integers?: number;
  readonly loraAlpha?: number;
  /** Leading dimensions of x in place of M. */
  readonly leading?: readonly number[];
}

export interface LoraCase {
  readonly name: string;
  readonly x: Tensor;
  readonly dy: Tensor;
  readonly w: BaseWeight;
  readonly adapter: LoraAdapter;
  readonly options: LoraForwardOptions;
  /** The oracle's, computed once they are asked for: the emulator's cases need none. */
  readonly inputs: LoraInputs;
  readonly dy64: Matrix;
}

export function loraCase(
  shape: LoraShape,
  variant: LoraVariant,
  spec: WeightSpec,
  dtype: DType,
  device: Device,
  seed: number,
): LoraCase {
  const { M, N, K, r } = shape;
  const { dropout = 0, integers, loraAlpha = 2 * r, leading = [M] } = variant;
  const part = (i: number, rows: number, cols: number, type: DType, std = 1): Operand => {
    const how = { seed: seeded(seed, i), dtype: type, device, std };
    return operand(rows, cols, integers === undefined ? how : { ...how, integers });
  };
  const adapterType = variant.sameDType ? dtype : 'f32';
  const at = { dtype, device };
  const x = part(1, M, K, dtype);
  const dy = part(2, M, N, dtype);
  const w = weightOperand(spec, N, K, dtype, {
    seed: seeded(seed, 3),
    device,
    ...(integers === undefined ? {} : { integers }),
  });
  const loraA = part(4, r, K, adapterType, 1 / Math.sqrt(K));
  const loraB = part(5, N, r, adapterType, 0.5);
  const bias = variant.bias ? part(6, 1, N, 'f32') : undefined;
  const loraBias = variant.loraBias ? part(7, 1, N, 'f32') : undefined;
  const maskOf = () => (dropout > 0 ? dropoutMask64(seed, dropout, M, K) : undefined);
  const mask = variant.maskGiven ? maskOf() : undefined;
  const adapter = new LoraAdapter({
    loraA: loraA.tensor,
    loraB: loraB.tensor,
    loraAlpha,
    dropout,
    ...(variant.rslora ? { rslora: true } : {}),
    ...(variant.trainA === undefined ? {} : { trainA: variant.trainA }),
    ...(variant.trainB === undefined ? {} : { trainB: variant.trainB }),
    ...(loraBias === undefined ? {} : { loraBias: loraBias.tensor }),
  });
  const shapeOf = (cols: number): number[] => [...leading, cols];
  const options: LoraForwardOptions = {
    ...(bias === undefined ? {} : { bias: bias.tensor }),
    ...(mask === undefined ? {} : { dropoutMask: tensorOf(mask, { device, shape: shapeOf(K) }) }),
    ...(dropout > 0 && !variant.maskGiven ? { seed } : {}),
  };
  let inputs: LoraInputs | undefined;
  const inputsOf = (): LoraInputs => {
    const gate = mask ?? maskOf();
    return {
      x: x.matrix,
      w: w.matrix,
      bias: bias?.matrix,
      loraA: loraA.matrix,
      loraB: loraB.matrix,
      loraBias: loraBias?.matrix,
      scaling: loraAlpha / (variant.rslora ? Math.sqrt(r) : r),
      gate: gate === undefined ? undefined : gateOf(gate, dropout),
    };
  };
  return {
    name: `[${M}, ${N}, ${K}] r ${r} ${JSON.stringify(variant)}`,
    x: tensorOf(x.matrix, { ...at, shape: shapeOf(K) }),
    dy: tensorOf(dy.matrix, { ...at, shape: shapeOf(N) }),
    w: w.w,
    adapter,
    options,
    dy64: dy.matrix,
    get inputs() {
      inputs ??= inputsOf();
      return inputs;
    },
  };
}
