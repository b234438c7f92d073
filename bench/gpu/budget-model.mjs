/**
 * What the paper's times of docs/gpu-design.md count with, on an H100 SXM: a term a line, with where it is from,
 * and the times that they give the kernels. Clocks are of a multiprocessor.
 */

/** @typedef {{ value: number, text: string, source: string }} Term */

/** @type {Record<string, Term>} */
export const kTerms = {
  multiprocessors: { value: 132, text: '132', source: 'device query' },
  clock: { value: 1755, text: '1.755 GHz', source: 'clock of an H100 SXM under a light load' },
  tensorClock: {
    value: 798e6 / (132 * 4096),
    text: '1.476 GHz',
    source:
      'measured on an H100 SXM: 798 TFLOP/s of cuBLAS, 8192³ in bf16, over 4,096 FLOP a clock',
  },
  memory: { value: 3.0e6, text: '3.0 TB/s', source: 'measured on an H100 SXM: a copy' },
  l2: { value: 30, text: '30 bytes a clock at 1.755 GHz', source: '`kL2Bytes`, plan_cluster.h' },
  launch: {
    value: 0.8,
    text: '0.8 us',
    source:
      'a launch in a graph; with the next two, a small kernel costs 1.5 to 2 us beside its work',
  },
  first: { value: 0.7, text: '0.7 us', source: 'latency of memory when all begin at once' },
  tail: { value: 0.3, text: '0.3 us', source: 'last stores, the end of a grid' },
  dependent: {
    value: 1.05,
    text: '1.05 us',
    source: '`kSecondLaunchClocks`, plan_cluster.h: a launch behind another',
  },
  issue2: {
    value: 0.7,
    text: '0.7',
    source:
      'share of the issue slots that two warps a scheduler use; three: 0.8, four and more: 0.85',
  },
  pipe: {
    value: 0.9,
    text: '0.9',
    source: 'share that any other pipe gives: shared memory, integer',
  },
  mma: {
    value: 6.5,
    text: '6.5 clocks',
    source: 'mma.m16n8k16 on one of four tensor cores: 62 % of the rate of wgmma',
  },
  latency: { value: 1200, text: '1,200 clocks', source: 'L2 under load, as spare warps see it' },
  drain: {
    value: 200,
    text: '200 clocks',
    source: 'a tile’s last products, before its sums can be stored',
  },
};

const of = (name) => kTerms[name].value;
const issueRate = (warps) =>
  warps >= 4 ? 0.85 : warps >= 3 ? 0.8 : warps >= 2 ? of('issue2') : 0.5;
const us = (clocks) => clocks / of('clock');
const tensorUs = (clocks) => clocks / of('tensorClock');
/** Bytes a clock at the clock under full tensor load. */
const kL2Tensor = (of('l2') * of('clock')) / of('tensorClock');
const l2Us = (bytes) => bytes / (of('l2') * of('clock') * of('multiprocessors'));
const ceil = (a, b) => Math.ceil(a / b);

/** Clocks to issue so many instructions of each of `warps` warps that a multiprocessor holds at a time. */
const issueClocks = (instructions, warps) => (instructions * warps) / 4 / issueRate(warps / 4);

/** As native/cuda/plans/plan_cluster.h has them. */
const peerBytes = (cluster) => (cluster <= 2 ? 14.2 : 11.4);
const kClusterClocks = 350;

/** Of the kernels of few tokens: outputs and tokens of a tile, and shared wavefronts of a warp's step (small_m_mma.cuh). */
const kFewTiles = {
  m8: { rows: 32, tokens: 8, wavefronts: 148 },
  m16: { rows: 64, tokens: 16, wavefronts: 132 },
  m32: { rows: 128, tokens: 32, wavefronts: 164 },
  m64: { rows: 128, tokens: 64, wavefronts: 180 },
};
/** At M <= 2 a step branches over 59 of its instructions. */
const kFewerAtOneToken = 59;
/** Instructions of a warp behind its main loop: its sums, and what it makes of them. */
const kAfterFew = 150;
const kAfterWgmma = 700;

/** Products of few tokens by mma.sync: a block of eight warps owns rows, the warps take turns along K. */
function fewByMma({ M, N, K, bytes, launch, loop }) {
  const tile = kFewTiles[/_(m\d+)_kernel/.exec(launch.kernel)[1]];
  const eight = launch.kernel.includes('8bit');
  const stepK = eight ? 64 : 128;
  const slices = Math.max(launch.cluster, launch.blocks[1]);
  const all = ceil(N, tile.rows) * slices;
  const blocks = ceil(all, of('multiprocessors'));
  const resident = Math.min(blocks, tile.tokens === 8 ? 2 : 1);
  const steps = ((tile.rows / 32) * ceil(ceil(K, slices), stepK)) / 8;
  const instructions = loop.instructions - (M <= 2 && !eight ? kFewerAtOneToken : 0);
  const rounds = blocks / resident;
  const products = Math.max(
    rounds * issueClocks(steps * instructions, 8 * resident),
    (blocks * 8 * steps * (eight ? 116 : tile.wavefronts)) / of('pipe'),
  );
  const sumBytes = tile.rows * tile.tokens * 4;
  let end = issueClocks(kAfterFew, 8);
  let sums = 0;
  if (launch.cluster > 1) {
    end += kClusterClocks + (sumBytes * (1 - 1 / launch.cluster)) / peerBytes(launch.cluster);
  } else if (slices > 1) {
    sums = of('dependent') + l2Us(2 * slices * M * N * 4);
  }
  const before = Math.max(of('first'), us(issueClocks(loop.before, 8 * resident)));
  const main = Math.max(bytes / of('memory'), us(products));
  const limit = us(products) > bytes / of('memory') ? 'issue' : 'memory';
  return {
    us: of('launch') + before + main + us(end) + sums + of('tail'),
    limit,
    parts: { main, end: us(end) },
  };
}

/** Tiles of the kernels with wgmma and few tokens: bytes of x and w a step from L2, and pipes of their budgets. */
export const kWgmmaTiles = {
  matmul_small_m_wgmma: { rows: 256, tokens: 64, l2: 16384 + 17408, shared: 1180, integer: 1220 },
  matmul_small_m_wgmma128: { rows: 128, tokens: 64, l2: 16384 + 9216, shared: 848, integer: 530 },
  matmul_wide_m_wgmma: {
    rows: 256,
    tokens: 128,
    l2: 32768 + 19456,
    shared: 1776,
    integer: 1900,
    copiers: 430,
  },
};

/** Clocks of a step of 128 k of a block: what native/cuda/plans/products/plan_matmul_small_m.cpp has as step_clocks. */
export function stepClocks(tile, instructions) {
  const tensor = ((tile.rows * tile.tokens * 128) / 2048) * (of('clock') / of('tensorClock'));
  const warps = tile.copiers ? 3 : 2;
  const issue = (2 * instructions + (tile.copiers ?? 0)) / issueRate(warps);
  const limits = {
    'tensor cores': tensor,
    issue,
    'shared memory': tile.shared / of('pipe'),
    integer: tile.integer / of('pipe'),
    L2: tile.l2 / of('l2'),
  };
  const [limit, clocks] = Object.entries(limits).sort((a, b) => b[1] - a[1])[0];
  return { clocks: Math.round(clocks), limit };
}

/** What follows the last step: the peers' sums, of which half go by L2 where a warp has two fragments. */
export function endClocks(tile, cluster) {
  const after = issueClocks(kAfterWgmma, 8);
  if (cluster === 1) return Math.max(after, (tile.rows * tile.tokens * 2) / of('l2'));
  const sums = tile.rows * tile.tokens * 4;
  const half = tile.rows === 256 ? sums / 2 : 0;
  const peers = ((sums - half) * (1 - 1 / cluster)) / peerBytes(cluster);
  // Stored while the last products of the other half run.
  const late = half > 0 ? half / of('l2') / 2 : 0;
  return kClusterClocks + Math.max(peers, half / of('l2'), after) + late;
}

function fewByWgmma({ M, N, K, bytes, launch, loop }) {
  const [kernel] = launch.kernel.split('_4bit');
  const tile = kWgmmaTiles[kernel];
  const blocks = ceil(N, tile.rows) * ceil(M, tile.tokens) * launch.cluster;
  const waves = ceil(blocks, of('multiprocessors'));
  const step = stepClocks(tile, loop.instructions);
  const steps = ceil(ceil(K, launch.cluster), 128);
  const main = Math.max(bytes / of('memory'), us(waves * steps * step.clocks));
  const end = us(waves * endClocks(tile, launch.cluster));
  const before = Math.max(of('first'), us(issueClocks(loop.before, 8)));
  return {
    us: of('launch') + before + main + end + of('tail'),
    limit: step.limit,
    parts: { main, end },
  };
}

export function few(operands) {
  return operands.launch.kernel.includes('wgmma') ? fewByWgmma(operands) : fewByMma(operands);
}

/**
 * A pass of lora_contract.cuh over a matrix of rows x cols in bf16: 64 x 128 of it at a time, for 32 ranks (16
 * up to r = 16), by eight warps.
 */
function contract({ rows, cols, r, parts, contractions }) {
  const wide = r > 16;
  const rankTiles = ceil(r, wide ? 32 : 16);
  const tiles = (rows / 64) * (cols / 128) * rankTiles * contractions;
  const instructions = 52 + (wide ? 2 : 1) * (24 * (parts / 3) + (parts > 1 ? 104 : 60));
  const products = 8 * 4 * 2 * (wide ? 2 : 1) * parts;
  const clocks = Math.max(
    issueClocks(instructions, 8) * (wide ? 1 : issueRate(2) / issueRate(4)),
    (products * of('mma')) / 4 / of('pipe'),
  );
  const memory = (2 * rows * cols) / of('memory');
  return Math.max(memory, us((tiles / of('multiprocessors')) * clocks));
}

const kPartsOf = { bf16: 1, f32: 3 };

/** The product of many tokens with what its spare warps do beside it, in each of its launches. */
function wgmmaLaunch({ rows, depth, r, dropout, factors, gated, launch }) {
  const sms = of('multiprocessors');
  const blocks = ceil(depth, 64);
  const waves = ceil(launch.tiles[0] * launch.tiles[1], sms / 2);
  const slab = launch.slab_steps * (gated ? 667 : 256);
  const stage = 128 * 64 * 2 * 2; // x, and half of w
  const y = 128 * 256 * 2;
  let tensor = waves * (blocks * 1024 + slab + y / kL2Tensor + of('drain'));
  let l2 = waves * ((blocks + ceil(launch.slab_steps, 4)) * stage + y);
  let spare = 0;
  if (launch.h) {
    const parts = kPartsOf[factors];
    // Units of 32 rows, the first ones behind a gate of x of 16, and of up to 32 ranks.
    const behindGate = dropout > 0 && !gated;
    const small = behindGate ? 8 * Math.min(ceil(sms, 8), Math.floor(rows / 128)) : 0;
    const groups = r <= 16 ? 1 : ceil(r, 32);
    const units = (small / sms + ceil(ceil(rows - 16 * small, 32), sms)) * groups;
    tensor += (rows / 16 / sms) * (depth / 16) * ceil(r, 8) * parts * (of('mma') / 4);
    l2 += ((rows / sms) * groups + units * ceil(r, groups) * parts) * depth * 2;
    spare += units * ceil(depth, 3 * 32) * (behindGate ? 2000 : of('latency'));
    // The bits of the gate, 92 thousand clocks of each warp (gemm_wgmma_sm90a.cu).
    if (gated) spare += 92e3;
  }
  for (const [columns, splits, splitRows] of launch.grads) {
    const steps = columns * splits * (splitRows / 16);
    tensor += (steps / sms) * 4 * ceil(r, 8) * 3 * (of('mma') / 4);
    l2 += (steps / sms) * 16 * (64 * 2 + r * 4);
    spare += ceil(columns * splits, 3 * sms) * (splitRows / 16) * of('latency');
  }
  const limits = { 'tensor cores': tensor, L2: l2 / kL2Tensor, 'spare warps': spare };
  const [limit, clocks] = Object.entries(limits).sort((a, b) => b[1] - a[1])[0];
  return { us: tensorUs(clocks), limit };
}

/** Products of many tokens: the op's launches one after another. */
export function many({ op, M, N, K, r, dropout, factors, launches }) {
  const backward = op === 'loraBackward';
  const depth = backward ? N : K;
  const outputs = backward ? K : N;
  const gated = backward && dropout > 0;
  let total = of('launch') + of('first') + of('tail') - of('dependent');
  const limits = new Set();
  let passes = 0;
  for (const launch of launches) {
    total += of('dependent');
    if (launch.tiles !== undefined) {
      const one = wgmmaLaunch({ rows: M, depth, r, dropout, factors, gated, launch });
      total += one.us;
      limits.add(one.limit);
    } else if (launch.kernel.includes('prepare')) {
      const panel = launches.find(({ tiles }) => tiles !== undefined).tiles[1] * 256;
      const columns = Math.min(panel, outputs);
      total += Math.max(l2Us(columns * depth * 2), (columns * depth * 0.516) / of('memory'));
    } else if (/^lora_(grad|shrink)/.test(launch.kernel)) {
      // Backward: dy for dh and d_lora_b, then x for d_lora_a.
      const overDy = backward && passes === 0;
      const parts = backward ? 3 : kPartsOf[factors];
      const contractions = overDy ? 2 : 1;
      total += contract({ rows: M, cols: overDy ? N : K, r, parts, contractions });
      passes += 1;
    } else {
      total += 1; // sums of planes
    }
  }
  return { us: total, limit: [...limits].join(', ') };
}

/** LLM.int8: the codes of x, then the product by wgmma, whose tiles end with scales, biases and stores. */
export function manyInt8({ M, N, K }) {
  const waves = ceil(ceil(M, 256) * ceil(N, 256), of('multiprocessors') / 2);
  const end = issueClocks(700, 8) + (512 + 512) / of('pipe');
  const product = tensorUs(waves * (ceil(K, 128) * 1024 + end + of('drain')));
  const codes = (3 * M * K) / of('memory');
  const fixed = of('launch') + of('first') + of('dependent') + of('tail');
  return { us: fixed + codes + product, limit: 'tensor cores' };
}

/** A kernel that the memory's bytes limit. */
export function streaming(bytes) {
  return { us: of('launch') + of('first') + bytes / of('memory') + of('tail'), limit: 'memory' };
}

/** Few rows of many adapters in one launch: the bytes, and 3.6 thousand clocks of dependent steps around them (lora_grouped_forward_sm90.cu). */
export function adapters(bytes) {
  return { us: of('launch') + us(3600) + bytes / of('memory') + of('tail'), limit: 'memory' };
}

/**
 * DoRA's norms: the shrink of lora_a by itself, the product behind it, the sums. The product's blocks have their
 * codes by the time that x stands.
 */
export function norms(operands) {
  const shrink = 0.5;
  const { parts, limit } = few(operands);
  const before = of('launch') + of('first') + shrink;
  return { us: before + parts.main + parts.end + of('dependent') + of('tail'), limit };
}
