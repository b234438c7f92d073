/** The instructions of sm_90: mbarrier, bulk and tensor copies, wgmma, clusters. */
import { scopeOf } from './memory.mjs';
import { copyAsync } from './warp.mjs';

const u32 = (c, operand) => `uint32_t(${c.bits(operand, 'u32')})`;
const kSharedSpaces = ['shared', 'shared::cta', 'shared::cluster'];

function transactionBarrier(i, c) {
  const verb = i.need('init', 'inval', 'arrive', 'expect_tx', 'test_wait', 'try_wait');
  i.need('b64');
  i.need(...kSharedSpaces);
  const shared = (n) => c.sharedAddress(i.operand(n));
  if (verb === 'init') return `MbarrierInit(${shared(0)}, ${u32(c, i.operand(1))}, ${c.site});`;
  if (verb === 'inval') return `MbarrierInvalidate(${shared(0)}, ${c.site});`;
  const relaxed = i.take('relaxed', 'release', 'acquire') === 'relaxed';
  const named = scopeOf(i, 'kBlock');
  const scope = relaxed ? 'Scope::kNone' : named;
  if (verb === 'expect_tx') {
    return `MbarrierExpectTx(${shared(0)}, ${u32(c, i.operand(1))}, ${c.site});`;
  }
  if (verb === 'arrive') {
    const expect = i.has('expect_tx');
    const count = i.operands.length > 2 ? u32(c, i.operand(2)) : '1';
    const call = expect ? 'MbarrierArriveExpectTx' : 'MbarrierArrive';
    return c.assignBits(i.operand(0), `${call}(${shared(1)}, ${count}, ${c.site}, ${scope})`);
  }
  const parity = i.has('parity');
  const call = `${verb === 'try_wait' ? 'MbarrierTryWait' : 'MbarrierTestWait'}${parity ? 'Parity' : ''}`;
  const phase = parity ? u32(c, i.operand(2)) : `uint64_t(${c.bits(i.operand(2), 'u64')})`;
  return c.assign(i.operand(0), 'pred', `${call}(${shared(1)}, ${phase}, ${c.site}, ${scope})`);
}

/** `[map, {x, y}]` */
function tensorOperand(i, c, operand) {
  const match = /^\[\s*([^,\s]+)\s*,\s*\{([^}]*)\}\s*\]$/.exec(operand);
  if (!match) throw i.fail('a tensor coordinate that is not understood');
  const coordinates = match[2].split(',').map((word) => `int32_t(${c.bits(word.trim(), 's32')})`);
  const map = c.pointer(`[${match[1]}]`, 'generic');
  const list = `std::initializer_list<int32_t>{${coordinates.join(', ')}}.begin()`;
  return { map, list, rank: coordinates.length };
}

/** cp.async.bulk and cp.async.bulk.tensor. */
function bulkCopy(i, c) {
  if (i.has('commit_group')) return `BulkCommitGroup(${c.site});`;
  if (i.has('wait_group')) {
    const read = i.has('read');
    return `BulkWaitGroup(${u32(c, i.operand(0))}, ${read}, ${c.site});`;
  }
  const policy = i.has('L2::cache_hint') ? 1 : 0;
  const multicast = i.has('multicast::cluster');
  const barrier = i.has('mbarrier::complete_tx::bytes');
  const group = i.has('bulk_group');
  const tensor = i.has('tensor');
  const spaces = i.unused.filter((word) => [...kSharedSpaces, 'global'].includes(word));
  i.skip(...kSharedSpaces, 'global');
  const toShared = spaces[0] !== 'global';
  const mask = (n) => (multicast ? `uint32_t(uint16_t(${c.bits(i.operand(n), 'b16')}))` : '0');
  if (i.operands.length !== (tensor ? 2 : 3) + (barrier ? 1 : 0) + (multicast ? 1 : 0) + policy) {
    throw i.fail('another number of operands than understood');
  }
  if (tensor) {
    i.need('1d', '2d', '3d', '4d', '5d');
    i.has('tile');
    if (toShared && barrier) {
      const { map, list, rank } = tensorOperand(i, c, i.operand(1));
      return `TensorLoad(${c.sharedAddress(i.operand(0))}, ${map}, ${rank}, ${list}, ${c.sharedAddress(i.operand(2))}, ${mask(3)}, ${c.site});`;
    }
    if (!group) throw i.fail('a tensor copy that is not understood');
    const { map, list, rank } = tensorOperand(i, c, i.operand(0));
    return `TensorStore(${map}, ${rank}, ${list}, ${c.sharedAddress(i.operand(1))}, ${c.site});`;
  }
  const bytes = u32(c, i.operand(2));
  if (!toShared) {
    if (!group) throw i.fail('a bulk copy that is not understood');
    return `BulkStore(${c.pointer(i.operand(0), 'global')}, ${c.sharedAddress(i.operand(1))}, ${bytes}, ${c.site});`;
  }
  if (!barrier) throw i.fail('a bulk copy that is not understood');
  const [to, at] = [0, 3].map((n) => c.sharedAddress(i.operand(n)));
  if (spaces[1] === 'global') {
    return `BulkLoad(${to}, ${c.pointer(i.operand(1), 'global')}, ${bytes}, ${at}, ${mask(4)}, ${c.site});`;
  }
  return `BulkCopyToPeer(${to}, ${c.sharedAddress(i.operand(1))}, ${bytes}, ${at}, ${c.site});`;
}

function warpgroupProduct(i, c) {
  i.need('sync');
  i.need('aligned');
  const verb = i.need('fence', 'commit_group', 'wait_group', 'mma_async');
  if (verb === 'fence') return `WgmmaFence(${c.site});`;
  if (verb === 'commit_group') return `WgmmaCommit(${c.site});`;
  if (verb === 'wait_group') return `WgmmaWait(${u32(c, i.operand(0))}, ${c.site});`;
  const shape = i.unused.map((word) => /^m64n(\d+)k(16|32)$/.exec(word)).find(Boolean);
  if (!shape) throw i.fail('a shape that is not understood');
  i.has(shape[0]);
  const types = i.types().join('.');
  const bytes = types === 's32.s8.u8' && shape[2] === '32';
  const halves = (types === 'f32.bf16.bf16' || types === 'f32.f16.f16') && shape[2] === '16';
  if (!bytes && !halves) throw i.fail('types not understood');
  const registers = i.operand(1).startsWith('{');
  const d = c.vector(i.operand(0));
  if (d.length !== Number(shape[1]) / 2) throw i.fail('another number of accumulators');
  const [accumulate, scaleA, scaleB, ...transposed] = i.operands.slice(3);
  // With a in registers there is only b to transpose.
  const [transA, transB] = registers ? ['0', transposed[0]] : transposed;
  const flags = [transA === '1', transB === '1', scaleA === '-1', scaleB === '-1'];
  const r = c.temporary('d');
  const wgmmaShape = `{${shape[1]}, ${types.includes('bf16')}, ${bytes}, ${flags.join(', ')}}`;
  if (bytes && registers) throw i.fail('bytes from registers');
  const [element, cType] = bytes ? ['s32', 'int32_t'] : ['f32', 'float'];
  const b = `uint64_t(${c.bits(i.operand(2), 'b64')})`;
  const tail = `${b}, ${c.bits(accumulate, 'pred')}, true, ${c.site}`;
  // Its variables, which the product reads and the wait looks at again.
  const words = () =>
    c.vector(i.operand(1)).map((word) => {
      const register = c.register(word);
      if (!register) throw i.fail('a fragment that is no register');
      return `&${register.name}`;
    });
  return [
    `{ ${cType} ${r}[] = {${d.map((word) => c.value(word, element)).join(', ')}};`,
    registers
      ? `WgmmaRegisters(${wgmmaShape}, ${r}, {${words().join(', ')}}, ${tail});`
      : `Wgmma(${wgmmaShape}, ${r}, uint64_t(${c.bits(i.operand(1), 'b64')}), ${tail});`,
    ...d.map((word, n) => c.assign(word, element, `${r}[${n}]`)),
    '}',
  ].join(' ');
}

export const hopper = {
  mbarrier: transactionBarrier,
  cp: (i, c) => {
    i.need('async');
    return i.has('bulk') ? bulkCopy(i, c) : copyAsync(i, c);
  },
  wgmma: warpgroupProduct,
  mapa: (i, c) => {
    const shared = i.take('shared::cluster');
    const rank = u32(c, i.operand(2));
    const type = i.type();
    if (shared) {
      return c.assign(
        i.operand(0),
        type,
        `MapAddress(${u32(c, i.operand(1))}, ${rank}, ${c.site})`,
      );
    }
    const pointer = `reinterpret_cast<const void*>(uint64_t(${c.bits(i.operand(1), 'u64')}))`;
    return c.assignBits(
      i.operand(0),
      `reinterpret_cast<uint64_t>(MapShared(${pointer}, ${rank}, ${c.site}))`,
    );
  },
  elect: (i, c) => {
    i.need('sync');
    const [leader, p] = i.operand(0).split('|');
    if (leader !== '_') throw i.fail('the lane that was elected');
    return c.assign(p, 'pred', `ElectOne(${u32(c, i.operand(1))}, ${c.site})`);
  },
  setmaxnreg: (i, c) => {
    i.need('sync');
    i.need('aligned');
    i.need('u32');
    const up = i.need('inc', 'dec') === 'inc';
    return `SetMaxRegisters(${u32(c, i.operand(0))}, ${up}, ${c.site});`;
  },
  // Launches do not overlap here; the checks know which may on a device.
  griddepcontrol: (i) =>
    i.need('wait', 'launch_dependents') === 'wait' ? 'GridDependencyWait();' : ';',
};
