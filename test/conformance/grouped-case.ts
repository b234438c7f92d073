/** A batch whose rows have different adapters, as tensors and as the oracle's inputs. */
import {
  type BaseWeight,
  type Device,
  type DType,
  type GroupedForwardOptions,
  GroupedLora,
  type GroupedRow,
  LoraAdapter,
  type Tensor,
} from '../../lib/index.js';
import {
  dropoutMask64,
  type GroupedAdapter64,
  type GroupedInputs,
  gateOf,
  type Matrix,
} from '../oracle.js';
import { operand, seeded, tensorOf, type WeightSpec, weightOperand } from './operands.js';

export interface GroupedShape {
  readonly M: number;
  readonly N: number;
  readonly K: number;
  /** One adapter each; an adapter may end up without rows. */
  readonly ranks: readonly number[];
  /** A row is a list of so many places, each with an adapter of its own; default: a name. */
  readonly slots?: number;
  /** Every so many places have no adapter; default none. */
  readonly nullEvery?: number;
  /** Rows of an adapter stand together. */
  readonly sorted?: boolean;
  readonly bias?: boolean;
  /** Every second adapter has a bias. */
  readonly loraBias?: boolean;
  /** Adapters drop with 0, p, 2p, ...; by a mask that is given, or by a seed. */
  readonly dropout?: number;
  readonly maskGiven?: boolean;
  readonly rowScale?: boolean;
  /** Default f32. */
  readonly gateType?: DType;
  readonly sameDType?: boolean;
}

export interface GroupedCase {
  readonly name: string;
  readonly x: Tensor;
  readonly dy: Tensor;
  readonly w: BaseWeight;
  readonly group: GroupedLora;
  readonly adapters: readonly LoraAdapter[];
  readonly rows: readonly GroupedRow[];
  readonly options: GroupedForwardOptions;
  readonly inputs: GroupedInputs;
  readonly dy64: Matrix;
}

/** A small generator, so that a case is the same everywhere. */
export function draws(seed: number): (limit: number) => number {
  let state = (seed * 2654435761 + 12345) >>> 0;
  return (limit) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * limit);
  };
}

export const nameOf = (e: number): string => `adapter ${e}`;

export function groupedCase(
  shape: GroupedShape,
  spec: WeightSpec,
  dtype: DType,
  device: Device,
  seed: number,
): GroupedCase {
  const { M, N, K, ranks, nullEvery, dropout = 0 } = shape;
  const fill = (i: number, type: DType, std = 1) => ({
    seed: seeded(seed, i),
    dtype: type,
    device,
    std,
  });
  const x = operand(M, K, fill(1, dtype));
  const dy = operand(M, N, fill(2, dtype));
  const w = weightOperand(spec, N, K, dtype, { seed: seeded(seed, 3), device });
  const bias = shape.bias ? operand(1, N, fill(4, 'f32')) : undefined;
  const slots = shape.slots ?? 1;
  const gateType = fill(5, shape.gateType ?? 'f32');
  const rowScale = !shape.rowScale
    ? undefined
    : shape.slots === undefined
      ? operand(1, M, gateType)
      : operand(M, slots, gateType);
  const draw = draws(seed);
  const adapterOf = Array.from({ length: M * slots }, (_, at) =>
    nullEvery !== undefined && at % nullEvery === 0 ? -1 : draw(ranks.length),
  );
  if (shape.sorted) adapterOf.sort((a, b) => a - b);
  adapterOf.forEach((e, at) => {
    // Once in a row: the next one that is free, or none.
    const before = adapterOf.slice(at - (at % slots), at);
    const free = ranks.map((_, i) => (e + i) % ranks.length).filter((i) => !before.includes(i));
    if (e >= 0) adapterOf[at] = free[0] ?? -1;
  });
  const adapterType = shape.sameDType ? dtype : 'f32';
  const group = new GroupedLora({ inFeatures: K, outFeatures: N, device });
  const sharedMask = shape.maskGiven ? dropoutMask64(seed, 0.3, M, K) : undefined;
  const adapters: LoraAdapter[] = [];
  const adapters64: GroupedAdapter64[] = ranks.map((r, e) => {
    const loraA = operand(r, K, fill(10 + 3 * e, adapterType, 1 / Math.sqrt(K)));
    const loraB = operand(N, r, fill(11 + 3 * e, adapterType, 0.5));
    const extra =
      shape.loraBias && e % 2 === 0 ? operand(1, N, fill(12 + 3 * e, 'f32')) : undefined;
    const p = dropout * (e % 3);
    const rslora = e % 2 === 1;
    const loraAlpha = r + e + 1;
    const adapter = new LoraAdapter({
      loraA: loraA.tensor,
      loraB: loraB.tensor,
      loraAlpha,
      rslora,
      dropout: p,
      ...(extra === undefined ? {} : { loraBias: extra.tensor }),
    });
    adapters.push(adapter);
    group.add(nameOf(e), adapter);
    let gate: Matrix | undefined;
    return {
      loraA: loraA.matrix,
      loraB: loraB.matrix,
      loraBias: extra?.matrix,
      scaling: loraAlpha / (rslora ? Math.sqrt(r) : r),
      get gate() {
        const mask = sharedMask ?? (p > 0 ? dropoutMask64(seed, p, M, K) : undefined);
        gate ??= mask === undefined ? undefined : gateOf(mask, p);
        return gate;
      },
    };
  });
  const names = adapterOf.map((e) => (e < 0 ? null : nameOf(e)));
  return {
    name: `${JSON.stringify(shape)} seed ${seed}`,
    x: x.tensor,
    dy: dy.tensor,
    w: w.w,
    group,
    adapters,
    rows:
      shape.slots === undefined
        ? names
        : Array.from({ length: M }, (_, m) => names.slice(m * slots, (m + 1) * slots)),
    options: {
      ...(bias === undefined ? {} : { bias: bias.tensor }),
      ...(sharedMask === undefined ? {} : { dropoutMask: tensorOf(sharedMask, { device }) }),
      ...(dropout > 0 && sharedMask === undefined ? { seed } : {}),
      ...(rowScale === undefined ? {} : { rowScale: rowScale.tensor }),
    },
    inputs: {
      x: x.matrix,
      get w() {
        return w.matrix;
      },
      bias: bias?.matrix,
      adapters: adapters64,
      adapterOf,
      slots,
      rowScale: rowScale?.matrix.data,
    },
    dy64: dy.matrix,
  };
}
