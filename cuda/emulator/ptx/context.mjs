/**
 * A function while it is translated: what its names are called in C++, and how an operand is read
 * and written. Registers are unsigned integers of their width; a float is its bits.
 */
import { PtxError } from './parse.mjs';
import { bitsOf, bitsType, halfClass, isFloat, isHalf, isSigned, valueType } from './types.mjs';

/** Special registers, as members of the running thread. */
const kSpecial = {
  '%laneid': 'thread->lane',
  '%warpid': 'thread->warp',
  '%nwarpid': 'thread->block->warps',
  '%smid': '0u',
  '%nsmid': '1u',
  '%gridid': '0ull',
  '%clock': '0u',
  '%clock64': '0ull',
  '%globaltimer': '0ull',
  '%lanemask_eq': '(1u << thread->lane)',
  '%lanemask_lt': '((1u << thread->lane) - 1)',
  '%lanemask_le': '((2u << thread->lane) - 1)',
  '%lanemask_gt': '~((2u << thread->lane) - 1)',
  '%lanemask_ge': '~((1u << thread->lane) - 1)',
  '%cluster_ctarank': 'thread->block->cluster_rank',
  '%cluster_nctarank': 'thread->block->cluster_size',
  '%cluster_ctaid.x': 'thread->block->cluster_rank',
  '%cluster_ctaid.y': '0u',
  '%cluster_ctaid.z': '0u',
  '%cluster_nctaid.x': 'thread->block->cluster_size',
  '%cluster_nctaid.y': '1u',
  '%cluster_nctaid.z': '1u',
  '%clusterid.x': '(thread->block->block_idx.x / thread->block->cluster_size)',
  '%clusterid.y': 'thread->block->block_idx.y',
  '%clusterid.z': 'thread->block->block_idx.z',
  '%nclusterid.x': '(thread->block->grid_dim.x / thread->block->cluster_size)',
  '%dynamic_smem_size':
    '(thread->block->shared_bytes - uint32_t(thread->block->dynamic_shared - thread->block->shared_base))',
  '%total_smem_size': 'thread->block->shared_bytes',
  WARP_SZ: '32u',
};
for (const axis of 'xyz') {
  kSpecial[`%tid.${axis}`] = `thread->thread_idx.${axis}`;
  kSpecial[`%ntid.${axis}`] = `thread->block->block_dim.${axis}`;
  kSpecial[`%ctaid.${axis}`] = `thread->block->block_idx.${axis}`;
  kSpecial[`%nctaid.${axis}`] = `thread->block->grid_dim.${axis}`;
}

/** A literal as the bits of a type, in C++; undefined where it is none. */
export function literal(text, type) {
  const float = /^0[fF]([0-9a-fA-F]{8})$/.exec(text);
  const double = /^0[dD]([0-9a-fA-F]{16})$/.exec(text);
  if (float) return type === 'f64' ? `Bits(double(AsFloat(0x${float[1]}u)))` : `0x${float[1]}u`;
  if (double) {
    return type === 'f32' ? `Bits(float(AsDouble(0x${double[1]}ull)))` : `0x${double[1]}ull`;
  }
  if (/^-?\d+\.\d*([eE][+-]?\d+)?$/.test(text)) {
    return type === 'f32' ? `Bits(float(${text}))` : `Bits(double(${text}))`;
  }
  const integer = /^(-?)(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?$/.exec(text);
  if (!integer) return undefined;
  const digits = /^0\d/.test(integer[2]) ? `0o${integer[2].slice(1)}` : integer[2];
  const value = BigInt.asUintN(64, integer[1] ? -BigInt(digits) : BigInt(digits));
  if (type === 'pred') return value === 0n ? 'false' : 'true';
  const bits = bitsOf(type);
  if (bits >= 64) return `0x${value.toString(16)}ull`;
  return `0x${BigInt.asUintN(bits, value).toString(16)}u`;
}

/** An identifier of PTX as one of C++. */
export const identifier = (name) => name.replace(/^%/, '').replace(/[^A-Za-z0-9_]/g, '_');

export class Context {
  /**
   * @param module what all functions of the file share: symbols by name, { place: a C++ expression,
   *   space }, and the source lines
   * @param fn the function, as parsed
   */
  constructor(module, fn) {
    this.module = module;
    this.fn = fn;
    this.scope = null; // of the statement at hand
    this.site = 'Site{}';
    this.registers = []; // { type, name } of all, for their declaration
    this.symbols = new Map(); // the function's own: parameters
    this.temporaries = 0;
  }

  fail(message) {
    return new PtxError(this.line, message);
  }

  declareRegisters(type, names, scope) {
    for (const name of names) {
      const own = identifier(name) + (name.startsWith('%') && !scope.parent ? '' : `_${scope.id}`);
      scope.registers.set(name, { name: `r_${own}`, type });
      this.registers.push({ type, name: `r_${own}` });
    }
  }

  register(name) {
    return this.scope.find('registers', name);
  }

  /** A variable, parameter or function by name: { space, place }. */
  symbol(name) {
    return (
      this.scope?.find('variables', name) ?? this.symbols.get(name) ?? this.module.symbols.get(name)
    );
  }

  temporary(stem) {
    return `${stem}_${this.temporaries++}`;
  }

  /** The operand's bits, in C++. */
  bits(operand, type) {
    if (operand.startsWith('!')) return `(!${this.bits(operand.slice(1), 'pred')})`;
    if (operand.startsWith('-') && this.register(operand.slice(1))) {
      throw this.fail(`a negated register: ${operand}`);
    }
    const register = this.register(operand);
    if (register) return register.name;
    const special = kSpecial[operand];
    if (special !== undefined) return special;
    const number = literal(operand, type);
    if (number !== undefined) return number;
    const symbol = this.symbol(operand);
    if (symbol) return symbol.place;
    const offset = /^([\w$%]+)\s*\+\s*(\d+)$/.exec(operand);
    if (offset && this.symbol(offset[1])) return `(${this.symbol(offset[1]).place} + ${offset[2]})`;
    throw this.fail(`an operand that is not understood: ${operand}`);
  }

  /** The operand as a C++ value of the type: float, int32_t, ... A 16-bit float widens to double. */
  value(operand, type) {
    const bits = this.bits(operand, type);
    if (type === 'f32') return `AsFloat(uint32_t(${bits}))`;
    if (type === 'f64') return `AsDouble(uint64_t(${bits}))`;
    if (isHalf(type)) return `${halfClass(type)}::Widen(uint16_t(${bits}))`;
    if (type === 'pred') return bits;
    return `${valueType(type)}(${bits})`;
  }

  /** A statement that writes the value of an expression of the type to a register. */
  assign(operand, type, expression) {
    if (operand === '_') return `(void)(${expression});`;
    const register = this.register(operand);
    if (!register) throw this.fail(`no register to write: ${operand}`);
    if (isFloat(type)) return `${register.name} = Bits(${valueType(type)}(${expression}));`;
    if (isHalf(type)) return `${register.name} = ${halfClass(type)}::Round(${expression});`;
    if (type === 'pred') return `${register.name} = bool(${expression});`;
    let value = `${valueType(type)}(${expression})`;
    // A wider register takes the sign of a signed value.
    if (isSigned(type)) value = `int${bitsOf(register.type)}_t(${value})`;
    return `${register.name} = ${bitsType(register.type)}(${value});`;
  }

  /** A statement that writes bits to a register. */
  assignBits(operand, expression) {
    if (operand === '_') return `(void)(${expression});`;
    const register = this.register(operand);
    if (!register) throw this.fail(`no register to write: ${operand}`);
    return `${register.name} = ${bitsType(register.type)}(${expression});`;
  }

  /** The members of `{a, b}`, or the operand alone. */
  vector(operand) {
    if (!operand.startsWith('{')) return [operand];
    return operand
      .slice(1, -1)
      .split(',')
      .map((item) => item.trim());
  }

  /** `[base + offset]` as its two parts. */
  address(operand) {
    const match = /^\[\s*([\w$%]+)\s*(?:([+-])\s*(-?\w+))?\s*\]$/.exec(operand);
    if (!match) throw this.fail(`an address that is not understood: ${operand}`);
    const [, base, sign, offset] = match;
    return { base, offset: (sign === '-' ? -1 : 1) * Number(offset ?? 0) };
  }

  /** A shared address (an offset in the window), from `[...]`. */
  sharedAddress(operand) {
    const { base, offset } = this.address(operand);
    const place = `uint32_t(${this.bits(base, 'u32')})`;
    return offset === 0 ? place : `${place} + uint32_t(${offset})`;
  }

  /** An untyped host pointer, from `[...]` and its space. */
  pointer(operand, space) {
    if (space === 'shared') return `SharedAt(thread, ${this.sharedAddress(operand)}, ${this.site})`;
    const { base, offset } = this.address(operand);
    const plus = offset === 0 ? '' : ` + int64_t(${offset})`;
    return `reinterpret_cast<char*>(uint64_t(${this.bits(base, 'u64')})${plus})`;
  }

  /** The C++ label of a branch's target. */
  label(name) {
    const label = this.scope.find('labels', name);
    if (label === undefined) throw this.fail(`no label ${name}`);
    return label;
  }
}
