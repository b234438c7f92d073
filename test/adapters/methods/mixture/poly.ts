import { Matrix, type OracleLayer, parts } from '../../../oracle/adapter-layer.js';
import { given, rows } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

/** Poly's mixed factors of one task, [K, r] and [r, N]. */
function polyFactors(layer: OracleLayer, task: (s: number) => number): { a: Matrix; b: Matrix } {
  const { N, K, config } = layer;
  const [loraA, loraB, logits] = parts(layer, 'loraA', 'loraB', 'logits');
  const { r, nTasks, nSkills, nSplits } = config;
  const weight = (q: number, s: number): number => {
    let sum = 0;
    for (let k = 0; k < nTasks; k++) {
      const open = (skill: number) => 1 / (1 + Math.exp(-logits.at(k, q * nSkills + skill)));
      let total = 0;
      for (let skill = 0; skill < nSkills; skill++) total += open(skill);
      sum += (task(k) * open(s)) / total;
    }
    return sum;
  };
  const [d, e] = [K / nSplits, N / nSplits];
  const a = Matrix.of(K, r, (k, j) => {
    const q = Math.floor(k / d);
    let sum = 0;
    for (let s = 0; s < nSkills; s++) {
      sum += weight(q, s) * (loraA.data[((q * nSkills + s) * d + (k % d)) * r + j] as number);
    }
    return sum;
  });
  const b = Matrix.of(r, N, (j, n) => {
    const q = Math.floor(n / e);
    let sum = 0;
    for (let s = 0; s < nSkills; s++) {
      sum += weight(q, s) * (loraB.data[((q * nSkills + s) * r + j) * e + (n % e)] as number);
    }
    return sum;
  });
  return { a, b };
}

export const tests: MethodTests = {
  formulas: {
    poly: (layer) => ({
      update: (x, inputs) => {
        const tasks = given(inputs, 'tasks');
        const out = Array.from({ length: x.rows }, (_, m) => {
          const { a, b } = polyFactors(layer, (k) => tasks.at(m, k));
          return rows(x, m, m + 1)
            .times(a)
            .times(b);
        });
        return Matrix.of(x.rows, layer.N, (m, n) => (out[m] as Matrix).at(0, n) / layer.config.r);
      },
    }),
  },
  cases: {
    poly: {
      settings: { r: 3, nTasks: 3, nSkills: 2, nSplits: 2 },
      inputs: { tasks: (M) => [M, 3] },
    },
  },
};
