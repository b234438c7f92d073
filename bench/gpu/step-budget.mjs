/**
 * The paper's time of a whole training step on an H100 SXM, for docs/gpu-design.md: a model of 8 B parameters, QLoRA with
 * r = 16 on all linear layers, one sequence of 8,192 tokens in bf16. Products by the formulas of budget-model.mjs, other
 * parts as the page derives them.
 */
import { flopsOf } from './cases.mjs';

const M = 8192;
const kLayers = 32;
const [hidden, narrow, inner] = [4096, 1024, 14336];

/** Linear layers of a block: how many, [N, K]. */
const kLinears = [
  { name: 'q and o', count: 2, N: hidden, K: hidden },
  { name: 'k and v', count: 2, N: narrow, K: hidden },
  { name: 'gate and up', count: 2, N: inner, K: hidden },
  { name: 'down', count: 1, N: hidden, K: inner },
];

const rowsOf = (op) =>
  kLinears.map(({ N, K }) => ({
    id: 'S8',
    op,
    M,
    N,
    K,
    r: 16,
    dropout: 0,
    format: 'nf4',
    doubleQuant: true,
    factors: 'f32',
  }));

/** Rows for the plans to be asked for. */
export const kStepRows = ['loraForward', 'loraBackward'].flatMap(rowsOf);

/** Of a block, from the sections "Attention on paper" and "Around the linear layers", in us. */
const kBlockParts = [
  { name: 'attention, with its rotation', forward: 1391, backward: 7243 },
  { name: 'two norms with the residual stream', forward: 182, backward: 182 },
  // Reads gate and up, writes one row; backward reads them and dy and writes two: bytes at the memory's rate.
  {
    name: 'gate ⊙ up',
    forward: (3 * 2 * M * inner) / 3.0e6,
    backward: (5 * 2 * M * inner) / 3.0e6,
  },
];
/** Of a step, in ms. */
const kStepParts = [
  { name: 'embedding', ms: 0.05 },
  { name: 'head and loss', ms: 42 },
  // 42 M parameters: p, m and v read and written, g read, and a pass for the norm.
  { name: 'norm of the gradients and optimiser', ms: (42e6 * 4 * 8) / 3.0e9 },
];

const ms = (value) => (value < 10 ? value.toFixed(1) : value.toFixed(0));

/** @param usOf the paper's time of a row, in us */
export function stepTable(usOf) {
  const linears = kLinears.map(({ name, count }, i) => ({
    name: `linear layers ${name}`,
    forward: count * usOf(rowsOf('loraForward')[i]),
    backward: count * usOf(rowsOf('loraBackward')[i]),
  }));
  const parts = [...linears, ...kBlockParts];
  const rows = parts.map(({ name, forward, backward }) => {
    const [f, b] = [forward, backward].map((us) => (us * kLayers) / 1000);
    return { name, forward: f, backward: b, all: f + b };
  });
  const others = kStepParts.map(({ name, ms: all }) => ({ name, all }));
  const sum = (key) => rows.reduce((total, row) => total + row[key], 0);
  const once = others.reduce((total, { all }) => total + all, 0);
  const whole = sum('all') + once;
  const flops = kStepRows.reduce(
    (total, row, i) => total + kLinears[i % kLinears.length].count * flopsOf(row),
    0,
  );
  const lines = [...rows, ...others].map(
    ({ name, forward, backward, all }) =>
      `| ${name} | ${forward === undefined ? '' : ms(forward)} | ${backward === undefined ? '' : ms(backward)} | ${ms(all)} | ${((100 * all) / whole).toFixed(0)} % |`,
  );
  return [
    '| part, 32 blocks | forward, ms | backward | both | share |',
    '| --- | --- | --- | --- | --- |',
    ...lines,
    `| all | ${ms(sum('forward'))} | ${ms(sum('backward'))} | ${ms(whole)} | ${((1000 * M) / whole).toFixed(0)} tokens a second |`,
    `| all blocks forward once more, with \`recompute\` | ${ms(sum('forward'))} | | ${ms(whole + sum('forward'))} | ${((1000 * M) / (whole + sum('forward'))).toFixed(0)} tokens a second |`,
    '',
    `The linear layers alone need ${ms((kLayers * flops) / 798e9)} ms at the 798 TFLOP/s that cuBLAS reaches.`,
  ].join('\n');
}
