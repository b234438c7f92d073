/**
 * The operations that `npm run gpu:bench` times, what they must move and compute, and the goals that
 * this library has set itself on an H100 SXM (microseconds; graph replay, cold L2, random data).
 */

/** @typedef {{ id: string, op: string, M: number, N: number, K: number, r: number, dropout: number,
 *   format: string, doubleQuant: boolean, floor?: number, goal?: number, stretch?: number }} Row */

/** @returns {Row} */
function row(id, op, [M, N, K], [floor, goal, stretch] = [], more = {}) {
  const base = { id, op, M, N, K, r: 0, dropout: 0, format: 'nf4', doubleQuant: true };
  return { ...base, floor, goal, stretch, ...more };
}

const lora = { r: 16 };
const loraDropout = { r: 16, dropout: 0.1 };
/** With f32 scales, as bitsandbytes has them without double quantisation. */
const singly = { doubleQuant: false };
const bytes = { format: 'int8', doubleQuant: false };

/** @type {readonly Row[]} */
export const kRows = [
  row('G1', 'matmul', [1, 4096, 4096], [2.89, 5.0, 4.2]),
  row('G2', 'matmul', [1, 14336, 4096], [10.1, 12.0, 11.2]),
  row('G2', 'matmul', [1, 8192, 8192], [11.6, 13.6, 12.8]),
  row('G3', 'matmul', [16, 4096, 4096], [2.97, 5.3, 4.5]),
  row('G3', 'matmul', [16, 8192, 8192], [11.8, 14, 13]),
  row('G4', 'matmul', [64, 4096, 4096], [3.23, 6.5, 5.2]),
  row('G4', 'matmul', [64, 14336, 4096], [10.9, 14.5, 12.8]),
  row('G5', 'matmul', [128, 4096, 4096], [5.4, 8.5, 7]),
  row('G5', 'matmul', [256, 4096, 4096], [10.8, 14, 12.5]),
  row('G5', 'matmul', [512, 4096, 4096], [21.5, 25.5, 23.5]),
  row('G6', 'matmul', [1024, 4096, 4096], [43.1, 48, 45.5]),
  row('G6', 'matmul', [2048, 4096, 4096], [86.1, 92, 89]),
  row('G7', 'matmul', [4096, 4096, 4096], [172, 180, 176]),
  row('G7', 'matmul', [8192, 4096, 4096], [344, 357, 350]),
  row('', 'matmulInputGrad', [8192, 4096, 4096]),
  row('G8', 'loraForward', [4096, 4096, 4096], [174, 184], lora),
  row('G8', 'loraForward', [8192, 4096, 4096], [347, 362, 355], lora),
  row('G9', 'loraForward', [8192, 4096, 4096], [347, 369, 360], loraDropout),
  row('G10', 'loraBackward', [8192, 4096, 4096], [350, 371, 360], lora),
  row('G11', 'loraBackward', [8192, 4096, 4096], [350, 378, 366], loraDropout),
  row('', 'loraForward', [1, 4096, 4096], [], lora),
  row('', 'loraForward', [16, 4096, 4096], [], lora),
  row('G13', 'groupedAdapters', [32, 4096, 4096], [2.97, 6.5, 5], lora),
  row('G13', 'groupedAdapters', [32, 4096, 4096], [11.4, 15], { r: 64 }),
  row('', 'groupedForward', [32, 4096, 4096], [], lora),
  row('', 'groupedForward', [8192, 4096, 4096], [], lora),
  row('G16', 'factoredNorm', [16, 4096, 4096], [2.98, 8, 6], lora),
  row('G15', 'matmul', [1, 4096, 4096], [5.95, 7.8], bytes),
  row('G15', 'matmulInt8', [8192, 8192, 8192], [689, 787], bytes),
  row('', 'matmulInt8', [1, 4096, 4096], [5.6], bytes),
  row('G14', 'quantize', [1, 14336, 4096], [50.2, 58, 53], singly),
  row('', 'quantizeRows', [1, 14336, 4096], [58.8], bytes),
  row('G14', 'dequantize', [1, 14336, 4096], [50.2, 56, 53], singly),
  row('', 'dequantize', [1, 14336, 4096]),
];

/** The same at sizes that an emulator does in no time. */
export const tiny = (one) => ({
  ...one,
  M: Math.min(one.M, 65),
  N: one.N / 64,
  K: one.K / 64,
});

/** As gpu_bench takes it. */
export const caseText = ({ op, M, N, K, r, dropout, format, doubleQuant }) =>
  [op, M, N, K, r, dropout, format, doubleQuant ? 1 : 0].join(',');
/** cuBLAS's product of the same sizes over a dense bf16 weight. */
export const cublasText = ({ M, N, K }) => ['cublas', M, N, K, 0, 0, '', 0].join(',');

export const isProduct = ({ op }) =>
  !['quantize', 'quantizeRows', 'dequantize', 'factoredNorm', 'groupedAdapters'].includes(op);

/** In words, for the table. */
export function describe({ op, M, N, K, r, dropout, format, doubleQuant }) {
  const base = `${format}${doubleQuant ? '-dq' : ''}`;
  const sizes = /quantize/.test(op) ? `${N}×${K}` : `M=${M}, ${N}×${K}`;
  return `${op} ${base} ${sizes}${r > 0 ? `, r=${r}` : ''}${dropout > 0 ? `, dropout ${dropout}` : ''}`;
}

/** An adapter a row, and of more than a few rows some that take turns. */
export const adaptersOf = (M) => (M <= 32 ? M : 8);

/** Bytes that must cross the memory's pins, each once; activations are bf16, factors f32. */
export function bytesOf({ op, M, N, K, r, format, doubleQuant }) {
  const rowwise = op === 'matmulInt8' || op === 'quantizeRows';
  const singly = rowwise ? 4 * N : (4 * N * K) / 64; // one a row, or a block
  const scales = doubleQuant ? (N * K) / 64 + (4 * N * K) / 16384 : singly;
  const weight = (N * K) / (format === 'int8' ? 1 : 2) + scales;
  const factors = 4 * r * (N + K);
  const h = 4 * M * r;
  switch (op) {
    case 'quantize':
    case 'quantizeRows':
    case 'dequantize':
      return weight + 2 * N * K;
    case 'loraForward':
      return weight + 2 * M * (N + K) + factors + h;
    case 'groupedAdapters': // factors of each row's adapter in bf16; the product's sums are in L2
      return 2 * (M + adaptersOf(M) * r) * (N + K) + h;
    case 'groupedForward':
      return weight + 2 * (M + adaptersOf(M) * r) * (N + K) + h;
    case 'factoredNorm': // both factors in bf16; squared norms of w, and the norms
      return weight + 2 * r * (N + K) + 8 * N;
    case 'loraBackward': // reads dy and x, writes dx and the gradients of both factors
      return weight + 2 * M * (N + 2 * K) + 2 * factors + h;
    default:
      return weight + 2 * M * (N + K);
  }
}

/** In products of bf16, of which the tensor cores do half as many as of bytes. */
export function flopsOf({ op, M, N, K, r }) {
  const base = 2 * M * N * K;
  const factor = 2 * M * r * (N + K);
  switch (op) {
    case 'quantize':
    case 'quantizeRows':
    case 'dequantize':
      return 0;
    case 'matmulInt8':
      return base / 2;
    case 'groupedAdapters':
      return factor;
    case 'loraForward':
    case 'groupedForward':
      return base + factor;
    case 'factoredNorm': // M = r; the factors' own products
      return base + 2 * r * r * (N + K);
    case 'loraBackward': // dh and d_lora_b over N, the adapter's part of dx and d_lora_a over K
      return base + 2 * factor;
    default:
      return base;
  }
}
