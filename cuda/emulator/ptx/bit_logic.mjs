/** Logic and shifts: the bits of a word, whatever they mean. */
import { bitsOf, bitsType, isSigned, valueType } from './types.mjs';

function logic(symbol) {
  return (i, c) => {
    const type = i.type();
    const [x, y] = [1, 2].map((n) => c.bits(i.operand(n), type));
    return c.assignBits(i.operand(0), `${x} ${symbol} ${y}`);
  };
}

function shift(i, c) {
  const type = i.type();
  const amount = `uint32_t(${c.bits(i.operand(2), 'u32')})`;
  const x = c.value(i.operand(1), type);
  const name = i.name === 'shl' ? 'ShiftLeft' : 'ShiftRight';
  return c.assign(i.operand(0), type, `${name}<${valueType(type)}>(${x}, ${amount})`);
}

/** A word of two, as if they were one: l takes the upper end, r the lower. */
function funnel(i, c) {
  i.need('b32');
  const direction = i.need('l', 'r') === 'l' ? 'Left' : 'Right';
  const clamp = i.need('wrap', 'clamp') === 'clamp';
  const [low, high, amount] = [1, 2, 3].map((n) => `uint32_t(${c.bits(i.operand(n), 'b32')})`);
  const bound = clamp ? `std::min(${amount}, 32u)` : `(${amount} & 31)`;
  return c.assignBits(i.operand(0), `Funnel${direction}(${low}, ${high}, ${bound})`);
}

/**
 * A function of three words, bit by bit, given as its table: bit (4a + 2b + c) is its value. Split
 * at a, what is left are the 16 functions of b and c.
 */
export function lop3(table, a, b, c) {
  const ofTwo = (t) =>
    [
      '0u',
      `~(${b} | ${c})`,
      `(~${b} & ${c})`,
      `~${b}`,
      `(${b} & ~${c})`,
      `~${c}`,
      `(${b} ^ ${c})`,
      `~(${b} & ${c})`,
      `(${b} & ${c})`,
      `~(${b} ^ ${c})`,
      c,
      `(~${b} | ${c})`,
      b,
      `(${b} | ~${c})`,
      `(${b} | ${c})`,
      '~0u',
    ][t];
  const without = table & 15;
  const within = table >> 4;
  if (within === without) return ofTwo(within);
  if (within === (~without & 15)) return `${a} ^ ${ofTwo(without)}`;
  if (without === 0) return `${a} & ${ofTwo(within)}`;
  if (within === 0) return `~${a} & ${ofTwo(without)}`;
  if (without === 15) return `~${a} | ${ofTwo(within)}`;
  if (within === 15) return `${a} | ${ofTwo(without)}`;
  return `(${a} & ${ofTwo(within)}) | (~${a} & ${ofTwo(without)})`;
}

function logic3(i, c) {
  i.need('b32');
  const combine = i.take('or', 'and', 'xor');
  const words = [1, 2, 3].map((n) => `uint32_t(${c.bits(i.operand(n), 'b32')})`);
  const value = lop3(Number(i.operand(4)), ...words);
  if (!combine) return c.assignBits(i.operand(0), value);
  const [to, p] = i.operand(0).split('|');
  const result = c.temporary('word');
  const symbol = { or: '|', and: '&', xor: '^' }[combine];
  const test = `(${result} != 0) ${symbol} ${c.bits(i.operand(5), 'pred')}`;
  return `{ const uint32_t ${result} = ${value}; ${c.assignBits(to, result)} ${c.assign(p, 'pred', test)} }`;
}

function permute(i, c) {
  i.need('b32');
  const mode = i.take('f4e', 'b4e', 'rc8', 'ecl', 'ecr', 'rc16');
  const [a, b, selector] = [1, 2, 3].map((n) => `uint32_t(${c.bits(i.operand(n), 'b32')})`);
  const select = mode ? `Selector${mode.toUpperCase()}(${selector})` : selector;
  return c.assignBits(i.operand(0), `Permute(${a}, ${b}, ${select})`);
}

function count(formula) {
  return (i, c) => {
    const type = i.type();
    const bits = `${bitsType(type)}(${c.bits(i.operand(1), type)})`;
    return c.assignBits(i.operand(0), formula(bits, bitsOf(type)));
  };
}

export const bitLogic = {
  and: logic('&'),
  or: logic('|'),
  xor: logic('^'),
  not: (i, c) => {
    const type = i.type();
    const bits = c.bits(i.operand(1), type);
    return c.assignBits(i.operand(0), type === 'pred' ? `!${bits}` : `~${bits}`);
  },
  shl: shift,
  shr: shift,
  shf: funnel,
  lop3: logic3,
  prmt: permute,
  popc: count((x) => `uint32_t(__builtin_popcountll(${x}))`),
  clz: count((x, bits) => `LeadingZeros${bits}(${x})`),
  brev: count((x, bits) => `Reverse${bits}(${x})`),
  bfind: (i, c) => {
    const type = i.type();
    const shiftAmount = i.has('shiftamt');
    const x = c.value(i.operand(1), type);
    const bits = bitsOf(type);
    const magnitude = isSigned(type) ? `${bitsType(type)}(${x} < 0 ? ~${x} : ${x})` : x;
    const zeros = `LeadingZeros${bits}(${magnitude})`;
    const none = `${zeros} == ${bits} ? ~0u`;
    return c.assignBits(
      i.operand(0),
      shiftAmount ? `${none} : ${zeros}` : `${none} : ${bits - 1}u - ${zeros}`,
    );
  },
  bfe: (i, c) => {
    const type = i.type();
    const [position, length] = [2, 3].map((n) => `uint32_t(${c.bits(i.operand(n), 'u32')}) & 255`);
    const x = c.value(i.operand(1), type);
    return c.assign(
      i.operand(0),
      type,
      `Extract<${valueType(type)}>(${x}, ${position}, ${length})`,
    );
  },
  bfi: (i, c) => {
    const type = i.type();
    const [x, into] = [1, 2].map((n) => `${bitsType(type)}(${c.bits(i.operand(n), type)})`);
    const [position, length] = [3, 4].map((n) => `uint32_t(${c.bits(i.operand(n), 'u32')}) & 255`);
    return c.assignBits(i.operand(0), `Insert(${x}, ${into}, ${position}, ${length})`);
  },
  bmsk: (i, c) => {
    i.need('b32');
    const clamp = i.need('clamp', 'wrap') === 'clamp';
    const [position, length] = [1, 2].map((n) => `uint32_t(${c.bits(i.operand(n), 'b32')})`);
    return c.assignBits(i.operand(0), `Mask<${clamp}>(${position}, ${length})`);
  },
  szext: (i, c) => {
    const type = i.type();
    const clamp = i.need('clamp', 'wrap') === 'clamp';
    const x = c.value(i.operand(1), type);
    const width = `uint32_t(${c.bits(i.operand(2), 'u32')})`;
    return c.assign(i.operand(0), type, `ExtendFrom<${clamp}>(${x}, ${width})`);
  },
};
