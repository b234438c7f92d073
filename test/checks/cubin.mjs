/**
 * What a cubin says of its kernels, read from the ELF file itself: registers, stack, static shared
 * memory, and how often the instructions occur that its design rests on. No tool of the toolkit is
 * needed for it.
 */

/** Bits 0 to 11 of a 16-byte instruction; those cross-checked against PTX counts on sm_80. */
const kOpcodes = new Map([
  [0x23c, 'hmma'],
  [0x237, 'imma'],
  [0x83b, 'ldsm'],
  [0xfae, 'ldgsts'],
  [0x981, 'ldg'],
  [0x986, 'stg'],
  [0x983, 'ldl'],
  [0x387, 'stl'],
  [0x82d, 'launches'], // griddepcontrol.launch_dependents
  [0x82e, 'waits'], // griddepcontrol.wait
]);
const kNop = 0x918;
const kBranch = 0x947;
/** mma.sync of 16-bit floats and of bytes; wgmma with one operand in registers, and with none. */
const kMatrix = new Set([0x23c, 0x237, 0xdf0, 0x9f0]);
// Attributes in .nv.info: a function and a value.
const kFrameSize = 0x11;
const kRegisterCount = 0x2f;
/** From sm_90 on the section of a kernel's shared memory begins with what the system keeps. */
const kReserved = { section: '.nv.shared.reserved.0', bytes: 1024 };
/** The width of a load or store, bits 73 to 75. */
const kWidths = ['8', '8', '16', '16', '32', '64', '128', '?'];

function sectionsOf(elf) {
  const at = Number(elf.readBigUInt64LE(0x28));
  const [size, count, names] = [0x3a, 0x3c, 0x3e].map((offset) => elf.readUInt16LE(offset));
  const sections = Array.from({ length: count }, (_, i) => {
    const header = at + i * size;
    return {
      nameAt: elf.readUInt32LE(header),
      type: elf.readUInt32LE(header + 4),
      offset: Number(elf.readBigUInt64LE(header + 24)),
      bytes: Number(elf.readBigUInt64LE(header + 32)),
      name: '',
    };
  });
  const text = (offset) => elf.toString('latin1', offset, elf.indexOf(0, offset));
  for (const section of sections) section.name = text(sections[names].offset + section.nameAt);
  return sections;
}

/** The architecture it is for: 80 for sm_80, 90 for sm_90a. */
export function archOf(elf) {
  const flags = elf.readUInt32LE(0x30);
  return elf[8] >= 8 ? (flags >> 8) & 0xff : flags & 0xff;
}

/** Symbol index -> name. */
function symbolNames(elf, sections) {
  const table = sections.find(({ name }) => name === '.symtab');
  const strings = sections.find(({ name }) => name === '.strtab');
  if (!table || !strings) return [];
  return Array.from({ length: table.bytes / 24 }, (_, i) => {
    const at = strings.offset + elf.readUInt32LE(table.offset + i * 24);
    return elf.toString('latin1', at, elf.indexOf(0, at));
  });
}

/** The values of one attribute in .nv.info, by function. */
function attributes(elf, sections, wanted) {
  const values = new Map();
  const info = sections.find(({ name }) => name === '.nv.info');
  if (!info) return values;
  const names = symbolNames(elf, sections);
  for (let at = info.offset; at < info.offset + info.bytes; ) {
    const [format, attribute] = [elf[at], elf[at + 1]];
    const bytes = format === 4 ? elf.readUInt16LE(at + 2) : 0;
    if (attribute === wanted) {
      values.set(names[elf.readUInt32LE(at + 4)], elf.readUInt32LE(at + 8));
    }
    at += 4 + bytes;
  }
  return values;
}

/**
 * @returns {Map<string, {registers: number, stack: number, staticShared: number, sass: Record<string, number>,
 *   touchesFirst: boolean}>} touchesFirst: an access of global memory stands before every wait
 */
export function readCubin(elf) {
  const sections = sectionsOf(elf);
  const stack = attributes(elf, sections, kFrameSize);
  const registers = attributes(elf, sections, kRegisterCount);
  const reserved = sections.some(({ name }) => name === kReserved.section) ? kReserved.bytes : 0;
  const kernels = new Map();
  for (const { name, offset, bytes } of sections) {
    if (!name.startsWith('.text.')) continue;
    const kernel = name.slice('.text.'.length);
    const sass = { instructions: 0 };
    let touchesFirst = false;
    for (let at = offset; at < offset + bytes; at += 16) {
      const opcode = elf.readUInt16LE(at) & 0xfff;
      if (opcode === kNop) continue;
      sass.instructions++;
      let counted = kOpcodes.get(opcode);
      if (counted === undefined) continue;
      touchesFirst ||= /^(ldg|stg|ldgsts)$/.test(counted) && sass.waits === undefined;
      if (counted === 'ldg' || counted === 'stg') counted += `.${kWidths[(elf[at + 9] >> 1) & 7]}`;
      sass[counted] = (sass[counted] ?? 0) + 1;
    }
    const shared = sections.find((section) => section.name === `.nv.shared.${kernel}`);
    kernels.set(kernel, {
      registers: registers.get(kernel) ?? 0,
      stack: stack.get(kernel) ?? 0,
      staticShared: Math.max((shared?.bytes ?? 0) - reserved, 0),
      sass,
      touchesFirst,
    });
  }
  return kernels;
}

/**
 * Where a branch leads, by instruction. Its distance from the next one, in fourths of an instruction, has its
 * lowest eight bits at bit 16 and the others from bit 34 on.
 */
function targetOf(elf, offset, index) {
  const at = offset + 16 * index;
  const high = BigInt.asIntN(
    48,
    (elf.readBigUInt64LE(at + 8) << 30n) | (elf.readBigUInt64LE(at) >> 34n),
  );
  return index + 1 + (Number(high) * 256 + elf[at + 2]) / 4;
}

/**
 * The main loop of each kernel that has one: of its loops the one with most matrix instructions among its own.
 * @returns {Map<string, {before: number, instructions: number}>} before: instructions that precede it
 */
export function mainLoops(elf) {
  const loops = new Map();
  for (const { name, offset, bytes } of sectionsOf(elf)) {
    if (!name.startsWith('.text.')) continue;
    const opcodes = Array.from(
      { length: bytes / 16 },
      (_, i) => elf.readUInt16LE(offset + 16 * i) & 0xfff,
    );
    let best = { share: 0 };
    opcodes.forEach((opcode, end) => {
      if (opcode !== kBranch) return;
      const before = targetOf(elf, offset, end);
      const loop = opcodes.slice(before, end + 1);
      const share = loop.filter((one) => kMatrix.has(one)).length / loop.length;
      if (share > best.share) best = { share, before, instructions: loop.length };
    });
    const { share, ...loop } = best;
    if (share > 0) loops.set(name.slice('.text.'.length), loop);
  }
  return loops;
}
