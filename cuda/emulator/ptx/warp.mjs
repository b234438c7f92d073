/** What a warp or a block does together: barriers, shuffles, votes, matrices, cp.async. */
import { bitsOf } from './types.mjs';

const u32 = (c, operand) => `uint32_t(${c.bits(operand, 'u32')})`;

/** bar and barrier: the second need not be reached at one place. */
function barrier(i, c) {
  if (i.has('cluster')) {
    i.skip('aligned', 'release', 'acquire');
    if (i.need('arrive', 'wait') === 'wait') return `ClusterWait(${c.site});`;
    return `ClusterArrive(${c.site}, ${i.has('relaxed')});`;
  }
  if (i.has('warp')) {
    i.need('sync');
    return `SyncWarp(${u32(c, i.operand(0))}, ${c.site});`;
  }
  i.has('cta');
  const aligned = i.has('aligned') || i.name === 'bar';
  if (i.has('red')) {
    const operation = { popc: 'kCount', and: 'kAnd', or: 'kOr' }[i.need('popc', 'and', 'or')];
    i.need('pred', 'u32');
    if (i.operand(1) !== '0' || i.operands.length !== 3) throw i.fail('a barrier but 0 of all');
    const result = `BarrierReduce(BarrierOp::${operation}, ${c.bits(i.operand(2), 'pred')}, ${c.site})`;
    const type = operation === 'kCount' ? 'u32' : 'pred';
    return c.assign(i.operand(0), type, result);
  }
  const arrive = i.need('sync', 'arrive') === 'arrive';
  const threads = i.operands.length > 1 ? u32(c, i.operand(1)) : '0';
  const id = u32(c, i.operand(0));
  return arrive
    ? `BarrierArrive(${id}, ${threads}, ${c.site});`
    : `BarrierSync(${id}, ${threads}, ${c.site}, ${aligned});`;
}

function shuffle(i, c) {
  i.need('sync');
  i.need('b32');
  const mode = { idx: 'kIndex', up: 'kUp', down: 'kDown', bfly: 'kXor' }[
    i.need('idx', 'up', 'down', 'bfly')
  ];
  const [to, p] = i.operand(0).split('|');
  const [value, select, clamp, mask] = [1, 2, 3, 4].map((n) => u32(c, i.operand(n)));
  const inRange = c.temporary('in_range');
  const word = `ShufflePtx(${mask}, ${value}, ${select}, ${clamp}, ShuffleMode::${mode}, &${inRange}, ${c.site})`;
  const writePredicate = p === undefined ? '' : c.assign(p, 'pred', inRange);
  return `{ bool ${inRange} = false; ${c.assignBits(to, word)} ${writePredicate} }`;
}

function vote(i, c) {
  i.need('sync');
  const kind = i.need('ballot', 'any', 'all', 'uni');
  i.need('b32', 'pred');
  const predicate = c.bits(i.operand(1), 'pred');
  const mask = u32(c, i.operand(2));
  const ballot = (p) => `Ballot(${mask}, ${p}, ${c.site})`;
  if (kind === 'ballot') return c.assignBits(i.operand(0), ballot(predicate));
  if (kind === 'any') return c.assign(i.operand(0), 'pred', `${ballot(predicate)} != 0`);
  if (kind === 'all') return c.assign(i.operand(0), 'pred', `${ballot(`!${predicate}`)} == 0`);
  // Each side of the sum is a meeting of its own.
  return c.assign(i.operand(0), 'pred', `Uniform(${mask}, ${predicate}, ${c.site})`);
}

function match(i, c) {
  const kind = i.need('any', 'all');
  i.need('sync');
  const type = i.type();
  const any = `MatchAny(${u32(c, i.operand(2))}, uint64_t(${c.bits(i.operand(1), type)}), ${c.site})`;
  if (kind === 'any') return c.assignBits(i.operand(0), any);
  throw i.fail('match.all');
}

function reduce(i, c) {
  i.need('sync');
  const operation = i.need('add', 'min', 'max', 'and', 'or', 'xor');
  const type = i.type();
  const signs = operation === 'min' || operation === 'max' ? (type === 's32' ? 'S' : 'U') : '';
  const name = `k${operation[0].toUpperCase()}${operation.slice(1)}${signs}`;
  return c.assignBits(
    i.operand(0),
    `Reduce(${u32(c, i.operand(2))}, ${u32(c, i.operand(1))}, ReduceOp::${name}, ${c.site})`,
  );
}

/** ldmatrix and stmatrix: 8 x 8 matrices of 16-bit elements. */
function matrixCopy(i, c) {
  i.need('sync');
  i.need('aligned');
  i.need('m8n8');
  i.need('b16');
  i.skip('shared', 'shared::cta');
  const count = Number(i.need('x1', 'x2', 'x4').slice(1));
  const transposed = i.has('trans');
  const [vector, address] = i.name === 'ldmatrix' ? [0, 1] : [1, 0];
  const words = c.vector(i.operand(vector));
  if (words.length !== count) throw i.fail('another number of registers than matrices');
  const row = c.pointer(i.operand(address), 'shared');
  const r = c.temporary('matrix');
  if (i.name === 'stmatrix') {
    const values = words.map((word) => u32(c, word)).join(', ');
    return `{ const uint32_t ${r}[] = {${values}}; StMatrix(${r}, ${count}, ${transposed}, ${row}, ${c.site}); }`;
  }
  const writes = words.map((word, n) => c.assignBits(word, `${r}[${n}]`)).join(' ');
  return `{ uint32_t ${r}[4]; LdMatrix(${r}, ${count}, ${transposed}, ${row}, ${c.site}); ${writes} }`;
}

/** Shape and types of mma.sync, and what the runtime calls them. */
const kMma = {
  'm16n8k16.f32.bf16.bf16.f32': { call: 'Mma', type: 'kBF16' },
  'm16n8k16.f32.f16.f16.f32': { call: 'Mma', type: 'kF16' },
  'm16n8k8.f32.bf16.bf16.f32': { call: 'MmaK8', type: 'kBF16' },
  'm16n8k8.f32.f16.f16.f32': { call: 'MmaK8', type: 'kF16' },
  'm16n8k8.f32.tf32.tf32.f32': { call: 'Mma', type: 'kTF32' },
  'm16n8k32.s32.s8.s8.s32': { call: 'MmaInt', type: 'kS8' },
  'm16n8k32.s32.u8.u8.s32': { call: 'MmaInt', type: 'kU8' },
  'm16n8k32.s32.s8.u8.s32': { call: 'MmaInt', type: 'kS8U8' },
};

function multiplyMatrices(i, c) {
  i.need('sync');
  i.need('aligned');
  i.need('row');
  i.need('col');
  const shape = i.take('m16n8k8', 'm16n8k16', 'm16n8k32');
  const types = i.types();
  const row = kMma[[shape, ...types].join('.')];
  if (!row) throw i.fail('a matrix product that is not understood');
  const [d, a, b, sum] = [0, 1, 2, 3].map((n) => c.vector(i.operand(n)));
  const [ra, rb, rd] = ['a', 'b', 'd'].map((stem) => c.temporary(stem));
  const element = row.call === 'MmaInt' ? 's32' : 'f32';
  const cpp = row.call === 'MmaInt' ? 'int32_t' : 'float';
  const words = (list) => list.map((word) => u32(c, word)).join(', ');
  return [
    `{ const uint32_t ${ra}[] = {${words(a)}}, ${rb}[] = {${words(b)}};`,
    `${cpp} ${rd}[] = {${sum.map((word) => c.value(word, element)).join(', ')}};`,
    `${row.call}(MmaType::${row.type}, ${rd}, ${ra}, ${rb}, ${rd}, ${c.site});`,
    ...d.map((word, n) => c.assign(word, element, `${rd}[${n}]`)),
    '}',
  ].join(' ');
}

/** cp.async without .bulk: 4, 8 or 16 bytes a thread. */
export function copyAsync(i, c) {
  if (i.has('commit_group')) return `CpAsyncCommit(${c.site});`;
  if (i.has('wait_group')) return `CpAsyncWait(${u32(c, i.operand(0))}, ${c.site});`;
  if (i.has('wait_all')) return `CpAsyncWaitAll(${c.site});`;
  i.need('ca', 'cg');
  i.need('shared', 'shared::cta');
  i.need('global');
  const policy = i.has('L2::cache_hint') ? 1 : 0;
  i.skip(/^L2::(64B|128B|256B)$/);
  const bytes = Number(i.operand(2));
  if (![4, 8, 16].includes(bytes)) throw i.fail('a size that is not 4, 8 or 16 bytes');
  let source = `${bytes}u`;
  if (i.operands.length - policy > 3) {
    const operand = i.operand(3);
    const predicate = c.register(operand)?.type === 'pred';
    source = predicate ? `${c.bits(operand, 'pred')} ? 0u : ${bytes}u` : u32(c, operand);
  }
  const to = c.pointer(i.operand(0), 'shared');
  const from = c.pointer(i.operand(1), 'global');
  return `CpAsync(${to}, ${from}, ${bytes}, ${source}, ${c.site});`;
}

export const warp = {
  bar: barrier,
  barrier,
  shfl: shuffle,
  vote,
  match,
  redux: reduce,
  activemask: (i, c) => {
    if (bitsOf(i.type()) !== 32) throw i.fail('no word');
    return c.assignBits(i.operand(0), 'ActiveMask()');
  },
  ldmatrix: matrixCopy,
  stmatrix: matrixCopy,
  mma: multiplyMatrices,
  nanosleep: (i, c) => {
    i.type();
    return `SpinYield("nanosleep", ${c.site});`;
  },
  trap: (_, c) => `Fail("fault", ${c.site}, "trap");`,
  brkpt: () => ';',
};
