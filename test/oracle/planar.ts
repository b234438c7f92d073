/** Planar weights decoded by their definition, element by element, each operation rounded to f32. */
import { decodeAll } from './dtypes.js';

const f32 = Math.fround;

/** A plane by its dtype; `u8` goes through the table where there is one. */
export interface OraclePlane {
  readonly dtype: 'f32' | 'f16' | 'bf16' | 'u8';
  readonly data: ArrayLike<number>;
  readonly table?: ArrayLike<number>;
}

export interface OracleScale {
  readonly values: OraclePlane;
  readonly outer?: { readonly values: OraclePlane; readonly span: number };
  readonly offset?: number;
}

/** The entry of element (n, k). */
export type OracleEntry = (n: number, k: number) => number;

export interface OraclePlanar {
  readonly codes: ArrayLike<number>;
  readonly levels: ArrayLike<number>;
  readonly scale: OracleScale;
  readonly zero?: OraclePlane;
  readonly min?: OracleScale;
}

function numbersOf({ dtype, data, table }: OraclePlane): ArrayLike<number> {
  if (dtype === 'f16' || dtype === 'bf16') return decodeAll(dtype, data);
  return table === undefined ? data : Array.from(data, (byte) => table[byte] as number);
}

function scaleOf({ values, outer, offset }: OracleScale): (entry: number) => number {
  const own = numbersOf(values);
  const factors = outer && numbersOf(outer.values);
  return (entry) => {
    let value = own[entry] as number;
    if (outer !== undefined && factors !== undefined) {
      value = f32(value * (factors[Math.floor(entry / outer.span)] as number));
    }
    return offset === undefined ? value : f32(value + f32(offset));
  };
}

/** w [N, K] in f32. */
export function decodePlanar(
  { codes, levels, scale, zero, min }: OraclePlanar,
  N: number,
  K: number,
  entryOf: OracleEntry,
): Float32Array {
  const [scaleAt, minAt] = [scaleOf(scale), min && scaleOf(min)];
  const zeros = zero && numbersOf(zero);
  const w = new Float32Array(N * K);
  for (let n = 0; n < N; n++) {
    for (let k = 0; k < K; k++) {
      const entry = entryOf(n, k);
      const level = levels[codes[n * K + k] as number] as number;
      const centred = zeros === undefined ? level : f32(level - (zeros[entry] as number));
      const product = f32(centred * scaleAt(entry));
      w[n * K + k] = minAt === undefined ? product : f32(product - minAt(entry));
    }
  }
  return w;
}
