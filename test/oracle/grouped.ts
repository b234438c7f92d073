/** A batch whose rows have different adapters, in float64: row by row as a batch of one. */
import { type Bounded, type Matrix, matmul64, matmulInputGrad64, matrix } from './linear.js';
import { type LoraInputs, loraBackward64, loraForward64 } from './lora.js';

export interface GroupedAdapter64 {
  readonly loraA: Matrix;
  readonly loraB: Matrix;
  readonly loraBias?: Matrix | undefined;
  readonly scaling: number;
  /** [M, K] over all rows of the batch. */
  readonly gate?: Matrix | undefined;
}

export interface GroupedInputs {
  readonly x: Matrix; // [M, K]
  readonly w: Matrix; // [N, K]
  readonly bias?: Matrix | undefined; // [1, N]
  readonly adapters: readonly GroupedAdapter64[];
  /** For each row the place of its adapter, or -1. */
  readonly adapterOf: readonly number[];
  /** [M] */
  readonly rowScale?: ArrayLike<number> | undefined;
}

export interface GroupedGradients64 {
  readonly dx: Bounded;
  readonly dBias: Bounded;
  /** Of an adapter without rows: undefined. */
  readonly adapters: ReadonlyArray<
    { dLoraA: Bounded; dLoraB: Bounded; dLoraBias: Bounded } | undefined
  >;
}

const rowOf = (all: Matrix, m: number): Matrix =>
  matrix(1, all.cols, all.data.slice(m * all.cols, (m + 1) * all.cols));

const zeros = (rows: number, cols: number): Bounded => ({
  value: matrix(rows, cols, new Float64Array(rows * cols)),
  p: matrix(rows, cols, new Float64Array(rows * cols)),
});

/** `part` added to `whole` from element `at` on. */
function addAt(whole: Bounded, part: Bounded, at: number): void {
  for (const key of ['value', 'p'] as const) {
    const target = whole[key].data as Float64Array;
    part[key].data.forEach((v, i) => {
      target[at + i] = (target[at + i] as number) + v;
    });
  }
}

/** One row with its adapter as a layer of its own. */
function rowInputs(inputs: GroupedInputs, m: number): LoraInputs | undefined {
  const adapter = inputs.adapters[inputs.adapterOf[m] as number];
  if (adapter === undefined) return undefined;
  const { gate, scaling } = adapter;
  return {
    ...adapter,
    x: rowOf(inputs.x, m),
    w: inputs.w,
    bias: inputs.bias,
    scaling: scaling * (inputs.rowScale?.[m] ?? 1),
    gate: gate === undefined ? undefined : rowOf(gate, m),
  };
}

/** y of every row. */
export function groupedForward64(inputs: GroupedInputs): Bounded {
  const N = inputs.w.rows;
  const y = zeros(inputs.x.rows, N);
  for (let m = 0; m < inputs.x.rows; m++) {
    const row = rowInputs(inputs, m);
    const base = (): Bounded => matmul64(rowOf(inputs.x, m), inputs.w, inputs.bias);
    addAt(y, row === undefined ? base() : loraForward64(row), m * N);
  }
  return y;
}

/** All gradients of Σ y ⊙ dy. */
export function groupedBackward64(inputs: GroupedInputs, dy: Matrix): GroupedGradients64 {
  const K = inputs.w.cols;
  const N = inputs.w.rows;
  const dx = zeros(inputs.x.rows, K);
  const dBias = zeros(1, N);
  const sums = inputs.adapters.map(({ loraA, loraB }, e) =>
    inputs.adapterOf.includes(e)
      ? {
          dLoraA: zeros(loraA.rows, loraA.cols),
          dLoraB: zeros(loraB.rows, loraB.cols),
          dLoraBias: zeros(1, N),
        }
      : undefined,
  );
  for (let m = 0; m < inputs.x.rows; m++) {
    const dyRow = rowOf(dy, m);
    addAt(dBias, { value: dyRow, p: matrix(1, N, dyRow.data.map(Math.abs)) }, 0);
    const row = rowInputs(inputs, m);
    if (row === undefined) {
      addAt(dx, matmulInputGrad64(dyRow, inputs.w), m * K);
      continue;
    }
    const gradients = loraBackward64(row, dyRow);
    addAt(dx, gradients.dx, m * K);
    const sum = sums[inputs.adapterOf[m] as number];
    for (const part of ['dLoraA', 'dLoraB', 'dLoraBias'] as const) {
      if (sum !== undefined) addAt(sum[part], gradients[part], 0);
    }
  }
  return { dx, dBias, adapters: sums };
}
