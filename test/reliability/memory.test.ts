/** What LoRA over a quantised base may cost, by the counters and by the memory of the process. */
import { expect, it } from 'vitest';
import { reportOf, runProgram, usePrograms } from './program.js';

usePrograms();

interface Report {
  packed: number;
  allowed: number;
  counters: number;
  resident: number;
  sample: number[];
}

const MIB = 2 ** 20;

it('LoRA over NF4 at 1024 x 4096 x 4096: packed weight, operands, saved state and 32 MiB', {
  timeout: 200_000,
}, async () => {
  const report = reportOf<Report>(await runProgram('memory-target', [], { timeout: 180_000 }));
  console.log(JSON.stringify(report));
  // 4 bits an element and a scale a block of 64, so the dense weight of 64 MiB cannot hide in it.
  expect(report.packed).toBeLessThan(9.1 * MIB);
  expect(report.sample.every(Number.isFinite)).toBe(true);
  expect(report.counters).toBeLessThanOrEqual(report.allowed + 32 * MIB);
  expect(report.resident).toBeLessThanOrEqual(report.allowed + 32 * MIB);
  // The counters see everything that was made.
  expect(report.counters).toBeGreaterThanOrEqual(report.allowed);
});
