/** The experts of a block in float64, row by row and expert by expert, with their gradient written by hand. */
import type { DecoderConfig, DecoderPlaces, LinearPlace } from '../../../lib/index.js';
import { gated, linear } from './layers.js';
import { add, type Matrix, matrix, type Step } from './matrix.js';

type Layer = DecoderConfig['layers'][number];
type Places = NonNullable<DecoderPlaces['layers'][number]['experts']>;
type Stored = Places['gateUp'];

interface Means {
  readonly apply: (x: Matrix, place: LinearPlace) => Step;
  readonly tensor: (name: string) => Float64Array;
}

/** The weight [N, K] of one expert and its bias. */
function expert({ stored, bias, N, K }: Stored, e: number, tensor: Means['tensor']) {
  const w = matrix(N, K);
  if (stored.form === 'each') {
    let at = 0;
    for (const { name } of stored.parts[e] ?? []) {
      const part = tensor(name);
      w.values.set(part, at);
      at += part.length;
    }
  } else {
    const all = tensor(stored.tensor.name);
    for (let n = 0; n < N; n++) {
      for (let k = 0; k < K; k++) {
        const at = e * N * K + (stored.transposed ? k * N + n : n * K + k);
        w.values[n * K + k] = all[at] as number;
      }
    }
  }
  return { w, bias: bias && tensor(bias.name).slice(e * N, (e + 1) * N) };
}

const row = (m: Matrix, i: number): Matrix =>
  matrix(1, m.cols, m.values.slice(i * m.cols, (i + 1) * m.cols));

/** Σ over the chosen experts of gate · down(act(gateUp(x))), where the gates are a softmax over the chosen logits. */
export function expertsBlock(x: Matrix, layer: Layer, places: Places, means: Means): Step {
  const { intermediateSize: inner, gate: kind, experts } = layer.mlp;
  if (experts === undefined) throw new Error('no experts');
  const logits = means.apply(x, places.router);
  const y = matrix(x.rows, x.cols);
  const backs: ((dy: Matrix, dx: Matrix, dLogits: Matrix) => void)[] = [];
  for (let m = 0; m < x.rows; m++) {
    const z = row(logits.y, m).values;
    const order = Array.from(z.keys()).sort((a, b) => (z[b] as number) - (z[a] as number));
    const chosen = order.slice(0, experts.perToken);
    const among = experts.softmax === 'all' ? order : chosen;
    const most = Math.max(...z);
    const total = among.reduce((sum, e) => sum + Math.exp((z[e] as number) - most), 0);
    const share = (e: number) => Math.exp((z[e] as number) - most) / total;
    const given = chosen.map((e) => {
      const nothing = () => {};
      const both = linear(row(x, m), expert(places.gateUp, e, means.tensor), nothing);
      const pick = (which: 0 | 1) =>
        Array.from({ length: inner }, (_, i) =>
          experts.gateUp === 'turns' ? 2 * i + which : which * inner + i,
        );
      const part = (which: 0 | 1) =>
        matrix(
          1,
          inner,
          Float64Array.from(pick(which), (at) => both.y.values[at] as number),
        );
      const act = gated(part(0), part(1), kind);
      const out = linear(act.y, expert(places.down, e, means.tensor), nothing);
      const back = (dy: Matrix): Matrix => {
        const [da, db] = act.back(out.back(dy));
        const d = matrix(1, 2 * inner);
        for (const [which, from] of [da, db].entries()) {
          pick(which as 0 | 1).forEach((at, i) => {
            d.values[at] = from.values[i] as number;
          });
        }
        return both.back(d);
      };
      return { e, y: out.y, back };
    });
    for (const each of given) {
      each.y.values.forEach((value, i) => {
        const at = m * y.cols + i;
        y.values[at] = (y.values[at] as number) + share(each.e) * value;
      });
    }
    backs.push((dy, dx, dLogits) => {
      const own = row(dy, m);
      const dot = given.map((each) =>
        each.y.values.reduce((sum, value, i) => sum + value * (own.values[i] as number), 0),
      );
      const mean = given.reduce((sum, { e }, j) => sum + share(e) * (dot[j] as number), 0);
      for (const e of among) {
        const j = given.findIndex((each) => each.e === e);
        const d = j < 0 ? 0 : (dot[j] as number);
        dLogits.values[m * dLogits.cols + e] = share(e) * (d - mean);
      }
      for (const each of given) {
        const scaled = matrix(
          1,
          own.cols,
          own.values.map((v) => v * share(each.e)),
        );
        each.back(scaled).values.forEach((value, i) => {
          const at = m * dx.cols + i;
          dx.values[at] = (dx.values[at] as number) + value;
        });
      }
    });
  }
  return {
    y,
    back: (dy) => {
      const [dx, dLogits] = [matrix(x.rows, x.cols), matrix(logits.y.rows, logits.y.cols)];
      for (const back of backs) back(dy, dx, dLogits);
      return add(dx, logits.back(dLogits));
    },
  };
}
