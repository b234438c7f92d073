/** Loads, stores, atomics, fences and hints. Each access is told to the runtime, whole. */
import { bytesOf, isFloat, isHalf, isPacked, valueType } from './types.mjs';

const kHints = [
  ...[/^L1::/, /^L2::(64B|128B|256B|evict)/, 'ca', 'cg', 'cs', 'lu', 'cv', 'wb', 'wt'],
];
const kScopes = { cta: 'kBlock', cluster: 'kCluster', gpu: 'kDevice', sys: 'kDevice' };

/** The scope named, in C++. */
export const scopeOf = (i, unnamed) =>
  `Scope::${kScopes[i.take(...Object.keys(kScopes))] ?? unnamed}`;

/** The address space named, with what it is called here. */
function spaceOf(i) {
  const space = i.take(
    ...['global', 'shared', 'shared::cta', 'shared::cluster', 'local', 'const', 'param'],
    ...['param::entry', 'param::func'],
  );
  if (space === undefined) return 'generic';
  if (space === 'shared::cta') return 'shared';
  return space.startsWith('param') ? 'param' : space;
}

const lanesOf = (i) => ({ v2: 2, v4: 4, v8: 8 })[i.take('v2', 'v4', 'v8')] ?? 1;

/** Spaces that every thread has for itself: nothing to watch. */
const isPrivate = (space) => space === 'local' || space === 'const' || space === 'param';

/** The hook before an access, by its ordering. */
function watch(c, space, pointer, bytes, write, { order, scope, nonCoherent }) {
  if (isPrivate(space)) return '';
  if (nonCoherent) return `NoteNonCoherent(${pointer}, ${bytes}, ${c.site}); `;
  if (order === 'weak') return `Access(${pointer}, ${bytes}, ${write}, ${c.site}); `;
  const note = `NoteStrong(${pointer}, ${bytes}, ${write}, ${c.site}, ${scope}); `;
  return order === 'release' ? `${note}NoteRelease(${pointer}, ${c.site}, ${scope}); ` : note;
}

function orderOf(i, strong) {
  const order = i.take(strong, 'relaxed', 'volatile', 'weak', 'mmio') ?? 'weak';
  const scoped = order !== 'weak' && order !== 'volatile';
  return { order, scope: scoped ? scopeOf(i, 'kDevice') : 'Scope::kDevice' };
}

/** createpolicy's value, where a hint says that there is one. */
function dropPolicy(i, count) {
  if (i.has('L2::cache_hint') && i.operands.length !== count + 1) throw i.fail('no policy');
}

function load(i, c) {
  const space = spaceOf(i);
  const { order, scope } = orderOf(i, 'acquire');
  const lanes = lanesOf(i);
  dropPolicy(i, 2);
  const nonCoherent = i.has('nc');
  i.skip(...kHints);
  const type = i.type();
  const targets = c.vector(i.operand(0));
  if (targets.length !== lanes) throw i.fail('another number of targets than lanes');
  const bytes = bytesOf(type) * lanes;
  const raw = isFloat(type) || isHalf(type) || isPacked(type) ? `b${bytesOf(type) * 8}` : type;
  if (space === 'shared::cluster') {
    const words = c.temporary('words');
    const parts = targets.map((target, n) => c.assign(target, raw, `${words}[${n}]`));
    return `{ ${valueType(raw)} ${words}[${lanes}]; ClusterLoad(${c.sharedAddress(i.operand(1))}, ${words}, ${bytes}, ${c.site}); ${parts.join(' ')} }`;
  }
  const pointer = c.temporary('from');
  if (order === 'acquire' && bytes === 4) {
    const word = `LoadAcquire(reinterpret_cast<const uint32_t*>(${c.pointer(i.operand(1), space)}), ${c.site}, ${scope})`;
    return c.assignBits(targets[0], word);
  }
  const reads = targets.map((target, n) =>
    c.assign(
      target,
      raw,
      `reinterpret_cast<const Unaligned<${valueType(raw)}>*>(${pointer} + ${n * bytesOf(type)})->value`,
    ),
  );
  const before = watch(c, space, pointer, bytes, false, { order, scope, nonCoherent });
  const poll = order === 'weak' ? '' : `SpinYield("ld.${order}", ${c.site}); `;
  const after = order === 'acquire' ? ` NoteAcquire(${pointer}, ${c.site}, ${scope});` : '';
  return `{ char* const ${pointer} = ${c.pointer(i.operand(1), space)}; ${poll}${before}${reads.join(' ')}${after} }`;
}

function store(i, c) {
  const space = spaceOf(i);
  const ordering = orderOf(i, 'release');
  const lanes = lanesOf(i);
  dropPolicy(i, 2);
  i.skip(...kHints);
  const type = i.type();
  const sources = c.vector(i.operand(1));
  if (sources.length !== lanes) throw i.fail('another number of sources than lanes');
  const bytes = bytesOf(type) * lanes;
  const raw = `b${bytesOf(type) * 8}`;
  const values = sources.map((source) => `${valueType(raw)}(${c.bits(source, type)})`);
  if (space === 'shared::cluster') {
    if (lanes !== 1) throw i.fail('a vector of a peer');
    const word = c.temporary('word');
    return `{ const ${valueType(raw)} ${word} = ${values[0]}; ClusterStore(${c.sharedAddress(i.operand(0))}, &${word}, ${bytes}, ${c.site}); }`;
  }
  const pointer = c.temporary('to');
  const writes = values.map(
    (value, n) =>
      `reinterpret_cast<Unaligned<${valueType(raw)}>*>(${pointer} + ${n * bytesOf(type)})->value = ${value};`,
  );
  const before = watch(c, space, pointer, bytes, true, ordering);
  return `{ char* const ${pointer} = ${c.pointer(i.operand(0), space)}; ${before}${writes.join(' ')} }`;
}

const kAtomics = {
  add: (old, x) => `${old} + ${x}`,
  and: (old, x) => `${old} & ${x}`,
  or: (old, x) => `${old} | ${x}`,
  xor: (old, x) => `${old} ^ ${x}`,
  min: (old, x) => `std::min(${old}, ${x})`,
  max: (old, x) => `std::max(${old}, ${x})`,
  exch: (_, x) => x,
  cas: (old, x, y) => `${old} == ${x} ? ${y} : ${old}`,
  inc: (old, x) => `${old} >= ${x} ? 0 : ${old} + 1`,
  dec: (old, x) => `${old} == 0 || ${old} > ${x} ? ${x} : ${old} - 1`,
};

/** atom, and red, which is the same without the old value. */
function atomic(i, c) {
  const space = spaceOf(i);
  if (!['global', 'shared', 'generic'].includes(space)) throw i.fail(`an atomic in .${space}`);
  const order = i.take('relaxed', 'acquire', 'release', 'acq_rel') ?? 'relaxed';
  const scope = scopeOf(i, 'kDevice');
  i.skip('noftz', ...kHints);
  const operation = i.need(...Object.keys(kAtomics));
  const type = i.type();
  if (isHalf(type) || isPacked(type)) throw i.fail('an atomic of halves');
  const first = i.name === 'atom' ? 1 : 0;
  const value = valueType(isFloat(type) && operation === 'cas' ? `b${bytesOf(type) * 8}` : type);
  const [x, y] = [1, 2].map((n) => {
    const operand = i.operands[first + n];
    return operand === undefined ? 'none' : c.value(operand, type);
  });
  const pointer = c.temporary('at');
  const old = c.temporary('old');
  const site = c.site;
  const release = order === 'release' || order === 'acq_rel';
  const acquire = order === 'acquire' || order === 'acq_rel';
  return [
    `{ char* const ${pointer} = ${c.pointer(i.operand(first), space)};`,
    release ? `NoteRelease(${pointer}, ${site}, ${scope});` : '',
    `AtomicBegin(${pointer}, ${bytesOf(type)}, ${site}, ${scope});`,
    `const ${value} ${old} = Atomic<${value}>(${pointer}, [&](${value} old) -> ${value} { return ${value}(${kAtomics[operation]('old', x, y)}); });`,
    `AtomicEnd(${pointer}, ${site}, ${scope});`,
    acquire ? `NoteAcquire(${pointer}, ${site}, ${scope});` : '',
    first === 1 ? c.assign(i.operand(0), type, old) : `(void)${old};`,
    '}',
  ].join(' ');
}

const hint = (i) => {
  i.unused = [];
  return ';';
};

function fence(i, c) {
  if (i.has('proxy')) {
    i.need('async', 'async::generic');
    i.skip('shared::cta', 'shared::cluster', 'global', 'acquire', 'release', 'sync_restrict');
    return `FenceProxyAsync(${c.site});`;
  }
  if (i.has('mbarrier_init')) {
    i.skip('release', 'cluster');
    return `FenceMbarrierInit(${c.site});`;
  }
  i.need('acq_rel', 'sc', 'acquire', 'release');
  return `Fence(${scopeOf(i, 'kDevice')});`;
}

export const memory = {
  ld: load,
  st: store,
  ldu: load,
  atom: atomic,
  red: atomic,
  fence,
  membar: (i) => {
    return `Fence(Scope::${i.need('cta', 'gl', 'sys') === 'cta' ? 'kBlock' : 'kDevice'});`;
  },
  prefetch: (i, c) => {
    if (i.has('tensormap')) {
      i.skip('param', 'const');
      return `TensorPrefetch(${c.pointer(i.operand(0), 'generic')}, ${c.site});`;
    }
    return hint(i);
  },
  prefetchu: hint,
  applypriority: hint,
  createpolicy: (i, c) => {
    i.unused = [];
    return c.assignBits(i.operand(0), '0');
  },
  isspacep: (i, c) => {
    const space = i.need('shared', 'shared::cta', 'global', 'local', 'const');
    const pointer = `reinterpret_cast<const void*>(uint64_t(${c.bits(i.operand(1), 'u64')}))`;
    if (space.startsWith('shared')) return c.assign(i.operand(0), 'pred', `IsShared(${pointer})`);
    if (space === 'global') return c.assign(i.operand(0), 'pred', `IsGlobal(${pointer})`);
    throw i.fail(`whether an address is in .${space}`);
  },
};
