/**
 * Every family of products within every op that launches several of them: what one launch leaves in memory
 * that the next one uses, and overlaps. A family has the smallest shape that reaches it on a card of few
 * multiprocessors, and a case that does not launch its kernels there fails, so that none drifts away from
 * what it is for when a plan changes. Weights are above and below the size from which the family is chosen by
 * rows; K ends inside a block of scales, or all of it is 3/4 of one.
 */
import {
  type BaseWeight,
  type ComputePrecision,
  type Device,
  type DType,
  GroupedLora,
  LoraAdapter,
  loraExpandWithNorms,
  loraForwardMany,
  loraForwardSwiglu,
  type QuantFormat,
  quantize,
  Tensor as Tensors,
} from '../../lib/index.js';
import { hashOf, type KernelCase, random } from './case-parts.js';

type Op =
  /** A batch of two adapters, whose rows stand together. */
  | 'segments'
  | 'segments back'
  /** The same in turns. */
  | 'apart'
  | 'apart back'
  | 'many'
  | 'swiglu'
  /** A batch with weights of its rows, which never goes adapter by adapter. */
  | 'weighted rows'
  /** A layer and the norms of its adapted weight. */
  | 'norms';

interface Family {
  readonly name: string;
  readonly sm: '80' | '90';
  /** Multiprocessors of a card, not few. */
  readonly whole?: true;
  /** Launched by each of the ops, and the same of gradients. */
  readonly kernels: RegExp;
  readonly back?: RegExp;
  /** Launched by none of them. */
  readonly without?: RegExp;
  readonly dtype?: DType;
  /** Of the adapters' factors: f32 if it is not given. */
  readonly factors?: DType;
  readonly format?: QuantFormat;
  /** Elements of a block of scales, which are quantised too. */
  readonly doubly?: number;
  readonly blocksize?: number;
  readonly int8?: boolean;
  /** Rows of each product, outputs, inputs. */
  readonly shape: readonly [M: number, N: number, K: number];
  readonly r: number;
  readonly ops: readonly Op[];
}

const LAYERS = ['many', 'swiglu', 'norms'] as const;
const FORWARD = ['segments', ...LAYERS] as const;

/** What an op launches besides, of any family. */
const LAUNCHED: Readonly<Record<Op, readonly RegExp[]>> = {
  segments: [],
  apart: [/^copy_rows/],
  'segments back': [/^lora_reduce/],
  'apart back': [/^copy_rows/, /^lora_reduce/],
  many: [],
  swiglu: [/^swiglu/],
  'weighted rows': [/^grouped_/],
  norms: [/^factored_norm/],
};

/** r is so large that a batch goes adapter by adapter where that is among the ops. */
const FAMILIES: readonly Family[] = [
  // Few tokens by wgmma, whose clusters hand half of the sums over in workspace.
  {
    name: 'wgmma of 64 tokens',
    sm: '90',
    kernels: /^matmul_small_m_wgmma_4bit/,
    format: 'nf4',
    doubly: 128,
    shape: [33, 500, 4320],
    r: 64,
    ops: [...FORWARD, 'apart'],
  },
  {
    name: 'wgmma of 64 tokens, no cluster',
    sm: '90',
    kernels: /^matmul_small_m_wgmma_4bit/,
    dtype: 'f16',
    format: 'fp4',
    blocksize: 4096,
    shape: [34, 700, 3072],
    r: 64,
    ops: LAYERS,
  },
  {
    name: 'wgmma of 128 outputs',
    sm: '90',
    kernels: /^matmul_small_m_wgmma128_4bit/,
    format: 'nf4',
    doubly: 128,
    shape: [33, 2040, 2016],
    r: 16,
    whole: true,
    ops: LAYERS,
  },
  {
    name: 'wgmma of 128 tokens',
    sm: '90',
    kernels: /^matmul_wide_m_wgmma_4bit/,
    format: 'nf4',
    doubly: 32,
    shape: [70, 500, 4640],
    r: 64,
    ops: [...FORWARD, 'apart'],
  },
  {
    name: 'wgmma of 128 tokens, no cluster',
    sm: '90',
    kernels: /^matmul_wide_m_wgmma_4bit/,
    format: 'nf4',
    doubly: 128,
    shape: [130, 500, 4320],
    r: 64,
    ops: ['segments'],
  },
  {
    name: 'clusters of 4 bits',
    sm: '90',
    kernels: /^matmul_small_m_cluster_4bit/,
    format: 'nf4',
    doubly: 128,
    shape: [25, 250, 8544],
    r: 20,
    ops: LAYERS,
  },
  {
    name: 'clusters of 8 bits',
    sm: '90',
    kernels: /^matmul_small_m_cluster_8bit/,
    dtype: 'f16',
    format: 'int8',
    blocksize: 4096,
    shape: [20, 250, 4208],
    r: 20,
    ops: LAYERS,
  },
  {
    name: 'clusters of dense weights',
    sm: '90',
    kernels: /^matmul_small_m_cluster_dense/,
    shape: [20, 250, 2104],
    r: 20,
    ops: LAYERS,
  },
  {
    name: 'planes of 4 bits',
    sm: '80',
    kernels: /^matmul_small_m_finish/,
    format: 'nf4',
    doubly: 128,
    shape: [9, 60, 35040],
    r: 16,
    ops: LAYERS,
  },
  {
    name: 'few tokens of 4 bits',
    sm: '80',
    kernels: /^matmul_small_m_4bit/,
    format: 'nf4',
    doubly: 128,
    shape: [32, 500, 4320],
    r: 64,
    ops: [...LAYERS, 'weighted rows'],
  },
  {
    name: 'few tokens of 8 bits',
    sm: '80',
    kernels: /^matmul_small_m_8bit/,
    dtype: 'f16',
    format: 'int8',
    blocksize: 4096,
    shape: [3, 352, 3072],
    r: 16,
    ops: [...LAYERS, 'weighted rows'],
  },
  {
    name: 'few rows of many adapters',
    sm: '90',
    kernels: /^grouped_forward/,
    format: 'nf4',
    doubly: 128,
    shape: [3, 500, 4320],
    r: 16,
    ops: ['weighted rows'],
  },
  // By panels.
  {
    name: 'panels',
    sm: '90',
    kernels: /^gemm_wgmma_128/,
    shape: [385, 1032, 520],
    r: 40,
    ops: [...FORWARD, 'segments back', 'apart back'],
  },
  {
    name: 'panels with h beside them',
    sm: '90',
    kernels: /^gemm_wgmma_128/,
    format: 'nf4',
    doubly: 128,
    shape: [385, 2184, 1056],
    r: 16,
    ops: ['segments', 'many', 'swiglu', 'segments back'],
  },
  {
    name: 'panels with h of 48 ranks beside them',
    sm: '90',
    kernels: /^gemm_wgmma_128/,
    without: /^lora_shrink/,
    format: 'int8',
    factors: 'bf16',
    doubly: 128,
    shape: [385, 2056, 528],
    r: 48,
    ops: ['segments', 'many', 'swiglu'],
  },
  // Tiles: a weight below a megabyte, and above.
  {
    name: 'tiles',
    sm: '90',
    kernels: /^matmul_mma_/,
    back: /^input_grad_mma_/,
    format: 'nf4',
    doubly: 128,
    shape: [33, 264, 96],
    r: 64,
    ops: [...FORWARD, 'apart', 'weighted rows'],
  },
  {
    name: 'tiles',
    sm: '80',
    kernels: /^matmul_mma_/,
    back: /^input_grad_mma_/,
    dtype: 'f16',
    format: 'int8',
    blocksize: 128,
    shape: [65, 250, 336],
    r: 40,
    ops: [...FORWARD, 'apart', 'segments back', 'apart back', 'weighted rows'],
  },
  {
    name: 'tiles of a large weight',
    sm: '80',
    kernels: /^matmul_mma_/,
    back: /^input_grad_mma_/,
    format: 'nf4',
    doubly: 128,
    shape: [65, 500, 4320],
    r: 64,
    ops: [...FORWARD, 'segments back'],
  },
  {
    name: 'f32',
    sm: '90',
    kernels: /^gemm_f32_/,
    dtype: 'f32',
    format: 'nf4',
    doubly: 128,
    shape: [33, 65, 96],
    r: 24,
    ops: [...LAYERS, 'weighted rows'],
  },
  {
    name: 'int8 codes',
    sm: '90',
    kernels: /^matmul_int8_\d/,
    int8: true,
    shape: [33, 264, 96],
    r: 64,
    ops: ['segments', 'apart', 'many', 'swiglu', 'weighted rows'],
  },
  {
    name: 'int8 codes by wgmma',
    sm: '90',
    kernels: /^matmul_int8_wgmma/,
    int8: true,
    shape: [129, 521, 96],
    r: 20,
    ops: ['segments', 'many', 'swiglu', 'weighted rows'],
  },
];

/**
 * In a smoke run each family has one of its ops, in turns, and those none whose products are large: they have
 * launches of their own there.
 */
const SMOKE_MULTIPLY_ADDS = 2 ** 28;

export function families(): KernelCase[] {
  return FAMILIES.flatMap((family, i) => {
    const [M, N, K] = family.shape;
    return family.ops.map((op, turn) => ({
      ...caseOf(family, op),
      smoke: turn === i % family.ops.length && M * N * K <= SMOKE_MULTIPLY_ADDS,
    }));
  });
}

interface Layer {
  readonly w: BaseWeight;
  readonly adapter: LoraAdapter;
}

function layerOf(family: Family, seed: number, device: Device): Layer {
  const { dtype = 'bf16', factors = 'f32', format, doubly, blocksize = doubly, r } = family;
  const [, N, K] = family.shape;
  // Sums are of the size of x.
  const std = K ** -0.5;
  const dense = random(seed, [N, K], family.int8 ? 'f32' : dtype, std);
  const how = {
    ...(blocksize === undefined ? {} : { blocksize }),
    doubleQuant: doubly !== undefined,
  };
  const w = family.int8
    ? quantize(dense, { format: 'int8', rowwise: true })
    : format === undefined
      ? dense
      : quantize(dense, { format, ...how });
  const adapter = new LoraAdapter({
    loraA: random(seed + 1, [r, K], factors, std).to({ device }),
    loraB: random(seed + 2, [N, r], factors, r ** -0.5).to({ device }),
    loraAlpha: r,
  });
  return { w: w.to({ device }), adapter };
}

function caseOf(family: Family, op: Op): KernelCase {
  const { name, sm, kernels, dtype = 'bf16', format, doubly, blocksize, r } = family;
  const [M, N, K] = family.shape;
  const weight = family.int8 ? 'rowwise' : (format ?? 'dense');
  const blocks = doubly === undefined ? (blocksize ?? '') : `${doubly} doubly`;
  const compute: { compute?: ComputePrecision } = family.int8 ? { compute: 'int8' } : {};
  const back = op.endsWith('back');
  const few = sm === '90' ? '4' : '2';
  return {
    sm,
    multiprocessors: family.whole ? '' : few,
    launches: [back ? (family.back ?? kernels) : kernels, ...LAUNCHED[op]],
    ...(op === 'weighted rows' ? {} : { without: family.without ?? /^grouped_/ }),
    name: `family ${name}, ${op}: ${dtype} ${weight} ${blocks} [${M}, ${N}, ${K}] r ${r}`.replace(
      / {2,}/,
      ' ',
    ),
    run: async (device) => hashOf(await results(device)),
  };

  async function results(device: Device): Promise<Tensors[]> {
    const rowsOf = (count: number, cols: number, seed: number) =>
      random(seed, [count, cols], dtype).to({ device });
    const { w, adapter } = layerOf(family, 81, device);
    if (op === 'many' || op === 'swiglu') {
      const layers = [
        { w, adapter, ...compute },
        { ...layerOf(family, 91, device), ...compute },
      ] as const;
      const x = rowsOf(M, K, 71);
      if (op === 'many') return [...loraForwardMany(x, layers).ys];
      return [loraForwardSwiglu(x, ...layers, { training: false }).y];
    }
    if (op === 'norms') {
      const h = random(72, [M, r], 'f32').to({ device });
      const weightNorms = Tensors.from(new Float32Array(N).fill(8), [N], { device });
      const { y, norms } = loraExpandWithNorms(rowsOf(M, K, 71), w, h, adapter, {
        scaling: 1 / 64,
        weightNorms,
      });
      return [y, norms];
    }
    const group = new GroupedLora({ inFeatures: K, outFeatures: N, device });
    group.add('a', adapter);
    group.add('b', layerOf(family, 91, device).adapter);
    const of = op.startsWith('apart') ? (i: number) => i % 2 === 0 : (i: number) => i < M;
    const rows = Array.from({ length: 2 * M }, (_, i) => (of(i) ? 'a' : 'b'));
    const weights = op === 'weighted rows' ? rows.length : 0;
    const { y, saved } = group.forward(rowsOf(rows.length, K, 73), w, rows, {
      ...compute,
      ...(weights > 0 ? { rowScale: random(74, [weights], 'f32').to({ device }) } : {}),
    });
    if (!back) return [y, saved.h as Tensors];
    const { dx, adapters } = group.backward(rowsOf(rows.length, N, 75), saved);
    const each = [...adapters.values()].flatMap((parts) => Object.values(parts));
    return [dx as Tensors, ...each];
  }
}
