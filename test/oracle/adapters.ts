/**
 * Every adapter method once more, by its published formula in float64: the weight (and bias) that
 * replace the layer. Written from the papers' matrices, not from the library's steps.
 */

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

/** What replaces the layer. */
export interface OracleMerged {
  readonly weight: Matrix;
  readonly bias?: Float64Array;
}

const scaling = ({ config }: OracleLayer): number =>
  config.loraAlpha / (config.rslora ? Math.sqrt(config.r) : config.r);

type Formula = (layer: OracleLayer) => OracleMerged;

/** Tensors of the layer by name. */
function parts<Names extends readonly string[]>(
  { p }: OracleLayer,
  ...names: Names
): { [I in keyof Names]: Matrix } {
  return names.map((name) => {
    const found = p[name];
    if (found === undefined) throw new Error(`no tensor ${name}`);
    return found;
  }) as { [I in keyof Names]: Matrix };
}

/** W + scale · left · right */
const lowRank = ({ w }: OracleLayer, left: Matrix, right: Matrix, scale: number) => ({
  weight: w.plus(left.times(right), scale),
});

export const adapterOracle: Readonly<Record<string, Formula>> = {
  lora: (layer) => {
    const [a, b] = parts(layer, 'loraA', 'loraB');
    return lowRank(layer, b, a, scaling(layer));
  },
  kasa: (layer) => {
    const [a, b, diag] = parts(layer, 'loraA', 'loraB', 'diag');
    return lowRank(layer, b.scaleCols(diag.data), a, scaling(layer));
  },
  adalora: (layer) => {
    const [a, b, e] = parts(layer, 'loraA', 'loraB', 'loraE');
    return lowRank(layer, b.scaleCols(e.data), a, layer.config.loraAlpha / (layer.config.r + 1e-5));
  },
  vera: (layer) => {
    const [a, b, lambdaB, lambdaD] = parts(layer, 'veraA', 'veraB', 'lambdaB', 'lambdaD');
    return lowRank(layer, b.scaleRows(lambdaB.data).scaleCols(lambdaD.data), a, 1);
  },
  ia3: (layer) => {
    const [scale] = parts(layer, 'scale');
    const bias = layer.bias.map((v, i) => v * (scale.data[i] as number));
    return { weight: layer.w.scaleRows(scale.data), bias };
  },
  'ia3-input': (layer) => ({ weight: layer.w.scaleCols(parts(layer, 'scale')[0].data) }),
};
