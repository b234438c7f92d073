/**
 * Calls of aligned shapes that between them reach every kernel of cuda/ in its main loop: what the
 * committed counters (test/emulator/counters.json) are counted over. Where a kernel takes a device's size into
 * account, a device of few multiprocessors stands for a full one.
 */
import {
  adamwStep,
  attention,
  attentionBackward,
  blockMatmul,
  blockMatmulInputGrad,
  blockWeightGrad,
  type Device,
  type DType,
  dequantize,
  embedding,
  FeatureMap,
  factoredNorm,
  GroupedLora,
  gatedActivation,
  gatedActivationBackward,
  globalNorm,
  Indices,
  LoraAdapter,
  type LoraGradient,
  linearCrossEntropy,
  loraBackward,
  loraExpand,
  loraExpandBackward,
  loraForward,
  loraShrink,
  mapFeatures,
  mapTensor,
  matmul,
  matmulInputGrad,
  multiplyAdd,
  type QuantFormat,
  QuantizedWeight,
  quantize,
  rmsNormBackward,
  rmsNormForward,
  sumProduct,
  Tensor,
} from '../../lib/index.js';
import { PLANAR_SPECS, planarCase } from '../conformance/planar-cases.js';
import { countedExperts } from './counted-experts.js';
import { quantized, random } from './counted-operands.js';

/** The emulated device of a part: one process runs it. */
export interface CountedPart {
  readonly sm: number;
  readonly multiprocessors?: number;
  run(device: Device): void;
}

const DTYPES = ['f32', 'bf16', 'f16'] as const satisfies readonly DType[];
const HALVES = ['bf16', 'f16'] as const satisfies readonly DType[];
const FORMATS = ['nf4', 'int8', undefined] as const satisfies readonly (QuantFormat | undefined)[];

interface Product {
  readonly M: number;
  readonly N: number;
  readonly K: number;
  readonly dtype: DType;
  readonly format: QuantFormat | undefined;
  readonly doubleQuant?: boolean;
}

function operands({ M, N, K, dtype, format, doubleQuant = true }: Product, device: Device) {
  return {
    x: random(device, 1, [M, K], dtype),
    dy: random(device, 2, [M, N], dtype),
    w:
      format === undefined
        ? random(device, 3, [N, K], dtype)
        : quantized(device, 3, [N, K], dtype, { format, doubleQuant }),
    bias: random(device, 4, [N], 'f32'),
  };
}

/** An adapter on top of a product. */
function lora(
  product: Product,
  r: number,
  device: Device,
  dropout: number,
  backward: boolean | readonly LoraGradient[],
  factors: DType = 'f32',
) {
  const { x, dy, w, bias } = operands(product, device);
  const { N, K } = product;
  const adapter = new LoraAdapter({
    loraA: random(device, 5, [r, K], factors),
    loraB: random(device, 6, [N, r], factors),
    loraBias: random(device, 7, [N], factors),
    loraAlpha: r,
    dropout,
  });
  const { saved } = loraForward(x, w, adapter, { bias, seed: 8 });
  if (backward) loraBackward(dy, saved, backward === true ? {} : { needs: backward });
}

function streaming(device: Device) {
  for (const dtype of DTYPES) {
    const values = Tensor.randn([64, 4096], { seed: 1, std: 0.1, dtype, device });
    Tensor.uniform([64, 4096], { seed: 2, dtype, device });
    for (const to of DTYPES) values.to({ dtype: to });
    for (const format of ['nf4', 'fp4', 'int8'] as const satisfies readonly QuantFormat[]) {
      const w = quantize(values, { format, doubleQuant: true });
      for (const to of DTYPES) dequantize(w, { dtype: to });
      quantize(values, { format, doubleQuant: false });
    }
    quantize(values, { format: 'int8', rowwise: true });
  }
  const spec = PLANAR_SPECS.find(({ name }) => name === 'q4_k') as (typeof PLANAR_SPECS)[0];
  const w = QuantizedWeight.fromPlanes(planarCase(spec, 64, 4096, 3).planes, { device });
  for (const to of DTYPES) dequantize(w, { dtype: to });
}

/** Whole runs of every type, and rows long enough for all warps of a block. */
function elementwise(device: Device) {
  for (const dtype of DTYPES) {
    const a = random(device, 1, [256, 4096], dtype);
    const row = random(device, 2, [4096], dtype);
    multiplyAdd({ a, b: row, c: a });
    mapTensor(random(device, 3, [64, 64], dtype), 'tanh');
    const [gate, up, dy] = [5, 6, 7].map((seed) => random(device, seed, [64, 64], dtype));
    for (const kind of ['silu', 'gelu', 'gelu-tanh', 'silu-clamped'] as const) {
      gatedActivationBackward(dy as Tensor, gate as Tensor, up as Tensor, { kind });
      gatedActivation(gate as Tensor, up as Tensor, { kind });
    }
    sumProduct(a, a, { axis: 0 });
    sumProduct(a, a, { axis: 1 });
    sumProduct(random(device, 4, [8, 8192], dtype), undefined, { axis: 1 });
  }
}

/** Whole runs of every type, over several blocks. */
function optimizers(device: Device) {
  for (const [p, g] of [
    ['f32', 'f32'],
    ['bf16', 'f16'],
    ['f16', 'bf16'],
  ] as const) {
    const [ps, gs, ms] = [p, g, 'f32'].map((dtype, i) => [
      random(device, 2 * i, [64, 256], dtype as DType),
      random(device, 2 * i + 1, [4096], dtype as DType),
    ]) as [Tensor[], Tensor[], Tensor[]];
    const vs = ps.map(({ shape }) => Tensor.zeros(shape, { device }));
    const step = Tensor.zeros([1], { device });
    adamwStep(ps, gs, ms, vs, { lr: 0.1, step, norm: globalNorm(gs), maxNorm: 1 });
  }
}

/** Rows of several warps, of a warp, and of a part of one; and one that is read twice. */
function decoder(device: Device) {
  for (const dtype of DTYPES) {
    for (const [M, D] of [
      [16, 4096],
      [32, 256],
      [256, 64],
      [2, 16384],
    ] as const) {
      const [x, residual, dy] = [1, 2, 3].map((seed) => random(device, seed, [M, D], dtype));
      const g = random(device, 4, [D], dtype);
      const kept = rmsNormForward(x as Tensor, g, { residual: residual as Tensor });
      const { sum, invRms } = kept as { sum: Tensor; invRms: Tensor };
      rmsNormBackward(dy as Tensor, sum, g, { invRms, dSum: residual as Tensor });
    }
  }
}

/** Rows of several warps of each table, and logits of whole runs. */
function ends(device: Device) {
  for (const dtype of DTYPES) {
    for (const format of FORMATS) {
      const product = { M: 64, N: 128, K: 4096, dtype, format } as const;
      const { w: table } = operands({ ...product, doubleQuant: false }, device);
      const ids = Array.from({ length: 64 }, (_, m) => (m * 37) % 128);
      embedding(Indices.from(ids, { limit: 128, device }), table, { dtype });
      const { x, w: head } = operands({ M: 64, N: 1024, K: 256, dtype, format }, device);
      const targets = Indices.from(ids, { limit: 1024, device });
      linearCrossEntropy(x, head, targets, { softcap: 30 });
    }
  }
}

/** Whole tiles of each, a permutation, sums of neighbours, and norms of adapted rows. */
function features(device: Device) {
  for (const dtype of DTYPES) {
    const x = random(device, 1, [64, 4096], dtype);
    const far = Int32Array.from({ length: 4096 }, (_, j) => (j * 1031) % 4096);
    mapFeatures(x, FeatureMap.permute(far, { device }), { c: x });
    mapFeatures(x, FeatureMap.groupSum(4096, 512, { device }));
    const loraA = random(device, 5, [32, 256], 'f32');
    const loraB = random(device, 6, [128, 32], dtype);
    factoredNorm({ w: random(device, 7, [128, 256], dtype), loraA, loraB, dtype });
    for (const [M, N, K] of [
      [128, 64, 64],
      [128, 8, 8],
    ] as const) {
      const w = random(device, 4, [4, N, K], dtype);
      const dy = random(device, 3, [M, 4, N], dtype);
      const blocks = random(device, 2, [M, 4, K], dtype);
      blockMatmul(blocks, w);
      blockMatmulInputGrad(dy, w);
      blockWeightGrad(dy, blocks);
    }
  }
}

/** Tiles of 64 x 64 and 32 x 64, the split reduction, and the adapter's kernels. */
function smallTiles(device: Device) {
  for (const dtype of DTYPES) {
    for (const format of FORMATS) {
      const { x, dy, w, bias } = operands({ M: 64, N: 256, K: 512, dtype, format }, device);
      matmul(x, w, { bias });
      matmulInputGrad(dy, w);
    }
    for (const r of [16, 32]) {
      const product = { M: 128, N: 256, K: 512, dtype, format: 'nf4' } as const;
      lora(product, r, device, 0.1, true);
    }
  }
  for (const dtype of HALVES) {
    // Rows that are no whole 16-byte pieces, and few tiles of a long reduction.
    const ragged = operands({ M: 64, N: 100, K: 204, dtype, format: 'nf4' }, device);
    matmul(ragged.x, ragged.w);
    matmulInputGrad(ragged.dy, ragged.w);
    const long = operands({ M: 72, N: 512, K: 4096, dtype, format: undefined }, device);
    matmul(long.x, long.w);
  }
}

/** A megabyte of weight each. On 44 multiprocessors of compute capability 9.0 all are cut in clusters of four and eight. */
function fewTokens(device: Device) {
  for (const dtype of HALVES) {
    for (const [format, K] of [
      ['nf4', 4096],
      ['int8', 2048],
      [undefined, 1024],
    ] as const) {
      for (const M of [8, 16, 32, 64]) {
        const { x, w, bias } = operands({ M, N: 512, K, dtype, format }, device);
        matmul(x, w, { bias });
      }
    }
    for (const M of [8, 64]) {
      lora({ M, N: 512, K: 4096, dtype, format: 'nf4' }, 16, device, 0, false);
    }
  }
}

/** Slices of K in clusters: of products, and of the shrinks before them. */
function fewTokensInClusters(device: Device) {
  fewTokens(device);
  for (const dtype of DTYPES) {
    for (const r of [16, 32]) {
      loraShrink(random(device, 1, [64, 2048], dtype), random(device, 2, [r, 2048], 'f32'));
    }
  }
}

function largeTiles(device: Device) {
  for (const dtype of DTYPES) {
    for (const format of FORMATS) {
      const { x, dy, w, bias } = operands({ M: 256, N: 256, K: 256, dtype, format }, device);
      matmul(x, w, { bias });
      matmulInputGrad(dy, w);
    }
    lora({ M: 256, N: 256, K: 256, dtype, format: 'nf4' }, 16, device, 0.1, true);
    const dy = random(device, 2, [256, 256], dtype);
    loraExpandBackward(dy, undefined, random(device, 6, [256, 16], dtype), { needs: ['dh'] });
  }
}

function wgmma(device: Device) {
  for (const dtype of HALVES) {
    for (const format of FORMATS) {
      lora({ M: 512, N: 512, K: 256, dtype, format }, 16, device, 0, false);
    }
    // A megabyte of weight, and columns enough for h to be computed beside the products; and its transpose.
    // Where both types run the same lines, one counts them.
    for (const [factors, dropout] of dtype === 'bf16'
      ? ([
          ['f32', 0.1],
          [dtype, 0],
        ] as const)
      : ([['f32', 0.1]] as const)) {
      const product = { M: 512, N: 2048, K: 1024, dtype, format: 'nf4' } as const;
      lora(product, 16, device, dropout, ['dx'], factors);
    }
    // Of more ranks than one unit's sixteen: three parts of 32, and two units of 32.
    const dense = { M: 512, N: 2048, K: 512, dtype, format: undefined } as const;
    lora(dense, 32, device, 0, false);
    if (dtype === 'bf16') lora(dense, 64, device, 0, false, dtype);
    // The factors' gradients beside dx: of what is not gated, over dy; of what is, over x.
    const wide = { M: 512, N: 2048, K: 2560, dtype, format: 'nf4' } as const;
    if (dtype === 'bf16') lora(wide, 16, device, 0, ['dx', 'dLoraB'], dtype);
    else lora({ ...wide, N: 2560, K: 2048 }, 16, device, 0.1, ['dx', 'dLoraA'], dtype);
    for (const product of [
      { M: 1024, N: 1024, K: 128, dtype, format: 'nf4' },
      { M: 64, N: 512, K: 4096, dtype, format: 'nf4' },
      { M: 128, N: 1024, K: 2048, dtype, format: 'nf4' },
    ] as const) {
      const { x, w, bias } = operands(product, device);
      matmul(x, w, { bias });
    }
  }
}

/** Few tokens on all multiprocessors, in clusters of eight: tiles of 256 outputs, and of 128. */
function fewTokensByWgmma(device: Device) {
  for (const dtype of HALVES) {
    for (const N of [4096, 2048]) {
      const { x, w, bias } = operands({ M: 64, N, K: 2048, dtype, format: 'nf4' }, device);
      matmul(x, w, { bias });
    }
  }
}

/** Products of int8 codes, alone and with a LoRA term. */
function codes(device: Device, shapes: ReadonlyArray<readonly [M: number, N: number, K: number]>) {
  for (const dtype of DTYPES) {
    for (const [M, N, K] of shapes) {
      const x = random(device, 1, [M, K], dtype);
      const w = quantized(device, 2, [N, K], dtype, { format: 'int8', rowwise: true });
      const bias = random(device, 3, [N], 'f32');
      matmul(x, w, { bias, compute: 'int8' });
      const h = random(device, 4, [M, 16], 'f32');
      loraExpand(x, w, h, random(device, 5, [N, 16], dtype), { compute: 'int8' });
    }
  }
}

/** Each tile of the products of int8 codes; rows of x that are read once, and that are read twice. */
function int8(device: Device) {
  codes(device, [
    [16, 128, 1024],
    [64, 256, 512],
    [256, 512, 512],
    [4, 32, 16384],
  ]);
}

/** The tile by wgmma, two for a cluster. */
function int8ByWgmma(device: Device) {
  codes(device, [[256, 1024, 512]]);
}

/** Whole tiles of rows, ranks and columns: 64 rows each of two adapters, in turns of 16. */
function grouped(device: Device) {
  for (const dtype of DTYPES) {
    const product = { M: 128, N: 512, K: 256, dtype, format: 'nf4' } as const;
    const { x, dy, w } = operands(product, device);
    const group = new GroupedLora({ inFeatures: 256, outFeatures: 512, device });
    for (const [name, seed] of [
      ['a', 20],
      ['b', 30],
    ] as const) {
      const loraA = random(device, seed, [32, 256], dtype);
      const loraB = random(device, seed + 1, [512, 32], dtype);
      group.add(name, new LoraAdapter({ loraA, loraB, loraAlpha: 32, dropout: 0.1 }));
    }
    const rows = Array.from({ length: 128 }, (_, m) => (Math.floor(m / 16) % 2 === 0 ? 'a' : 'b'));
    const { saved } = group.forward(x, w, rows, { seed: 1 });
    group.backward(dy, saved);
    // Both adapters for every row, with gates.
    for (const name of ['a', 'b']) {
      const { loraA, loraB } = group.get(name) as LoraAdapter;
      const loraBias = random(device, 40, [512], dtype);
      group.update(name, new LoraAdapter({ loraA, loraB, loraBias, loraAlpha: 32 }));
    }
    const pairs = rows.map(() => ['a', 'b']);
    const mixed = group.forward(x, w, pairs, { rowScale: random(device, 41, [128, 2], dtype) });
    group.backward(dy, mixed.saved, { needs: ['dx', 'dRowScale'] });
  }
}

/** Of one launch on Hopper: rows of their own adapters, and eight of one. */
function groupedFewRows(device: Device) {
  for (const dtype of DTYPES) {
    for (const [r, rows] of [
      [16, ['a', 'b', 'a', 'b']],
      [64, ['a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'b']],
    ] as const) {
      const { x, w } = operands({ M: rows.length, N: 1024, K: 512, dtype, format: 'nf4' }, device);
      const group = new GroupedLora({ inFeatures: 512, outFeatures: 1024, device });
      for (const [i, name] of ['a', 'b'].entries()) {
        const loraA = random(device, 50 + i, [r, 512], dtype);
        const loraB = random(device, 60 + i, [1024, r], dtype);
        group.add(name, new LoraAdapter({ loraA, loraB, loraAlpha: 32 }));
      }
      group.forward(x, w, rows);
    }
  }
}

/** Whole tiles of each width, with and without what is prepared, of rotated rows and two documents. */
function attentionPasses(device: Device) {
  for (const dtype of DTYPES) {
    for (const headDim of [64, 128, 256]) {
      const [T, heads, kvHeads] = [128, 2, 1];
      const [q, dO] = [1, 2].map((seed) => random(device, seed, [T, heads * headDim], dtype));
      const [k, v] = [3, 4].map((seed) => random(device, seed, [T, kvHeads * headDim], dtype));
      const input = { q, k, v } as { q: Tensor; k: Tensor; v: Tensor };
      const documents = Indices.from(
        Array.from({ length: T }, (_, t) => (t < 64 ? 0 : 64)),
        { limit: T, device },
      );
      for (const more of [{}, { rope: random(device, 5, [T, headDim], 'f32'), documents }]) {
        const shape = { heads, kvHeads, ...more };
        const { o, lse } = attention(input, shape);
        attentionBackward(dO as Tensor, input, { ...shape, o, lse: lse as Tensor });
      }
    }
  }
}

/** Rows of two adapters in turn, which are put one after another: whole pieces of 8 KiB and parts of one. */
function groupedSegments(device: Device) {
  const [M, K, N] = [256, 64, 4352];
  const { x, w } = operands({ M, N, K, dtype: 'bf16', format: 'nf4' }, device);
  const group = new GroupedLora({ inFeatures: K, outFeatures: N, device });
  for (const [i, name] of ['a', 'b'].entries()) {
    const loraA = random(device, 70 + i, [16, K], 'f32');
    const loraB = random(device, 80 + i, [N, 16], 'f32');
    group.add(name, new LoraAdapter({ loraA, loraB, loraAlpha: 32 }));
  }
  const rows = Array.from({ length: M }, (_, m) => (m % 2 === 0 ? 'a' : 'b'));
  group.forward(x, w, rows);
}

export const COUNTED_PARTS: ReadonlyArray<CountedPart> = [
  { sm: 80, run: streaming },
  { sm: 80, run: elementwise },
  { sm: 80, run: optimizers },
  { sm: 80, run: features },
  { sm: 80, run: decoder },
  { sm: 80, run: ends },
  { sm: 80, run: grouped },
  { sm: 90, run: groupedFewRows },
  { sm: 80, multiprocessors: 2, run: groupedSegments },
  { sm: 80, run: attentionPasses },
  { sm: 80, run: (device) => countedExperts(device, 64, 4) },
  { sm: 80, multiprocessors: 2, run: (device) => countedExperts(device, 128, 2) },
  { sm: 80, run: smallTiles },
  { sm: 80, run: fewTokens },
  { sm: 80, multiprocessors: 2, run: largeTiles },
  { sm: 80, multiprocessors: 2, run: int8 },
  { sm: 90, multiprocessors: 4, run: wgmma },
  { sm: 90, multiprocessors: 4, run: int8ByWgmma },
  { sm: 90, run: fewTokensByWgmma },
  { sm: 90, multiprocessors: 44, run: fewTokensInClusters },
];
