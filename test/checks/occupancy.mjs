/**
 * How many blocks of a kernel a multiprocessor holds, from the limits in CUDA's programming guide
 * (technical specifications per compute capability).
 */

/** Per multiprocessor; `sharedPerBlock` with opt-in. All have 65,536 registers and 1 KiB a block kept. */
export const kLimits = {
  80: { threads: 2048, blocks: 32, shared: 164 * 1024, sharedPerBlock: 163 * 1024 },
  86: { threads: 1536, blocks: 16, shared: 100 * 1024, sharedPerBlock: 99 * 1024 },
  89: { threads: 1536, blocks: 24, shared: 100 * 1024, sharedPerBlock: 99 * 1024 },
  '90a': { threads: 2048, blocks: 32, shared: 228 * 1024, sharedPerBlock: 227 * 1024 },
  100: { threads: 2048, blocks: 32, shared: 228 * 1024, sharedPerBlock: 227 * 1024 },
  120: { threads: 1536, blocks: 24, shared: 100 * 1024, sharedPerBlock: 99 * 1024 },
};
const kRegisters = 65536;
const kReservedShared = 1024;
const kWarp = 32;

const roundUp = (value, unit) => Math.ceil(value / unit) * unit;

/** @returns {{blocks: number, percent: number, limit: string}} blocks 0: it cannot be launched */
export function occupancy(arch, { threads, registers, sharedBytes }) {
  const limits = kLimits[arch];
  const warps = Math.ceil(threads / kWarp);
  // Registers are given out to a warp in units of 256, and a block's warps lie on four schedulers.
  const perWarp = roundUp(registers * kWarp, 256);
  const warpsByRegisters = Math.floor(kRegisters / 4 / perWarp) * 4;
  const byKind = {
    registers: Math.floor(warpsByRegisters / warps),
    shared:
      sharedBytes > limits.sharedPerBlock
        ? 0
        : Math.floor(limits.shared / roundUp(sharedBytes + kReservedShared, 128)),
    threads: Math.floor(limits.threads / kWarp / warps),
    blocks: limits.blocks,
  };
  const blocks = Math.min(...Object.values(byKind));
  const limit = Object.keys(byKind).find((kind) => byKind[kind] === blocks) ?? '';
  return { blocks, percent: Math.round((100 * blocks * warps * kWarp) / limits.threads), limit };
}
