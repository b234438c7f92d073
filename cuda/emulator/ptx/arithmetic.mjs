/** Integer and floating-point arithmetic, logic, comparison and selection. */
import { bitLogic } from './bit_logic.mjs';
import {
  bitsOf,
  bitsType,
  halfClass,
  isFloat,
  isHalf,
  isInteger,
  isPacked,
  isSigned,
  valueType,
} from './types.mjs';

/** An expression under .ftz and .sat, both of f32. */
function shaped(i, type, expression, flush) {
  const saturate = i.has('sat');
  let result = flush ? `Flush(${expression})` : expression;
  if (saturate) {
    if (!isFloat(type)) throw i.fail('.sat of a type where it is not understood');
    result = `Saturate(${result})`;
  }
  return result;
}

/** A float instruction of n operands; `formula` gets C++ values. */
function floating(i, c, type, count, formula) {
  i.skip('rn', 'approx', 'full'); // correctly rounded where the hardware is only near
  const flush = i.has('ftz');
  if (flush && type !== 'f32') throw i.fail('.ftz of a type where it is not understood');
  const read = (n) => {
    const value = c.value(i.operand(n), type);
    return flush ? `Flush(${value})` : value;
  };
  const values = Array.from({ length: count }, (_, n) => read(n + 1));
  return c.assign(i.operand(0), type, shaped(i, type, formula(...values), flush));
}

/** Both halves of f16x2 or bf16x2; `formula` gets doubles and is rounded once. */
function packed(i, c, type, count, formula) {
  i.skip('rn');
  const half = halfClass(type);
  const words = Array.from({ length: count }, (_, n) => c.bits(i.operand(n + 1), type));
  const part = (shift) =>
    `uint32_t(${half}::Round(${formula(...words.map((w) => `${half}::Widen(uint16_t(${w} >> ${shift}))`))})) << ${shift}`;
  return c.assignBits(i.operand(0), `(${part(0)}) | (${part(16)})`);
}

/** What holds for any type: the formula of floats, and that of unsigned integers, which wrap. */
function binary(symbol) {
  return (i, c) => {
    const type = i.type();
    if (isPacked(type)) return packed(i, c, type, 2, (x, y) => `${x} ${symbol} ${y}`);
    if (isFloat(type) || isHalf(type)) {
      return floating(i, c, type, 2, (x, y) => `${x} ${symbol} ${y}`);
    }
    const [x, y] = [1, 2].map((n) => c.value(i.operand(n), type));
    if (i.has('sat')) {
      return c.assign(i.operand(0), type, `SaturateS32(int64_t(${x}) ${symbol} int64_t(${y}))`);
    }
    const unsigned = bitsType(type);
    const carry = i.has('cc');
    const [ux, uy] = [`${unsigned}(${x})`, `${unsigned}(${y})`];
    const flag =
      symbol === '+' ? `carry = ${unsigned}(${ux} + ${uy}) < ${ux};` : `carry = ${ux} < ${uy};`;
    return (carry ? `${flag} ` : '') + c.assign(i.operand(0), type, `${ux} ${symbol} ${uy}`);
  };
}

/** addc, subc: with the carry or borrow of an .cc before. */
function withCarry(symbol) {
  return (i, c) => {
    const type = i.type();
    const wide = bitsOf(type) === 64 ? 'uint128_t' : 'uint64_t';
    const [x, y] = [1, 2].map((n) => `${wide}(${bitsType(type)}(${c.bits(i.operand(n), type)}))`);
    const sum = c.temporary('sum');
    const out = i.has('cc') ? `carry = (${sum} >> ${bitsOf(type)}) & 1;` : '';
    return `{ const ${wide} ${sum} = ${x} ${symbol} ${y} ${symbol} carry; ${out} ${c.assign(i.operand(0), type, sum)} }`;
  };
}

/** The product of two integers in twice their width. */
function product(c, i, type) {
  const bits = bitsOf(type);
  const wide = `${isSigned(type) ? '' : 'u'}int${bits * 2}_t`;
  return [1, 2].map((n) => `${wide}(${c.value(i.operand(n), type)})`).join(' * ');
}

function multiply(i, c) {
  const type = i.type();
  const add = i.name !== 'mul';
  if (isPacked(type)) return packed(i, c, type, 2, (x, y) => `${x} * ${y}`);
  if (isFloat(type)) {
    if (add) return fused(i, c, type);
    return floating(i, c, type, 2, (x, y) => `${x} * ${y}`);
  }
  if (isHalf(type)) return floating(i, c, type, 2, (x, y) => `${x} * ${y}`);
  const part = i.need('lo', 'hi', 'wide');
  const bits = bitsOf(type);
  // In uint64_t: no promotion to int, whose overflow C++ leaves undefined.
  if (part === 'lo') {
    const [x, y] = [1, 2].map((n) => `uint64_t(${c.value(i.operand(n), type)})`);
    const sum = add ? ` + uint64_t(${c.value(i.operand(3), type)})` : '';
    if (i.has('cc')) throw i.fail('.cc of a product');
    return c.assign(i.operand(0), type, `${x} * ${y}${sum}`);
  }
  if (part === 'hi') {
    const high = `${bitsType(type)}((${product(c, i, type)}) >> ${bits})`;
    const sum = add ? ` + ${bitsType(type)}(${c.bits(i.operand(3), type)})` : '';
    if (i.has('sat')) throw i.fail('.sat of a product');
    return c.assign(i.operand(0), type, `${high}${sum}`);
  }
  const wideType = `${isSigned(type) ? 's' : 'u'}${bits * 2}`;
  const unsigned = bitsType(wideType);
  const sum = add ? ` + ${unsigned}(${c.bits(i.operand(3), wideType)})` : '';
  return c.assign(i.operand(0), wideType, `${unsigned}(${product(c, i, type)})${sum}`);
}

function fused(i, c, type) {
  const relu = i.has('relu');
  const fma = (half) => (x, y, z) => {
    const value = `${half}::Fma(${x}, ${y}, ${z})`;
    return relu ? `Relu(${value})` : value;
  };
  if (isPacked(type)) return packed(i, c, type, 3, fma(halfClass(type)));
  if (isHalf(type)) return floating(i, c, type, 3, fma(halfClass(type)));
  return floating(i, c, type, 3, (x, y, z) => `std::fma(${x}, ${y}, ${z})`);
}

function divide(i, c) {
  const type = i.type();
  if (isFloat(type)) return floating(i, c, type, 2, (x, y) => `${x} / ${y}`);
  const [x, y] = [1, 2].map((n) => c.value(i.operand(n), type));
  return c.assign(i.operand(0), type, `${i.name === 'div' ? 'Quotient' : 'Remainder'}(${x}, ${y})`);
}

function extremum(i, c) {
  const type = i.type();
  const name = i.name === 'min' ? 'Min' : 'Max';
  if (isInteger(type)) {
    const [x, y] = [1, 2].map((n) => c.value(i.operand(n), type));
    return c.assign(i.operand(0), type, `std::${i.name}<${valueType(type)}>(${x}, ${y})`);
  }
  const keep = i.has('NaN') ? 'NaN' : '';
  const formula = (x, y) => `${name}${keep}(${x}, ${y})`;
  if (isPacked(type)) return packed(i, c, type, 2, formula);
  return floating(i, c, type, 2, formula);
}

const floatOnly = (formula) => (i, c) => {
  const type = i.type();
  if (!isFloat(type) && !isHalf(type)) throw i.fail('a type that is not understood');
  return floating(i, c, type, 1, formula);
};

/** neg and abs act on the sign bit of a float, also of a NaN. */
function signBit(operation) {
  return (i, c) => {
    const type = i.type();
    if (isInteger(type)) {
      const x = c.value(i.operand(1), type);
      const negative = `${bitsType(type)}(0) - ${bitsType(type)}(${x})`;
      const value =
        operation === 'neg' ? negative : `${x} < 0 ? ${negative} : ${bitsType(type)}(${x})`;
      return c.assign(i.operand(0), type, value);
    }
    if (i.has('ftz')) throw i.fail('.ftz of a sign');
    const mask = isPacked(type) ? 0x80008000n : 1n << BigInt(bitsOf(type) - 1);
    const bits = c.bits(i.operand(1), type);
    const literal = `${bitsType(type)}(0x${mask.toString(16)}ull)`;
    return c.assignBits(
      i.operand(0),
      operation === 'neg' ? `${bits} ^ ${literal}` : `${bits} & ${bitsType(type)}(~${literal})`,
    );
  };
}

const kComparisons = {
  ...{ eq: '==', ne: '!=', lt: '<', le: '<=', gt: '>', ge: '>=' },
  ...{ lo: '<', ls: '<=', hi: '>', hs: '>=' },
};

/** A comparison of two values; floats have an unordered form of each, ending in u. */
function comparison(i, type, x, y) {
  const float = isFloat(type) || isHalf(type);
  const name = i.need(
    ...Object.keys(kComparisons),
    ...(float ? ['equ', 'neu', 'ltu', 'leu', 'gtu', 'geu', 'num', 'nan'] : []),
  );
  if (!float) return `${x} ${kComparisons[name]} ${y}`;
  if (name === 'num') return `Ordered(${x}, ${y})`;
  if (name === 'nan') return `!Ordered(${x}, ${y})`;
  if (kComparisons[name]) {
    const test = `${x} ${kComparisons[name]} ${y}`;
    return name === 'ne' ? `Ordered(${x}, ${y}) && ${test}` : test;
  }
  return `!Ordered(${x}, ${y}) || ${x} ${kComparisons[name.slice(0, -1)]} ${y}`;
}

function setPredicate(i, c) {
  const type = i.type();
  if (isPacked(type)) throw i.fail('a comparison of two halves');
  const flush = i.has('ftz');
  const [x, y] = [1, 2].map((n) => {
    const value = c.value(i.operand(n), type);
    return flush && type === 'f32' ? `Flush(${value})` : value;
  });
  const test = comparison(i, type, x, y);
  const combine = i.take('and', 'or', 'xor');
  const with_ = (value) =>
    combine
      ? `bool(${value}) ${{ and: '&', or: '|', xor: '^' }[combine]} ${c.bits(i.operand(3), 'pred')}`
      : value;
  const [p, q] = i.operand(0).split('|');
  if (q === undefined) return c.assign(p, 'pred', with_(test));
  const result = c.temporary('test');
  return `{ const bool ${result} = ${test}; ${c.assign(p, 'pred', with_(result))} ${c.assign(q, 'pred', with_(`!${result}`))} }`;
}

/** set: a comparison as all ones or 1.0 in a register. */
function setValue(i, c) {
  const [to, from] = i.types();
  if (from === undefined) throw i.fail('one type');
  const [x, y] = [1, 2].map((n) => c.value(i.operand(n), from));
  const test = comparison(i, from, x, y);
  const yes = to === 'f32' ? '0x3f800000u' : '0xffffffffu';
  return c.assignBits(i.operand(0), `${test} ? ${yes} : 0u`);
}

function select(i, c) {
  const type = i.type();
  const [x, y] = [1, 2].map((n) => c.bits(i.operand(n), type));
  return c.assignBits(i.operand(0), `${c.bits(i.operand(3), 'pred')} ? ${x} : ${y}`);
}

function move(i, c) {
  const type = i.type();
  const [to, from] = [i.operand(0), i.operand(1)];
  if (from.startsWith('{')) {
    const parts = c.vector(from);
    const bits = bitsOf(type) / parts.length;
    const whole = bitsType(type);
    const unsigned = `u${bits}`;
    const words = parts.map(
      (part, n) => `${whole}(${bitsType(unsigned)}(${c.bits(part, unsigned)})) << ${n * bits}`,
    );
    return c.assignBits(to, words.map((word) => `(${word})`).join(' | '));
  }
  if (to.startsWith('{')) {
    const parts = c.vector(to);
    const bits = bitsOf(type) / parts.length;
    const whole = c.temporary('whole');
    const writes = parts.map((part, n) => c.assignBits(part, `${whole} >> ${n * bits}`));
    return `{ const ${bitsType(type)} ${whole} = ${c.bits(from, type)}; ${writes.join(' ')} }`;
  }
  return c.assignBits(to, c.bits(from, type));
}

export const arithmetic = {
  ...bitLogic,
  mov: move,
  add: binary('+'),
  sub: binary('-'),
  addc: withCarry('+'),
  subc: withCarry('-'),
  mul: multiply,
  mad: multiply,
  fma: (i, c) => fused(i, c, i.type()),
  div: divide,
  rem: divide,
  min: extremum,
  max: extremum,
  neg: signBit('neg'),
  abs: signBit('abs'),
  rcp: floatOnly((x) => `1 / ${x}`),
  sqrt: floatOnly((x) => `std::sqrt(${x})`),
  rsqrt: floatOnly((x) => `1 / std::sqrt(${x})`),
  ex2: floatOnly((x) => `std::exp2(${x})`),
  lg2: floatOnly((x) => `std::log2(${x})`),
  sin: floatOnly((x) => `std::sin(${x})`),
  cos: floatOnly((x) => `std::cos(${x})`),
  tanh: floatOnly((x) => `std::tanh(${x})`),
  copysign: (i, c) => {
    const type = i.type();
    // PTX takes the sign of its first operand.
    const [x, y] = [1, 2].map((n) => c.value(i.operand(n), type));
    return c.assign(i.operand(0), type, `std::copysign(${y}, ${x})`);
  },
  testp: (i, c) => {
    const type = i.type();
    const kind = i.need('finite', 'infinite', 'number', 'notanumber', 'normal', 'subnormal');
    const x = c.value(i.operand(1), type);
    const test = {
      finite: `std::isfinite(${x})`,
      infinite: `std::isinf(${x})`,
      number: `!std::isnan(${x})`,
      notanumber: `std::isnan(${x})`,
      normal: `std::isnormal(${x})`,
      subnormal: `std::fpclassify(${x}) == FP_SUBNORMAL`,
    }[kind];
    return c.assign(i.operand(0), 'pred', test);
  },
  setp: setPredicate,
  set: setValue,
  selp: select,
  slct: (i, c) => {
    const [type, condition] = i.types();
    const [x, y] = [1, 2].map((n) => c.bits(i.operand(n), type));
    return c.assignBits(i.operand(0), `${c.value(i.operand(3), condition)} >= 0 ? ${x} : ${y}`);
  },
  cnot: (i, c) => {
    const type = i.type();
    return c.assign(i.operand(0), type, `${c.bits(i.operand(1), type)} == 0`);
  },
  sad: (i, c) => {
    const type = i.type();
    const [x, y, z] = [1, 2, 3].map((n) => c.value(i.operand(n), type));
    const unsigned = bitsType(type);
    const distance = `${x} > ${y} ? ${unsigned}(${x}) - ${unsigned}(${y}) : ${unsigned}(${y}) - ${unsigned}(${x})`;
    return c.assign(i.operand(0), type, `${unsigned}(${z}) + (${distance})`);
  },
  mul24: (i, c) => {
    const type = i.type();
    i.need('lo');
    const [x, y] = [1, 2].map((n) => `Low24(${c.value(i.operand(n), type)})`);
    return c.assign(i.operand(0), type, `uint32_t(${x}) * uint32_t(${y})`);
  },
  dp4a: (i, c) => {
    const [x, y] = i.types();
    const [a, b, sum] = [1, 2, 3].map((n) => `uint32_t(${c.bits(i.operand(n), 'b32')})`);
    const signs = [x, y].map((type) => isSigned(type));
    return c.assignBits(i.operand(0), `DotBytes<${signs}>(${a}, ${b}, ${sum})`);
  },
  dp2a: (i, c) => {
    const first = i.need('lo', 'hi') === 'lo' ? 0 : 2;
    const [x, y] = i.types();
    const [a, b, sum] = [1, 2, 3].map((n) => `uint32_t(${c.bits(i.operand(n), 'b32')})`);
    const signs = [x, y].map((type) => isSigned(type));
    return c.assignBits(i.operand(0), `DotHalves<${first}, ${signs}>(${a}, ${b}, ${sum})`);
  },
};
