/** The published formulas of the methods whose update is a function of the weight, or dense. */
import { type Formula, type Matrix, parts } from './adapter-layer.js';

const hadamard = (a: Matrix, b: Matrix): Matrix => a.map((v, i, j) => v * b.at(i, j));

const ACTIVATIONS: Readonly<Record<string, (v: number) => number>> = {
  relu: (v) => Math.max(v, 0),
  tanh: Math.tanh,
  sigmoid: (v) => 1 / (1 + Math.exp(-v)),
};

export const denseOracle: Readonly<Record<string, Formula>> = {
  deft: (layer) => {
    const [p, inject] = parts(layer, 'p', 'inject');
    const taken = p
      .map((v) => Math.max(v, 0))
      .transposed()
      .times(layer.w);
    const put = inject.map((v) => v * layer.config.scaling);
    return { weight: layer.w.plus(p.times(put.plus(taken, -1))) };
  },
  glora: (layer) => {
    const { w, N, config } = layer;
    const [aD, aU, bD, bU, cD, cU] = parts(layer, 'aD', 'aU', 'bD', 'bU', 'cD', 'cU');
    const [d, e] = parts(layer, 'd', 'e');
    const weight = w.plus(hadamard(w, aD.times(aU))).plus(bD.times(bU));
    const shift = w.times(cD.times(cU));
    const at = (m: Matrix, n: number): number => m.data[config.vectors ? n : 0] as number;
    const bias = Float64Array.from({ length: N }, (_, n) => {
      const b = layer.bias[n] as number;
      return b + b * at(d, n) + at(e, n) + shift.at(n, 0);
    });
    return { weight, bias };
  },
  hira: (layer) => {
    const [a, b] = parts(layer, 'hiraA', 'hiraB');
    return { weight: layer.w.plus(hadamard(layer.w, b.times(a))) };
  },
  loha: (layer) => {
    const [a1, b1, a2, b2] = parts(layer, 'w1A', 'w1B', 'w2A', 'w2B');
    const { loraAlpha, r } = layer.config;
    return { weight: layer.w.plus(hadamard(a1.times(b1), a2.times(b2)), loraAlpha / r) };
  },
  peanut: (layer) => {
    const [a, b] = parts(layer, 'a', 'b');
    const hidden = layer.w.transposed().times(a.transposed());
    const f = ACTIVATIONS[layer.config.activation as string] as (v: number) => number;
    const update = hidden.map(f).times(b.transposed()).transposed();
    return { weight: layer.w.plus(update, layer.config.scaling) };
  },
};
