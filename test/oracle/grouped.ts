/** A batch whose rows have different adapters, in float64: each entry as a batch of one. */
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
  /** For each slot of each row the place of its adapter, or -1. */
  readonly adapterOf: readonly number[];
  /** Of a row; default 1. */
  readonly slots?: number | undefined;
  /** [M, slots] */
  readonly rowScale?: ArrayLike<number> | undefined;
}

export interface GroupedGradients64 {
  readonly dx: Bounded;
  readonly dBias: Bounded;
  /** [1, M · slots]: 0 where a slot has no adapter. */
  readonly dRowScale: Bounded;
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

/** What is in a slot of a row, as a layer of its own over a weight of zeros. */
interface Entry {
  readonly slot: number;
  readonly place: number;
  readonly layer: LoraInputs;
  /** Without the gate. */
  readonly plain: LoraInputs;
}

function entriesOf(inputs: GroupedInputs, m: number): Entry[] {
  const { slots = 1, adapterOf, adapters, rowScale } = inputs;
  const w = zeros(inputs.w.rows, inputs.w.cols).value;
  const entries: Entry[] = [];
  for (let slot = m * slots; slot < (m + 1) * slots; slot++) {
    const place = adapterOf[slot] as number;
    const adapter = adapters[place];
    if (adapter === undefined) continue;
    const { gate } = adapter;
    const x = rowOf(inputs.x, m);
    const plain = { ...adapter, x, w, gate: gate === undefined ? undefined : rowOf(gate, m) };
    const layer = { ...plain, scaling: adapter.scaling * (rowScale?.[slot] ?? 1) };
    entries.push({ slot, place, layer, plain });
  }
  return entries;
}

/** Σ dy · term */
function dotOf(dy: Matrix, term: Bounded): Bounded {
  let value = 0;
  let p = 0;
  dy.data.forEach((v, n) => {
    value += v * (term.value.data[n] as number);
    p += Math.abs(v) * (term.p.data[n] as number);
  });
  return { value: matrix(1, 1, [value]), p: matrix(1, 1, [p]) };
}

/** y of every row. */
export function groupedForward64(inputs: GroupedInputs): Bounded {
  const N = inputs.w.rows;
  const y = zeros(inputs.x.rows, N);
  for (let m = 0; m < inputs.x.rows; m++) {
    addAt(y, matmul64(rowOf(inputs.x, m), inputs.w, inputs.bias), m * N);
    for (const { layer } of entriesOf(inputs, m)) addAt(y, loraForward64(layer), m * N);
  }
  return y;
}

/** All gradients of Σ y ⊙ dy. */
export function groupedBackward64(inputs: GroupedInputs, dy: Matrix): GroupedGradients64 {
  const K = inputs.w.cols;
  const N = inputs.w.rows;
  const dx = zeros(inputs.x.rows, K);
  const dBias = zeros(1, N);
  const dRowScale = zeros(1, inputs.adapterOf.length);
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
    addAt(dx, matmulInputGrad64(dyRow, inputs.w), m * K);
    for (const { slot, place, layer, plain } of entriesOf(inputs, m)) {
      const gradients = loraBackward64(layer, dyRow);
      addAt(dx, gradients.dx, m * K);
      const sum = sums[place];
      for (const part of ['dLoraA', 'dLoraB', 'dLoraBias'] as const) {
        if (sum !== undefined) addAt(sum[part], gradients[part], 0);
      }
      addAt(dRowScale, dotOf(dyRow, loraForward64(plain)), slot);
    }
  }
  return { dx, dBias, dRowScale, adapters: sums };
}
