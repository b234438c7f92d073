/** A layer of experts in float64: routing, gates, products expert by expert, the weighted sum. */
import { type Bounded, type Matrix, matmul64, matmulInputGrad64, matrix } from './linear.js';
import { type LoraInputs, loraBackward64, loraForward64, loraShrink64 } from './lora.js';

export interface Route64 {
  readonly order: readonly number[];
  readonly inverse: readonly number[];
  readonly offsets: readonly number[];
  readonly k: number;
  readonly E: number;
}

/** Pairs sorted by expert; those without one last. */
export function route64(chosen: readonly number[], k: number, E: number): Route64 {
  const order: number[] = [];
  const offsets: number[] = [];
  for (let e = 0; e <= E; e++) {
    offsets.push(order.length);
    chosen.forEach((expert, i) => {
      const dropped = expert < 0 || expert >= E;
      if (e < E ? expert === e : dropped) order.push(i);
    });
  }
  const inverse = new Array<number>(order.length);
  order.forEach((pair, slot) => {
    inverse[pair] = slot;
  });
  return { order, inverse, offsets, k, E };
}

const rowOf = (m: Matrix, row: number): Float64Array =>
  m.data.subarray(row * m.cols, (row + 1) * m.cols);

/** The chosen experts of each row, and the softmax of the row over what counts. */
export function select64(
  logits: Matrix,
  k: number,
  softmax: 'chosen' | 'all',
): { readonly chosen: number[]; readonly shares: Matrix; readonly gates: number[] } {
  const { rows, cols: E } = logits;
  const shares = matrix(rows, E);
  const [chosen, gates]: [number[], number[]] = [[], []];
  for (let m = 0; m < rows; m++) {
    const z = rowOf(logits, m);
    const by = Array.from(z, (_, e) => e).sort(
      (a, b) => (z[b] as number) - (z[a] as number) || a - b,
    );
    const own = by.slice(0, k);
    const among = softmax === 'all' ? by : own;
    const most = z[by[0] as number] as number;
    const sum = among.reduce((total, e) => total + Math.exp((z[e] as number) - most), 0);
    for (const e of among) shares.data[m * E + e] = Math.exp((z[e] as number) - most) / sum;
    chosen.push(...own);
    gates.push(...own.map((e) => shares.data[m * E + e] as number));
  }
  return { chosen, shares, gates };
}

/** The gradient by the logits, from the Jacobian of the softmax. */
export function selectGrad64(
  { shares, chosen }: { readonly shares: Matrix; readonly chosen: readonly number[] },
  dGates: Matrix,
): Bounded {
  const { rows, cols: E } = shares;
  const k = dGates.cols;
  const [value, p] = [matrix(rows, E), matrix(rows, E)];
  for (let m = 0; m < rows; m++) {
    const share = rowOf(shares, m);
    for (let e = 0; e < E; e++) {
      for (let j = 0; j < k; j++) {
        const c = chosen[m * k + j] as number;
        const slope = (share[c] as number) * ((c === e ? 1 : 0) - (share[e] as number));
        const term = (dGates.data[m * k + j] as number) * slope;
        value.data[m * E + e] = (value.data[m * E + e] as number) + term;
        const size = Math.abs(dGates.data[m * k + j] as number) * (share[e] as number);
        p.data[m * E + e] = (p.data[m * E + e] as number) + size;
      }
    }
  }
  return { value, p };
}

export interface Experts64 {
  /** [rows, K] if `gather`, else [slots, K] */
  readonly x: Matrix;
  /** [E · N, K] */
  readonly w: Matrix;
  /** [E, N] */
  readonly bias?: Matrix | undefined;
  readonly gather: boolean;
  readonly lora?:
    | {
        /** [E · r, K], or [r, K]; [E · N, r], or [N, r] */
        readonly a: Matrix;
        readonly b: Matrix;
        readonly r: number;
        readonly scaling: number;
      }
    | undefined;
}

const rowsOf = (m: Matrix, first: number, count: number): Matrix =>
  matrix(count, m.cols, m.data.slice(first * m.cols, (first + count) * m.cols));

function gatherRows(m: Matrix, rows: readonly number[]): Matrix {
  const out = matrix(rows.length, m.cols);
  rows.forEach((row, i) => {
    out.data.set(rowOf(m, row), i * m.cols);
  });
  return out;
}

/** What an expert computes with: its slots, its rows of x, its parts of the operands. */
function* parts({ order, offsets, k, E }: Route64, layer: Experts64) {
  const N = layer.w.rows / E;
  for (let e = 0; e < E; e++) {
    const [first, end] = [offsets[e] as number, offsets[e + 1] as number];
    const slots = Array.from({ length: end - first }, (_, i) => first + i);
    const rows = slots.map((s) => (layer.gather ? Math.floor((order[s] as number) / k) : s));
    const { lora } = layer;
    const own = (m: Matrix, count: number) => (m.rows === count ? m : rowsOf(m, e * count, count));
    const base = {
      x: gatherRows(layer.x, rows),
      w: rowsOf(layer.w, e * N, N),
      bias: layer.bias && rowsOf(layer.bias, e, 1),
    };
    const inputs: LoraInputs | undefined = lora && {
      ...base,
      loraA: own(lora.a, lora.r),
      loraB: own(lora.b, N),
      scaling: lora.scaling,
    };
    yield { e, slots, base, inputs, N };
  }
}

function put(into: Bounded, slots: readonly number[], part: Bounded): void {
  const cols = into.value.cols;
  slots.forEach((s, i) => {
    into.value.data.set(rowOf(part.value, i), s * cols);
    into.p.data.set(rowOf(part.p, i), s * cols);
  });
}
const nothing = (rows: number, cols: number): Bounded => ({
  value: matrix(rows, cols),
  p: matrix(rows, cols),
});

/** y and h; rows of dropped slots are 0. */
export function expertsMatmul64(
  route: Route64,
  layer: Experts64,
): { readonly y: Bounded; readonly h: Bounded } {
  const slots = route.order.length;
  const y = nothing(slots, layer.w.rows / route.E);
  const h = nothing(slots, layer.lora?.r ?? 0);
  for (const { slots: own, base, inputs } of parts(route, layer)) {
    put(y, own, inputs ? loraForward64(inputs) : matmul64(base.x, base.w, base.bias));
    if (inputs !== undefined) put(h, own, loraShrink64(inputs));
  }
  return { y, h };
}

/** dx by slot, and the gradients of the factors. */
export function expertsBackward64(route: Route64, layer: Experts64, dy: Matrix) {
  const dx = nothing(route.order.length, layer.w.cols);
  const { lora } = layer;
  const dLoraA = nothing(lora?.a.rows ?? 0, lora?.a.cols ?? 0);
  const dLoraB = nothing(lora?.b.rows ?? 0, lora?.b.cols ?? 0);
  const addAt = (into: Bounded, expert: number, count: number, part: Bounded) => {
    const first = into.value.rows === count ? 0 : expert * count * into.value.cols;
    part.value.data.forEach((value, i) => {
      into.value.data[first + i] = (into.value.data[first + i] as number) + value;
      into.p.data[first + i] = (into.p.data[first + i] as number) + (part.p.data[i] as number);
    });
  };
  for (const { e, slots, base, inputs, N } of parts(route, layer)) {
    const own = gatherRows(dy, slots);
    if (inputs === undefined || lora === undefined) {
      put(dx, slots, matmulInputGrad64(own, base.w));
      continue;
    }
    const found = loraBackward64(inputs, own);
    put(dx, slots, found.dx);
    addAt(dLoraA, e, lora.r, found.dLoraA);
    addAt(dLoraB, e, N, found.dLoraB);
  }
  return { dx, dLoraA, dLoraB };
}

/** Σⱼ gates · y over the slots of each row that are not dropped. */
export function combine64(
  { inverse, offsets, k, E }: Route64,
  y: Bounded,
  gates?: Matrix,
): Bounded {
  const N = y.value.cols;
  const rows = inverse.length / k;
  const out = nothing(rows, N);
  inverse.forEach((slot, pair) => {
    if (slot >= (offsets[E] as number)) return;
    const gate = gates === undefined ? 1 : (gates.data[pair] as number);
    const m = Math.floor(pair / k);
    for (let n = 0; n < N; n++) {
      const at = m * N + n;
      out.value.data[at] =
        (out.value.data[at] as number) + gate * (y.value.data[slot * N + n] as number);
      out.p.data[at] =
        (out.p.data[at] as number) + Math.abs(gate) * (y.p.data[slot * N + n] as number);
    }
  });
  return out;
}

/** Gradients of {@link combine64} by y and by the gates. */
export function combineGrad64(
  { inverse, offsets, k, E }: Route64,
  dOut: Matrix,
  y: Matrix,
  gates?: Matrix,
): { readonly dy: Bounded; readonly dGates: Bounded } {
  const N = dOut.cols;
  const dy = nothing(inverse.length, N);
  const dGates = nothing(inverse.length / k, k);
  inverse.forEach((slot, pair) => {
    if (slot >= (offsets[E] as number)) return;
    const gate = gates === undefined ? 1 : (gates.data[pair] as number);
    const from = rowOf(dOut, Math.floor(pair / k));
    const own = rowOf(y, slot);
    from.forEach((d, n) => {
      dy.value.data[slot * N + n] = gate * d;
      dy.p.data[slot * N + n] = Math.abs(gate * d);
      const term = d * (own[n] as number);
      dGates.value.data[pair] = (dGates.value.data[pair] as number) + term;
      dGates.p.data[pair] = (dGates.p.data[pair] as number) + Math.abs(term);
    });
  });
  return { dy, dGates };
}
