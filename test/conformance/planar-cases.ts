/** Planar weights for tests: each kind of code, grid, scale, zero-point and minimum in one at least. */
import type {
  Grid,
  PlanarWeight,
  PlaneValues,
  ScalePlane,
  ZeroPlane,
} from '../../lib/checkpoint/planar/planar-weight.js';
import { encodeAll } from '../oracle/dtypes.js';
import { integerMatrix, type Source, source } from '../oracle/inputs.js';
import { decodePlanar, type OracleEntry } from '../oracle/planar.js';

type DType = PlaneValues['dtype'];

/** How a case is drawn. */
export interface PlanarSpec {
  readonly name: string;
  readonly bits: number;
  /** By default those of integers around 0. */
  readonly levels?: 'normal';
  readonly grid:
    | 'rows'
    | 'groups of 16'
    | 'groups of 32'
    | 'tiles'
    | 'flat'
    | 'ordered'
    | 'tensor'
    | 'cyclic';
  readonly scale: DType;
  /** Entries that share a factor. */
  readonly outer?: { readonly dtype: 'f32' | 'f16'; readonly span: number };
  readonly offset?: number;
  readonly zero?: ZeroPlane['dtype'];
  readonly min?: DType;
  /** Whether the tests of products take it too. */
  readonly inProducts?: boolean;
}

export const PLANAR_SPECS: readonly PlanarSpec[] = [
  { name: 'q4_0', bits: 4, grid: 'groups of 32', scale: 'f16' },
  { name: 'gptq', inProducts: true, bits: 4, grid: 'ordered', scale: 'f16', zero: 'u8' },
  { name: 'hqq', bits: 2, grid: 'flat', scale: 'f16', zero: 'f16' },
  {
    name: 'q4_k',
    inProducts: true,
    bits: 4,
    grid: 'groups of 32',
    scale: 'u8',
    outer: { dtype: 'f16', span: 8 },
    min: 'u8',
  },
  {
    name: 'q3_k',
    inProducts: true,
    bits: 3,
    grid: 'groups of 16',
    scale: 'u8',
    outer: { dtype: 'f16', span: 16 },
  },
  { name: 'q5_1', bits: 5, grid: 'groups of 32', scale: 'f16', min: 'f16' },
  { name: 'q6_k', bits: 6, grid: 'groups of 16', scale: 'u8', outer: { dtype: 'f32', span: 16 } },
  { name: 'nvfp4', bits: 4, levels: 'normal', grid: 'groups of 16', scale: 'u8' },
  { name: 'fp8 tiles', inProducts: true, bits: 8, levels: 'normal', grid: 'tiles', scale: 'f32' },
  { name: 'fp8 tensor', bits: 8, levels: 'normal', grid: 'tensor', scale: 'bf16' },
  { name: 'int8 rows', bits: 8, grid: 'rows', scale: 'bf16', zero: 'f32' },
  {
    name: 'nested',
    bits: 4,
    levels: 'normal',
    grid: 'flat',
    scale: 'u8',
    outer: { dtype: 'f32', span: 7 },
    offset: 0.03,
  },
  { name: 'hqq, axis 0', bits: 4, grid: 'cyclic', scale: 'f16', zero: 'f16' },
  { name: 'one bit', bits: 1, grid: 'rows', scale: 'f32', zero: 'bf16' },
  { name: 'seven bits', bits: 7, grid: 'ordered', scale: 'f32', min: 'f32' },
];

function gridOf(kind: PlanarSpec['grid'], N: number, K: number, from: Source): Grid {
  switch (kind) {
    case 'rows':
      return { kind: 'tiles', rows: 1, columns: K };
    case 'tensor':
      return { kind: 'tiles', rows: N, columns: K };
    case 'tiles':
      return { kind: 'tiles', rows: 3, columns: 24 };
    case 'groups of 16':
      return { kind: 'tiles', rows: 1, columns: 16 };
    case 'groups of 32':
      return { kind: 'tiles', rows: 1, columns: 32 };
    case 'flat':
      return { kind: 'flat', span: 40 };
    case 'cyclic':
      return { kind: 'cyclic', period: K };
    case 'ordered': {
      const groups = Math.ceil(K / 32);
      const group = Int32Array.from({ length: K }, () => from.integer(0, groups - 1));
      return { kind: 'ordered', groups, group };
    }
  }
}

/** The entry of an element as the definition of a grid says. */
export function entryOf(grid: Grid, K: number): OracleEntry {
  switch (grid.kind) {
    case 'tiles': {
      const pitch = Math.ceil(K / grid.columns);
      return (n, k) => Math.floor(n / grid.rows) * pitch + Math.floor(k / grid.columns);
    }
    case 'flat':
      return (n, k) => Math.floor((n * K + k) / grid.span);
    case 'cyclic':
      return (n, k) => (n * K + k) % grid.period;
    case 'ordered':
      return (n, k) => n * grid.groups + (grid.group[k] as number);
  }
}

function plane(dtype: DType, count: number, from: Source, size: number): PlaneValues {
  const values = Float32Array.from({ length: count }, () => from.normal() * size);
  if (dtype === 'f32') return { dtype, data: values };
  if (dtype !== 'u8') return { dtype, data: encodeAll(dtype, values) };
  // Of both signs, as scales of some formats are.
  const table = Float32Array.from({ length: 256 }, (_, i) => ((i - 100) / 128) * size);
  return { dtype, data: Uint8Array.from(values, () => from.integer(0, 255)), table };
}

export interface PlanarCase {
  readonly planes: PlanarWeight;
  /** [N, K] in f32. */
  readonly values: Float32Array;
}

/** Integers in [-limit, limit] without 0, as the oracle draws them, with a scale of 1. */
function integerCase(N: number, K: number, seed: number, limit: number): PlanarCase {
  const values = Float32Array.from(integerMatrix(N, K, seed, limit).data);
  const planes: PlanarWeight = {
    rows: N,
    columns: K,
    bits: 8,
    codes: Uint8Array.from(values, (value) => value + 128),
    levels: Float32Array.from({ length: 256 }, (_, c) => c - 128),
    grid: { kind: 'tiles', rows: 1, columns: K },
    scale: { values: { dtype: 'f32', data: new Float32Array(N).fill(1) } },
  };
  return { planes, values };
}

/** A weight whose scales, zero-points and minima are small integers, so that its sums are exact. */
export function integerPlanes(planes: PlanarWeight): PlanarWeight {
  const small = (i: number) => [1, 2, -1][i % 3] as number;
  const values = (old: PlaneValues): PlaneValues => {
    const numbers = Float32Array.from({ length: old.data.length }, (_, i) => small(i * 7 + 1));
    if (old.dtype === 'f32') return { dtype: 'f32', data: numbers };
    if (old.dtype === 'u8') {
      return { ...old, table: Float32Array.from({ length: 256 }, (_, i) => small(i)) };
    }
    return { dtype: old.dtype, data: encodeAll(old.dtype, numbers) };
  };
  const scale = ({ values: own, outer }: ScalePlane): ScalePlane => ({
    values: values(own),
    ...(outer === undefined ? {} : { outer: { ...outer, values: values(outer.values) } }),
  });
  const half = planes.levels.length / 2;
  const { zero, min } = planes;
  const zeros = zero && Float32Array.from({ length: zero.data.length }, (_, i) => (i * 5) % half);
  return {
    ...planes,
    levels: Float32Array.from({ length: 2 * half }, (_, c) => ((c * 5) % 16) - 8),
    scale: scale(planes.scale),
    ...(zero === undefined || zeros === undefined
      ? {}
      : {
          zero:
            zero.dtype === 'u8'
              ? { dtype: 'u8', data: Uint8Array.from(zeros) }
              : zero.dtype === 'f32'
                ? { dtype: 'f32', data: zeros }
                : { dtype: zero.dtype, data: encodeAll(zero.dtype, zeros) },
        }),
    ...(min === undefined ? {} : { min: scale(min) }),
  };
}

/** A drawn weight, and its values by the oracle. With `integers`, one that has those values. */
export function planarCase(
  spec: PlanarSpec,
  N: number,
  K: number,
  seed: number,
  integers?: number,
): PlanarCase {
  if (integers !== undefined) return integerCase(N, K, seed, integers);
  const from = source(seed);
  const { bits } = spec;
  const grid = gridOf(spec.grid, N, K, from);
  const entry = entryOf(grid, K);
  let entries = 0;
  for (let n = 0; n < N; n++)
    for (let k = 0; k < K; k++) entries = Math.max(entries, entry(n, k) + 1);
  if (grid.kind === 'ordered') entries = N * grid.groups;
  const half = 2 ** (bits - 1);
  const levels = Float32Array.from({ length: 2 ** bits }, (_, c) =>
    spec.levels === 'normal' ? from.normal() * half : spec.zero === undefined ? c - half : c,
  );
  const scalePlane = (dtype: DType, size: number): ScalePlane => ({
    values: plane(dtype, entries, from, size),
    ...(spec.outer === undefined
      ? {}
      : {
          outer: {
            values: plane(spec.outer.dtype, Math.ceil(entries / spec.outer.span), from, 1),
            span: spec.outer.span,
          },
        }),
    ...(spec.offset === undefined ? {} : { offset: spec.offset }),
  });
  const zeros =
    spec.zero && Float32Array.from({ length: entries }, () => from.uniform() * 2 ** bits);
  const zero: ZeroPlane | undefined =
    zeros === undefined
      ? undefined
      : spec.zero === 'u8'
        ? { dtype: 'u8', data: Uint8Array.from(zeros) }
        : spec.zero === 'f32'
          ? { dtype: 'f32', data: zeros }
          : { dtype: spec.zero as 'f16', data: encodeAll(spec.zero as 'f16', zeros) };
  const planes: PlanarWeight = {
    rows: N,
    columns: K,
    bits,
    codes: Uint8Array.from({ length: N * K }, () => from.integer(0, 2 ** bits - 1)),
    levels,
    grid,
    scale: scalePlane(spec.scale, 1 / half),
    ...(zero === undefined ? {} : { zero }),
    ...(spec.min === undefined ? {} : { min: scalePlane(spec.min, 0.5) }),
  };
  return { planes, values: decodePlanar(planes, N, K, entry) };
}
