/**
 * One instruction of PTX a case: its text, and what it must give for many operands by an oracle of
 * its own (ptx-oracle.mjs). Written out as PTX, one kernel a case, and as a table for
 * test/native/ptx_instructions_check.cpp:
 *
 *   node ptx-instruction-cases.mjs OUT.ptx OUT.h
 *
 * In a case's text A, B, C are 64-bit operands, a, b, c their low 32 bits, ah, bh, ch their low 16,
 * pa whether a is odd; the result goes to R, r, rh, or pr.
 */
import { writeFileSync } from 'node:fs';
import { float, mask, signed, unsigned } from './ptx-oracle.mjs';

const kThreads = 64;

/** splitmix64: the same operands on every machine. */
let state = 0x1234n;
function random() {
  state = unsigned(state + 0x9e3779b97f4a7c15n, 64);
  let z = state;
  z = unsigned((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n, 64);
  z = unsigned((z ^ (z >> 27n)) * 0x94d049bb133111ebn, 64);
  return z ^ (z >> 31n);
}

const kSpecial = {
  16: [
    0, 0x8000, 1, 0x3c00, 0x3f80, 0x7c00, 0x7f80, 0xfc00, 0xff80, 0x7e00, 0x7fc0, 0x03ff, 0x7bff,
  ],
  32: [
    ...[0, 0x80000000, 1, 0xffffffff, 0x7fffffff, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000],
    ...[0x7fc00000, 0x00000001, 0x007fffff, 0x00800000, 0x7f7fffff, 0x3f000000, 0x4f000000],
    ...[0xcf000001, 0x3fc00000, 0x40200000, 0x3f7fffff, 31, 32, 33],
  ],
  64: [
    ...[0n, 1n, mask(64), 1n << 63n, mask(63), 0x3ff0000000000000n, 0x7ff0000000000000n],
    ...[0xfff0000000000000n, 0x7ff8000000000000n, 1n << 52n, 0x000fffffffffffffn, 63n, 64n],
  ],
};

/** Operand words for one case: special against special first, then random, then small ones. */
function operandRows(bits) {
  const special = kSpecial[bits].map(BigInt);
  const pick = () => special[Number(random() % BigInt(special.length))];
  const near = (x) => unsigned(x + (random() % 5n) - 2n, bits);
  return Array.from({ length: kThreads }, (_, i) => {
    const word = () => {
      if (i < 24) return pick();
      if (i < 48) return unsigned(random(), bits);
      return i < 56 ? random() % 40n : near(pick());
    };
    return [word(), word(), word()];
  });
}

const cases = [];
/** `expect` gets the three operands as unsigned integers of `bits`; null stands for any NaN. */
function add(text, bits, out, expect, nan = null) {
  cases.push({ text, bits, out, expect, nan });
}

for (const bits of [16, 32, 64]) {
  const [r, a, b, c] = {
    16: ['rh', 'ah', 'bh', 'ch'],
    32: ['r', 'a', 'b', 'c'],
    64: ['R', 'A', 'B', 'C'],
  }[bits];
  const u = (x) => unsigned(x, bits);
  const s = (x) => signed(x, bits);
  add(`add.s${bits} ${r}, ${a}, ${b};`, bits, r, (x, y) => u(x + y));
  add(`sub.s${bits} ${r}, ${a}, ${b};`, bits, r, (x, y) => u(x - y));
  add(`mul.lo.s${bits} ${r}, ${a}, ${b};`, bits, r, (x, y) => u(x * y));
  add(`mad.lo.s${bits} ${r}, ${a}, ${b}, ${c};`, bits, r, (x, y, z) => u(x * y + z));
  add(`mul.hi.u${bits} ${r}, ${a}, ${b};`, bits, r, (x, y) => (x * y) >> BigInt(bits));
  add(`mul.hi.s${bits} ${r}, ${a}, ${b};`, bits, r, (x, y) => u((s(x) * s(y)) >> BigInt(bits)));
  for (const [name, pick] of [
    ['min', (x, y) => (y < x ? y : x + 0n)],
    ['max', (x, y) => (y > x ? y : x + 0n)],
  ]) {
    add(`${name}.u${bits} ${r}, ${a}, ${b};`, bits, r, pick);
    add(`${name}.s${bits} ${r}, ${a}, ${b};`, bits, r, (x, y) => u(pick(s(x), s(y))));
  }
  add(`and.b${bits} ${r}, ${a}, ${b};`, bits, r, (x, y) => x & y);
  add(`or.b${bits} ${r}, ${a}, ${b};`, bits, r, (x, y) => x | y);
  add(`xor.b${bits} ${r}, ${a}, ${b};`, bits, r, (x, y) => x ^ y);
  add(`not.b${bits} ${r}, ${a};`, bits, r, (x) => u(~x));
  add(`neg.s${bits} ${r}, ${a};`, bits, r, (x) => u(-x));
  add(`abs.s${bits} ${r}, ${a};`, bits, r, (x) => u(s(x) < 0n ? -x : x));
  const shifted = (x, n, by) => (n >= BigInt(bits) ? by(x, BigInt(bits)) : by(x, n));
  const amount = bits === 32 ? 'b' : 'b';
  const low = (y) => unsigned(y, 32);
  add(`shl.b${bits} ${r}, ${a}, ${amount};`, bits, r, (x, y) =>
    u(shifted(x, low(y), (v, n) => v << n)),
  );
  add(`shr.u${bits} ${r}, ${a}, ${amount};`, bits, r, (x, y) =>
    shifted(x, low(y), (v, n) => v >> n),
  );
  add(`shr.s${bits} ${r}, ${a}, ${amount};`, bits, r, (x, y) =>
    u(shifted(s(x), low(y), (v, n) => v >> n)),
  );
  add(`selp.b${bits} ${r}, ${a}, ${b}, pa;`, bits, r, (x, y) => (x & 1n ? x : y));
  for (const [test, holds] of Object.entries({
    eq: (x, y) => x === y,
    ne: (x, y) => x !== y,
    lt: (x, y) => x < y,
    le: (x, y) => x <= y,
    gt: (x, y) => x > y,
    ge: (x, y) => x >= y,
  })) {
    add(`setp.${test}.u${bits} pr, ${a}, ${b};`, bits, 'pr', (x, y) => BigInt(holds(x, y)));
    add(`setp.${test}.s${bits} pr, ${a}, ${b};`, bits, 'pr', (x, y) => BigInt(holds(s(x), s(y))));
  }
  if (bits < 64) {
    const [w, wide] = bits === 16 ? ['r', 32] : ['R', 64];
    add(`mul.wide.u${bits} ${w}, ${a}, ${b};`, bits, w, (x, y) => x * y);
    add(`mul.wide.s${bits} ${w}, ${a}, ${b};`, bits, w, (x, y) => unsigned(s(x) * s(y), wide));
    add(`mad.wide.u${bits} ${w}, ${a}, ${b}, ${w === 'r' ? 'c' : 'C'};`, bits, w, (x, y, z) =>
      unsigned(x * y + z, wide),
    );
  }
  if (bits > 16) {
    const guard = bits === 32 ? 'or.b32 b, b, 1;' : 'or.b64 B, B, 1;';
    add(`${guard} div.u${bits} ${r}, ${a}, ${b};`, bits, r, (x, y) => x / (y | 1n));
    add(`${guard} rem.u${bits} ${r}, ${a}, ${b};`, bits, r, (x, y) => x % (y | 1n));
    add(`${guard} rem.s${bits} ${r}, ${a}, ${b};`, bits, r, (x, y) => u(s(x) % s(y | 1n)));
    add(`popc.b${bits} r, ${a};`, bits, 'r', (x) =>
      BigInt([...x.toString(2)].filter((d) => d === '1').length),
    );
    add(`clz.b${bits} r, ${a};`, bits, 'r', (x) =>
      BigInt(bits - (x === 0n ? 0 : x.toString(2).length)),
    );
    add(`brev.b${bits} ${r}, ${a};`, bits, r, (x) =>
      BigInt(`0b${[...x.toString(2).padStart(bits, '0')].reverse().join('')}`),
    );
    const field = (x, y, z) => {
      const [p, n] = [y & 255n, z & 255n];
      return { p, n, value: p >= BigInt(bits) ? 0n : (x >> p) & mask(n > BigInt(bits) ? bits : n) };
    };
    add(`bfe.u${bits} ${r}, ${a}, b, c;`, bits, r, (x, y, z) => field(x, y, z).value);
    add(`bfe.s${bits} ${r}, ${a}, b, c;`, bits, r, (x, y, z) => {
      const { p, n } = field(x, y, z);
      // From the definition: past the word, and past the field, the field's last bit in the word.
      if (n === 0n) return 0n;
      const width = BigInt(bits);
      const last = p + n - 1n < width ? p + n - 1n : width - 1n;
      const sign = (x >> last) & 1n;
      let result = 0n;
      for (let i = 0n; i < width; i++) {
        const bit = i < n && p + i < width ? (x >> (p + i)) & 1n : sign;
        result |= bit << i;
      }
      return result;
    });
    add(`bfi.b${bits} ${r}, ${a}, ${b}, c, 9;`, bits, r, (x, y, z) => {
      const p = z & 255n;
      if (p >= BigInt(bits)) return y;
      const field9 = u(mask(9) << p);
      return (y & ~field9) | (u(x << p) & field9);
    });
    add(`bfind.u${bits} r, ${a};`, bits, 'r', (x) =>
      x === 0n ? mask(32) : BigInt(x.toString(2).length - 1),
    );
  }
}

const word = (f) => (x, y, z) => unsigned(f(x, y, z), 32);
for (const lut of [0x80, 0xfe, 0x96, 0xca, 0xe8, 0x1d, 0x6a, 0x00, 0xff, 0x3c, 0xb1]) {
  add(
    `lop3.b32 r, a, b, c, ${lut};`,
    32,
    'r',
    word((x, y, z) => {
      let result = 0n;
      for (let i = 0n; i < 32n; i++) {
        const at = (((x >> i) & 1n) << 2n) | (((y >> i) & 1n) << 1n) | ((z >> i) & 1n);
        result |= ((BigInt(lut) >> at) & 1n) << i;
      }
      return result;
    }),
  );
}
const joined = (low, high) => (high << 32n) | low;
add(
  'shf.l.wrap.b32 r, a, b, c;',
  32,
  'r',
  word((x, y, z) => (joined(x, y) << (z & 31n)) >> 32n),
);
add(
  'shf.r.wrap.b32 r, a, b, c;',
  32,
  'r',
  word((x, y, z) => joined(x, y) >> (z & 31n)),
);
const atMost32 = (n) => (n > 32n ? 32n : n);
add(
  'shf.l.clamp.b32 r, a, b, c;',
  32,
  'r',
  word((x, y, z) => (joined(x, y) << atMost32(z)) >> 32n),
);
add(
  'shf.r.clamp.b32 r, a, b, c;',
  32,
  'r',
  word((x, y, z) => joined(x, y) >> atMost32(z)),
);
add('prmt.b32 r, a, b, c;', 32, 'r', (x, y, z) => {
  let result = 0n;
  for (let i = 0n; i < 4n; i++) {
    const pick = (z >> (4n * i)) & 15n;
    let byte = (joined(x, y) >> (8n * (pick & 7n))) & 255n;
    if (pick & 8n) byte = byte & 128n ? 255n : 0n;
    result |= byte << (8n * i);
  }
  return result;
});
add(
  'add.cc.u32 r, a, b; addc.u32 r, c, 0;',
  32,
  'r',
  word((x, y, z) => z + ((x + y) >> 32n)),
);
add(
  'sub.cc.u32 r, a, b; subc.u32 r, c, 0;',
  32,
  'r',
  word((x, y, z) => z - (x < y ? 1n : 0n)),
);
for (const [type, part] of [
  ['s32', signed],
  ['u32', unsigned],
]) {
  const bytes = (x, y, z) =>
    [0n, 8n, 16n, 24n].reduce((t, i) => t + part(x >> i, 8) * part(y >> i, 8), z);
  const halves = (x, y, z) => z + part(x, 16) * part(y, 8) + part(x >> 16n, 16) * part(y >> 8n, 8);
  add(`dp4a.${type}.${type} r, a, b, c;`, 32, 'r', word(bytes));
  add(`dp2a.lo.${type}.${type} r, a, b, c;`, 32, 'r', word(halves));
  const upper = word((x, y, z) => halves(x, y >> 16n, z));
  add(`dp2a.hi.${type}.${type} r, a, b, c;`, 32, 'r', upper);
}
add('mov.b32 {ah, bh}, a; mov.b32 r, {bh, ah};', 32, 'r', (x) =>
  unsigned((x << 16n) | (x >> 16n), 32),
);
add('mov.b64 {a, b}, A; mov.b64 R, {b, a};', 64, 'R', (x) => unsigned((x << 32n) | (x >> 32n), 64));
add('setp.lt.and.s32 pr, a, b, pa;', 32, 'pr', (x, y) =>
  BigInt(signed(x, 32) < signed(y, 32) && (x & 1n) === 1n),
);
add('setp.lt.or.s32 pr|pb, a, b, pa; not.pred pr, pb;', 32, 'pr', (x, y) =>
  BigInt(!(!(signed(x, 32) < signed(y, 32)) || (x & 1n) === 1n)),
);
add('mov.u32 r, 7; @pa mov.u32 r, 9;', 32, 'r', (x) => (x & 1n ? 9n : 7n));
add('mov.u32 r, 7; @!pa mov.u32 r, 9;', 32, 'r', (x) => (x & 1n ? 7n : 9n));
add(
  '{ .reg .pred q; setp.lt.u32 q, a, b; @q bra LESS; mov.u32 r, 1; bra DONE; LESS: mov.u32 r, 2; DONE: }',
  32,
  'r',
  (x, y) => (x < y ? 2n : 1n),
);

for (const [f, bits, r, a, b, c] of [
  ['f32', 32, 'r', 'a', 'b', 'c'],
  ['f64', 64, 'R', 'A', 'B', 'C'],
  ['f16', 16, 'rh', 'ah', 'bh', 'ch'],
  ['bf16', 16, 'rh', 'ah', 'bh', 'ch'],
]) {
  for (const name of ['add', 'sub', 'mul']) {
    add(`${name}.rn.${f} ${r}, ${a}, ${b};`, bits, r, float[name](f), f);
  }
  add(`fma.rn.${f} ${r}, ${a}, ${b}, ${c};`, bits, r, float.fma(f), f);
  add(`neg.${f} ${r}, ${a};`, bits, r, (x) => x ^ (1n << BigInt(bits - 1)));
  add(`abs.${f} ${r}, ${a};`, bits, r, (x) => x & mask(bits - 1));
  add(`min.${f} ${r}, ${a}, ${b};`, bits, r, float.extremum(f, false), f);
  add(`max.${f} ${r}, ${a}, ${b};`, bits, r, float.extremum(f, true), f);
  for (const test of [
    'eq',
    'ne',
    'lt',
    'le',
    'gt',
    'ge',
    'equ',
    'neu',
    'ltu',
    'leu',
    'gtu',
    'geu',
    'num',
    'nan',
  ]) {
    add(`setp.${test}.${f} pr, ${a}, ${b};`, bits, 'pr', (x, y) =>
      BigInt(float.compare(f, test)(x, y)),
    );
  }
  if (bits === 16) {
    add(`cvt.f32.${f} r, ${a};`, bits, 'r', float.convert(f, 'f32'), 'f32');
    add(`cvt.rn.${f}.f32 rh, a;`, 32, 'rh', float.convert('f32', f), f);
    const pair = (x, y) => [float.convert('f32', f)(x), float.convert('f32', f)(y)];
    add(`cvt.rn.${f}x2.f32 r, a, b;`, 32, 'r', (x, y) => {
      const [high, low] = pair(x, y).map((half) => half ?? 0x7fffn);
      return (high << 16n) | low;
    });
    const halves = (operation) => (x, y, z) => {
      const at = (i) => operation(...[x, y, z].map((w) => unsigned(w >> i, 16))) ?? 0x7fffn;
      return (at(16n) << 16n) | at(0n);
    };
    add(`fma.rn.${f}x2 r, a, b, c;`, 32, 'r', halves(float.fma(f)));
    add(`mul.rn.${f}x2 r, a, b;`, 32, 'r', halves(float.mul(f)));
  } else {
    add(`div.rn.${f} ${r}, ${a}, ${b};`, bits, r, float.div(f), f);
    add(`sqrt.rn.${f} ${r}, ${a};`, bits, r, float.sqrt(f), f);
    for (const to of [32, 64]) {
      const out = to === 32 ? 'r' : 'R';
      for (const rounding of ['rni', 'rzi', 'rmi', 'rpi']) {
        const nanIs = f === 'f64' || to === 64 ? 1n << BigInt(to - 1) : 0n;
        add(
          `cvt.${rounding}.s${to}.${f} ${out}, ${a};`,
          bits,
          out,
          float.toInteger(f, to, true, rounding, nanIs),
        );
        add(
          `cvt.${rounding}.u${to}.${f} ${out}, ${a};`,
          bits,
          out,
          float.toInteger(f, to, false, rounding, nanIs),
        );
      }
      const source = to === 32 ? 'a' : 'A';
      add(`cvt.rn.${f}.s${to} ${r}, ${source};`, to, r, float.fromInteger(to, true, f));
      add(`cvt.rn.${f}.u${to} ${r}, ${source};`, to, r, float.fromInteger(to, false, f));
    }
  }
}
add('cvt.rn.f32.f64 r, A;', 64, 'r', float.convert('f64', 'f32'), 'f32');
add('cvt.f64.f32 R, a;', 32, 'R', float.convert('f32', 'f64'), 'f64');
add('cvt.rna.tf32.f32 r, a;', 32, 'r', (x) => {
  const e = (x >> 23n) & 255n;
  if (e === 255n) return x & mask(23) ? 0x7fffffffn : x;
  return (x + 0x1000n) & ~0x1fffn & mask(32);
});
add('cvt.s32.s8 r, a;', 32, 'r', (x) => unsigned(signed(x, 8), 32));
add('cvt.u32.u8 r, a;', 32, 'r', (x) => x & 255n);
add('cvt.s64.s32 R, a;', 32, 'R', (x) => unsigned(signed(x, 32), 64));
add('cvt.u64.u32 R, a;', 32, 'R', (x) => x);
add('cvt.sat.s8.s32 r, a;', 32, 'r', (x) => {
  const v = signed(x, 32);
  return unsigned(v < -128n ? -128n : v > 127n ? 127n : v, 32);
});
add('cvt.sat.u8.s32 r, a;', 32, 'r', (x) => {
  const v = signed(x, 32);
  return v < 0n ? 0n : v > 255n ? 255n : v;
});

// Memory: the case's own scratch is its operands' place in global memory (at %rdin).
add('ld.global.u8 r, [IN+1];', 32, 'r', (x) => (x >> 8n) & 255n);
add('ld.global.s8 r, [IN+1];', 32, 'r', (x) => unsigned(signed(x >> 8n, 8), 32));
add('ld.global.s16 r, [IN+2];', 32, 'r', (x) => unsigned(signed(x >> 16n, 16), 32));
add(
  'ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {r, b, c, a}, [IN]; mov.u32 r, c;',
  32,
  'r',
  (_, y) => y,
);
add('st.local.u64 [SCRATCH+8], A; ld.local.u32 r, [SCRATCH+12];', 64, 'r', (x) => x >> 32n);
add('ld.const.u32 r, [TABLE+8];', 32, 'r', () => 33n);
add(
  'and.b32 a, a, 3; mul.wide.u32 A, a, 4; mov.u64 B, TABLE; add.s64 A, A, B; ld.const.u32 r, [A];',
  32,
  'r',
  (x) => 11n * ((x & 3n) + 1n),
);

// Warps: lanes 0 to 31 and 32 to 63.
const lanes = (f) => Object.assign(f, { perWarp: true });
add(
  'shfl.sync.idx.b32 r, a, 5, 31, -1;',
  32,
  'r',
  lanes((_, row, rows) => rows[(row & 32) + 5][0]),
);
add(
  'shfl.sync.bfly.b32 r|pr, a, 4, 31, -1;',
  32,
  'r',
  lanes((_, row, rows) => rows[row ^ 4][0]),
);
add(
  'shfl.sync.down.b32 r|pb, a, 3, 31, -1; @!pb mov.u32 r, 77;',
  32,
  'r',
  lanes((_, row, rows) => ((row & 31) + 3 < 32 ? rows[row + 3][0] : 77n)),
);
add(
  'shfl.sync.up.b32 r|pb, a, 3, 0x1000, -1;',
  32,
  'r',
  lanes((own, row, rows) => ((row & 15) >= 3 ? rows[row - 3][0] : own)),
);
const ballot = (row, rows) =>
  rows
    .slice(row & 32, (row & 32) + 32)
    .reduce((word_, [x], i) => word_ | ((x & 1n) << BigInt(i)), 0n);
add(
  'vote.sync.ballot.b32 r, pa, -1;',
  32,
  'r',
  lanes((_, row, rows) => ballot(row, rows)),
);
add(
  'vote.sync.any.pred pr, pa, -1;',
  32,
  'pr',
  lanes((_, row, rows) => BigInt(ballot(row, rows) !== 0n)),
);
add(
  'vote.sync.all.pred pr, pa, -1;',
  32,
  'pr',
  lanes((_, row, rows) => BigInt(ballot(row, rows) === mask(32))),
);
add(
  'redux.sync.add.s32 r, a, -1;',
  32,
  'r',
  lanes((_, row, rows) =>
    unsigned(
      rows.slice(row & 32, (row & 32) + 32).reduce((t, [x]) => t + x, 0n),
      32,
    ),
  ),
);

const kResults = {
  R: '',
  r: 'cvt.u64.u32 R, r;',
  rh: 'cvt.u64.u16 R, rh;',
  pr: 'selp.u64 R, 1, 0, pr;',
};

function kernelText({ text, out }, index) {
  return `
.visible .entry case_${index}(.param .align 8 .b8 p[16])
.maxntid ${kThreads}
{
  .local .align 16 .b8 SCRATCH[32];
  .reg .pred pa, pb, pr;
  .reg .b16 ah, bh, ch, rh;
  .reg .b32 a, b, c, r, t;
  .reg .b64 A, B, C, R, IN, OUT_AT;
  ld.param.u64 IN, [p];
  ld.param.u64 OUT_AT, [p+8];
  mov.u32 t, %tid.x;
  mad.wide.u32 IN, t, 32, IN;
  mad.wide.u32 OUT_AT, t, 8, OUT_AT;
  ld.global.v2.u64 {A, B}, [IN];
  ld.global.u64 C, [IN+16];
  cvt.u32.u64 a, A; cvt.u32.u64 b, B; cvt.u32.u64 c, C;
  cvt.u16.u64 ah, A; cvt.u16.u64 bh, B; cvt.u16.u64 ch, C;
  and.b32 t, a, 1;
  setp.ne.u32 pa, t, 0;
  ${text}
  ${kResults[out]}
  st.global.u64 [OUT_AT], R;
  ret;
}
`;
}

/** Any NaN of the format is right where the oracle says null. */
const kNanClass = { null: 0, f16: 1, bf16: 2, f32: 3, f64: 4 };

function table() {
  const rows = cases.map(({ text, bits, expect, nan }, index) => {
    const operands = operandRows(bits);
    const results = operands.map((row, i) =>
      expect.perWarp ? expect(row[0], i, operands) : expect(...row),
    );
    const words = operands.flatMap((row, i) =>
      [...row, results[i] ?? 0n].map((w) => `0x${w.toString(16)}u`),
    );
    const anyNaN = results.map((value) => (value === null ? '1' : '0')).join('');
    return `{"case_${index}", ${JSON.stringify(text)}, ${kNanClass[nan]}, "${anyNaN}", {${words.join(',')}}},`;
  });
  return `constexpr int kThreads = ${kThreads};\nconst InstructionCase kCases[] = {\n${rows.join('\n')}\n};\n`;
}

const [ptx, header] = process.argv.slice(2);
const head =
  '.version 8.7\n.target sm_90a\n.address_size 64\n.const .align 4 .b32 TABLE[4] = {11, 22, 33, 44};\n';
writeFileSync(ptx, head + cases.map(kernelText).join(''));
writeFileSync(header, table());
