/**
 * Every adapter method once more, by its published formula in float64: the weight (and bias) that
 * replace the layer. Written from the papers' matrices, not from the library's steps.
 */

import {
  type Formula,
  Matrix,
  type OracleLayer,
  type OracleMerged,
  parts,
  scaling,
} from './adapter-layer.js';
import { denseOracle } from './adapters-dense.js';
import { routedOracle } from './adapters-routed.js';
import { structuredOracle } from './adapters-structured.js';

export { Matrix, type OracleMerged } from './adapter-layer.js';

/** W + scale · left · right */
const lowRank = ({ w }: OracleLayer, left: Matrix, right: Matrix, scale: number) => ({
  weight: w.plus(left.times(right), scale),
});

/** (x · aᵀ) · bᵀ, times a scale. */
const through = (x: Matrix, a: Matrix, b: Matrix, scale: number): Matrix =>
  x
    .times(a.transposed())
    .times(b.transposed())
    .map((v) => scale * v);

const given = (inputs: Readonly<Record<string, Matrix>>, name: string): Matrix => {
  const found = inputs[name];
  if (found === undefined) throw new Error(`no input ${name}`);
  return found;
};

const norms = (rows: Matrix): Float64Array =>
  Float64Array.from({ length: rows.rows }, (_, i) => {
    let sum = 0;
    for (let j = 0; j < rows.cols; j++) sum += rows.at(i, j) ** 2;
    return Math.sqrt(sum);
  });

/** RandLoRA's sum over the flattened bases, larger side first. */
function randLora(layer: OracleLayer): OracleMerged {
  const { N, K, w, config } = layer;
  const [lambda, gamma, left, right] = parts(layer, 'lambda', 'gamma', 'left', 'right');
  const bases = gamma.rows;
  const { r } = config;
  const small = Math.min(N, K);
  const update = (large: number, col: number): number => {
    let sum = 0;
    for (let i = 0; i < r * bases; i++) {
      const k = Math.floor(i / bases);
      const b = i % bases;
      const fixed = right.data[large * bases * r + i] as number;
      const moved = lambda.at(k, b) * (left.data[k * small + col] as number) * gamma.at(b, col);
      sum += fixed * moved;
    }
    return (sum * config.loraAlpha) / r;
  };
  return { weight: w.map((v, n, k) => v + (N >= K ? update(n, k) : update(k, n))) };
}

const plainOracle: Readonly<Record<string, Formula>> = {
  flora: (layer) => {
    const [a, b] = parts(layer, 'a', 'b');
    const product = a.transposed().times(b);
    return { weight: layer.w.map((v, n, k) => v * product.at(n, k)) };
  },
  'l-lora': (layer) => {
    const [a0, b0, deltaA, deltaB] = parts(layer, 'a0', 'b0', 'deltaA', 'deltaB');
    const update = b0.times(a0).plus(deltaB.times(a0)).plus(b0.times(deltaA));
    return { weight: layer.w.plus(update, scaling(layer)) };
  },
  'layered-lora': (layer) => {
    const [a, b, pastA, pastB] = parts(layer, 'loraA', 'loraB', 'pastA', 'pastB');
    const { r, loraAlpha } = layer.config;
    return { weight: layer.w.plus(pastB.times(pastA)).plus(b.times(a), loraAlpha / r) };
  },
  salora: (layer) => {
    const [a, b, logAlpha] = parts(layer, 'loraA', 'loraB', 'logAlpha');
    const gate = logAlpha.data.map((v) => {
      const stretched = 1.2 / (1 + Math.exp(-v)) - 0.1;
      return Math.min(1, Math.max(0, stretched));
    });
    return lowRank(layer, b.scaleCols(gate), a, scaling(layer));
  },
  adalora: (layer) => {
    const [a, b, e] = parts(layer, 'loraA', 'loraB', 'loraE');
    return lowRank(layer, b.scaleCols(e.data), a, layer.config.loraAlpha / (layer.config.r + 1e-5));
  },
  alora: (layer) => {
    const [a, b] = parts(layer, 'loraA', 'loraB');
    return {
      update: (x, inputs) =>
        through(x, a, b, scaling(layer)).scaleRows(given(inputs, 'active').data),
    };
  },
  'lora-dropout': (layer) => {
    const [a, b] = parts(layer, 'loraA', 'loraB');
    return lowRank(layer, b, a, scaling(layer));
  },
  'reslora-input': (layer) => {
    const [a, b] = parts(layer, 'loraA', 'loraB');
    return {
      update: (x, inputs) => through(x.plus(given(inputs, 'previous')), a, b, scaling(layer)),
    };
  },
  'reslora-middle': (layer) => {
    const [a, b] = parts(layer, 'loraA', 'loraB');
    return {
      update: (x, inputs) =>
        x
          .times(a.transposed())
          .plus(given(inputs, 'middle'))
          .times(b.transposed())
          .map((v) => scaling(layer) * v),
    };
  },
  sibo: (layer) => {
    const [a, b] = parts(layer, 'loraA', 'loraB');
    const { lambda } = layer.config;
    return {
      update: (x, inputs) =>
        through(
          x.map((v) => (1 - lambda) * v).plus(given(inputs, 'initial'), lambda),
          a,
          b,
          scaling(layer),
        ),
    };
  },
  aflora: (layer) => {
    const [a, b, d, out] = parts(layer, 'loraA', 'loraB', 'd', 'b');
    return lowRank(layer, b.scaleRows(out.data).scaleCols(d.data), a, 1);
  },
  beft: (layer) => ({
    weight: layer.w,
    bias: layer.bias.map((v, i) => v + (parts(layer, 'delta')[0].data[i] as number)),
  }),
  delora: (layer) => {
    const [a, b, lambda, wNorm] = parts(layer, 'loraA', 'loraB', 'lambda', 'wNorm');
    const [rows, cols] = [norms(a), norms(b.transposed())];
    const strength = rows.map(
      (norm, i) => lambda.at(0, 0) / (layer.config.r * norm * (cols[i] as number)),
    );
    return lowRank(layer, b.scaleCols(strength), a.scaleCols(wNorm.data), 1);
  },
  dora: (layer) => {
    const [a, b, magnitude] = parts(layer, 'loraA', 'loraB', 'magnitude');
    const { weight } = lowRank(layer, b, a, scaling(layer));
    const size = norms(weight);
    return { weight: weight.scaleRows(size.map((v, i) => (magnitude.data[i] as number) / v)) };
  },
  ia3: (layer) => {
    const [scale] = parts(layer, 'scale');
    const bias = layer.bias.map((v, i) => v * (scale.data[i] as number));
    return { weight: layer.w.scaleRows(scale.data), bias };
  },
  'ia3-input': (layer) => {
    const [scale] = parts(layer, 'scale');
    const taps = layer.K / scale.data.length;
    return { weight: layer.w.map((v, _, k) => v * (scale.data[Math.floor(k / taps)] as number)) };
  },
  kasa: (layer) => {
    const [a, b, diag] = parts(layer, 'loraA', 'loraB', 'diag');
    const [tailA, tailB] = parts(layer, 'tailA', 'tailB');
    const { weight } = lowRank(layer, b.scaleCols(diag.data), a, scaling(layer));
    return { weight: weight.plus(tailB.times(tailA), -1) };
  },
  lora: (layer) => {
    const [a, b] = parts(layer, 'loraA', 'loraB');
    const { groups, r } = layer.config;
    const own = (n: number) => Math.floor((n * groups) / layer.N);
    const whole = Matrix.of(layer.N, r, (n, i) =>
      own(n) === Math.floor((i * groups) / r) ? b.at(n, i % (r / groups)) : 0,
    );
    const { weight } = lowRank(layer, whole, a, scaling(layer));
    const extra = layer.p.loraBias?.data;
    if (extra === undefined) return { weight };
    return { weight, bias: layer.bias.map((v, n) => v + scaling(layer) * (extra[n] as number)) };
  },
  // Without a seed: the mean of its draws.
  monteclora: (layer) => {
    const [a, b] = parts(layer, 'loraA', 'loraB');
    return lowRank(layer, b, a, scaling(layer));
  },
  'lora-fa': (layer) => {
    const [a, b] = parts(layer, 'loraA', 'loraB');
    return lowRank(layer, b, a, scaling(layer));
  },
  'lora-xs': (layer) => {
    const [a, b, core] = parts(layer, 'loraA', 'loraB', 'core');
    return lowRank(layer, b.times(core), a, scaling(layer));
  },
  lotr: (layer) => {
    const [v, core, u] = parts(layer, 'v', 'core', 'u');
    return lowRank(layer, u.times(core), v, layer.config.scale / layer.config.r);
  },
  moslora: (layer) => {
    const [a, b, mixer] = parts(layer, 'loraA', 'loraB', 'mixer');
    return lowRank(layer, b.times(mixer), a, scaling(layer));
  },
  'private-lora': (layer) => {
    const [a, b, m] = parts(layer, 'a', 'b', 'm');
    return lowRank(layer, b.times(m), a, 1);
  },
  randlora: randLora,
  sora: (layer) => {
    const [a, b, gate] = parts(layer, 'loraA', 'loraB', 'gate');
    return lowRank(layer, b.scaleCols(gate.data), a, scaling(layer));
  },
  'tied-lora': (layer) => {
    const [a, b, u, v] = parts(layer, 'a', 'b', 'u', 'v');
    return lowRank(layer, b.scaleRows(v.data).scaleCols(u.data), a, 1);
  },
  tinylora: (layer) => {
    const [a, b, v, projection] = parts(layer, 'loraA', 'loraB', 'v', 'projection');
    const { r, u } = layer.config;
    const core = Matrix.of(r, r, (i, j) => {
      let sum = 0;
      for (let k = 0; k < u; k++) {
        sum += (v.data[k] as number) * (projection.data[(k * r + i) * r + j] as number);
      }
      return sum;
    });
    return lowRank(layer, b.times(core), a, 1);
  },
  vera: (layer) => {
    const [a, b, lambdaB, lambdaD] = parts(layer, 'veraA', 'veraB', 'lambdaB', 'lambdaD');
    return lowRank(layer, b.scaleRows(lambdaB.data).scaleCols(lambdaD.data), a, 1);
  },
};

/** The formula of every method, by its name. */
export const adapterOracle: Readonly<Record<string, Formula>> = {
  ...plainOracle,
  ...structuredOracle,
  ...routedOracle,
  ...denseOracle,
};
