/** What the formulas of adapter methods are written with. */

/** Row-major. */
export class Matrix {
  constructor(
    readonly rows: number,
    readonly cols: number,
    readonly data: Float64Array,
  ) {}

  static zeros(rows: number, cols: number): Matrix {
    return new Matrix(rows, cols, new Float64Array(rows * cols));
  }

  static of(rows: number, cols: number, value: (i: number, j: number) => number): Matrix {
    const data = new Float64Array(rows * cols);
    for (let i = 0; i < rows; i++) {
      for (let j = 0; j < cols; j++) data[i * cols + j] = value(i, j);
    }
    return new Matrix(rows, cols, data);
  }

  static identity(n: number): Matrix {
    return Matrix.of(n, n, (i, j) => (i === j ? 1 : 0));
  }

  at(i: number, j: number): number {
    return this.data[i * this.cols + j] as number;
  }

  times(other: Matrix): Matrix {
    const { rows, cols } = this;
    return Matrix.of(rows, other.cols, (i, j) => {
      let sum = 0;
      for (let k = 0; k < cols; k++) sum += this.at(i, k) * other.at(k, j);
      return sum;
    });
  }

  transposed(): Matrix {
    return Matrix.of(this.cols, this.rows, (i, j) => this.at(j, i));
  }

  map(value: (v: number, i: number, j: number) => number): Matrix {
    return Matrix.of(this.rows, this.cols, (i, j) => value(this.at(i, j), i, j));
  }

  plus(other: Matrix, scale = 1): Matrix {
    return this.map((v, i, j) => v + scale * other.at(i, j));
  }

  /** Diagonal on the left: row i times d[i]. */
  scaleRows(d: ArrayLike<number>): Matrix {
    return this.map((v, i) => v * (d[i] as number));
  }

  /** Diagonal on the right: column j times d[j]. */
  scaleCols(d: ArrayLike<number>): Matrix {
    return this.map((v, _, j) => v * (d[j] as number));
  }
}

/** A layer as the oracle sees it. */
export interface OracleLayer {
  readonly N: number;
  readonly K: number;
  /** [N, K], dequantised */
  readonly w: Matrix;
  /** [N] */
  readonly bias: Float64Array;
  /** Parameters and buffers as matrices; a vector is one row. */
  readonly p: Readonly<Record<string, Matrix>>;
  readonly indexes: Readonly<Record<string, Int32Array>>;
  // biome-ignore lint/suspicious/noExplicitAny: settings of any method
  readonly config: Readonly<Record<string, any>>;
}

/** What replaces the layer; or, of a layer that is not affine in x, what it adds to x·Wᵀ + bias. */
export type OracleMerged =
  | { readonly weight: Matrix; readonly bias?: Float64Array }
  | {
      readonly update: (x: Matrix, inputs: Readonly<Record<string, Matrix>>) => Matrix;
    };

export const scaling = ({ config }: OracleLayer): number =>
  config.loraAlpha / (config.rslora ? Math.sqrt(config.r) : config.r);

export type Formula = (layer: OracleLayer) => OracleMerged;

/** Tensors of the layer by name. */
export function parts<Names extends readonly string[]>(
  { p }: OracleLayer,
  ...names: Names
): { [I in keyof Names]: Matrix } {
  return names.map((name) => {
    const found = p[name];
    if (found === undefined) throw new Error(`no tensor ${name}`);
    return found;
  }) as { [I in keyof Names]: Matrix };
}
