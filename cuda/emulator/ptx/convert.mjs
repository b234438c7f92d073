/** cvt between any two number types, and cvta between address spaces. */
import { bitsOf, halfClass, isFloat, isHalf, isInteger, isPacked, valueType } from './types.mjs';

const kToWhole = {
  rni: 'std::nearbyint',
  rzi: 'std::trunc',
  rmi: 'std::floor',
  rpi: 'std::ceil',
};

function toPacked(i, c, to) {
  i.need('rn');
  const relu = i.has('relu');
  const half = halfClass(to);
  const word = (n) => {
    const value = `double(${c.value(i.operand(n), 'f32')})`;
    return `uint32_t(${half}::Round(${relu ? `Relu(${value})` : value}))`;
  };
  // The first source is the upper half.
  return c.assignBits(i.operand(0), `${word(1)} << 16 | ${word(2)}`);
}

function fromInteger(i, c, to, from) {
  const value = c.value(i.operand(1), from);
  if (isInteger(to)) {
    return c.assign(
      i.operand(0),
      to,
      i.has('sat') ? `SaturateTo<${valueType(to)}>(${value})` : value,
    );
  }
  i.need('rn'); // also what C++ does
  if (isHalf(to) && bitsOf(from) > 32) throw i.fail('a 64-bit integer rounded twice');
  return c.assign(i.operand(0), to, isHalf(to) ? `double(${value})` : value);
}

function fromFloat(i, c, to, from) {
  let value = c.value(i.operand(1), from);
  const flush = i.has('ftz');
  if (flush && from === 'f32') value = `Flush(${value})`;
  const whole = i.take(...Object.keys(kToWhole));
  if (whole) value = `${kToWhole[whole]}(${value})`;
  if (isInteger(to)) {
    if (!whole) throw i.fail('no rounding to an integer');
    i.skip('sat'); // always
    return c.assign(i.operand(0), to, `ToInteger<${valueType(to)}>(${value})`);
  }
  i.skip('rn');
  if (i.has('relu')) value = `Relu(${value})`;
  if (i.has('sat')) value = `Saturate(${value})`;
  if (to === 'tf32') throw i.fail('rounding to tf32');
  if (isHalf(to)) return c.assign(i.operand(0), to, `double(${value})`);
  value = `${valueType(to)}(${value})`;
  return c.assign(i.operand(0), to, flush && to === 'f32' ? `Flush(${value})` : value);
}

function convert(i, c) {
  const [to, from] = i.types();
  if (from === undefined) throw i.fail('no two types');
  if (to === 'tf32' && from === 'f32') {
    const mode = i.need('rna', 'rn') === 'rna' ? 'Away' : 'Even';
    return c.assignBits(i.operand(0), `TF32${mode}(${c.bits(i.operand(1), 'f32')})`);
  }
  if (isPacked(to) && from === 'f32') return toPacked(i, c, to);
  if (isInteger(from) && (isInteger(to) || isFloat(to) || isHalf(to))) {
    return fromInteger(i, c, to, from);
  }
  if ((isFloat(from) || isHalf(from)) && (isInteger(to) || isFloat(to) || isHalf(to))) {
    return fromFloat(i, c, to, from);
  }
  throw i.fail('a conversion that is not understood');
}

/** Generic addresses are host pointers; shared ones are offsets in the window. */
function convertAddress(i, c) {
  i.type();
  const to = i.has('to');
  const space = i.need('shared', 'shared::cta', 'global', 'local', 'const', 'param');
  const address = c.bits(i.operand(1), 'u64');
  if (!space.startsWith('shared')) return c.assignBits(i.operand(0), address);
  return c.assignBits(
    i.operand(0),
    to
      ? `SharedAddress(reinterpret_cast<const void*>(uint64_t(${address})))`
      : `reinterpret_cast<uint64_t>(thread->block->shared_window) + uint64_t(${address})`,
  );
}

export const convertInstructions = { cvt: convert, cvta: convertAddress };
