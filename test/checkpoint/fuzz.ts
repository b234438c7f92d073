/** What the fuzzers of file formats share. */

/** Inputs of a run. */
export const kFuzzInputs = Number(process.env.LOWRANK_FUZZ_INPUTS ?? 20_000);
export const kFuzzSeed = Number(process.env.LOWRANK_FUZZ_SEED ?? 1);

/** mulberry32: small, seeded, good enough to choose mutations. */
export function generator(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

/** Time of the processor that this process has taken: other programs on the machine do not count. */
export function cpu_ms(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}
