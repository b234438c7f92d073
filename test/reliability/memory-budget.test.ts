/** A call that needs more memory than the budget is refused before a byte of it is taken. */
import { afterEach, describe, expect, it } from 'vitest';
import {
  type Device,
  deviceInfo,
  devices,
  type LowrankError,
  memoryUsage,
  setMemoryBudget,
  synchronize,
  Tensor,
} from '../../lib/index.js';
import { codeOf } from '../checkpoint/raw-file.js';
import { reportOf, runProgram, TIME_SCALE, usePrograms } from './program.js';

usePrograms();

const DEVICES: readonly Device[] = devices()
  .filter(({ available }) => available)
  .map(({ device }) => device);

describe.each(DEVICES)('the budget of %s', (device) => {
  afterEach(() => setMemoryBudget(null, device));

  it('names what is live, needed and allowed, and takes nothing', async () => {
    await synchronize(device);
    using kept = Tensor.from([1, 2, 3, 4], [4], { device });
    const before = memoryUsage(device);
    setMemoryBudget(before.liveBytes + 1000, device);
    const { code, message } = (() => {
      try {
        Tensor.zeros([16, 16], { device }).dispose();
      } catch (error) {
        return error as LowrankError;
      }
      throw new Error('not refused');
    })();
    expect(code).toBe('ERR_MEMORY_BUDGET');
    expect(message).toContain(
      `at most ${before.liveBytes + 1000} bytes, its budget (setMemoryBudget, LOWRANK_MEMORY_LIMIT)`,
    );
    expect(message).toContain(`got ${before.liveBytes} live bytes and 1024 more`);
    expect(memoryUsage(device)).toEqual(before);
    // What fits, to the byte, is served; what is live stays whole.
    Tensor.zeros([250], { device }).dispose();
    await synchronize(device);
    expect(codeOf(() => Tensor.zeros([251], { device }))).toBe('ERR_MEMORY_BUDGET');
    expect([...(await kept.read())]).toEqual([1, 2, 3, 4]);
  });

  it('refuses every size from 2^20 to 2^33 elements at once', () => {
    setMemoryBudget(2 ** 20, device);
    const start = performance.now();
    for (let power = 20; power <= 33; power++) {
      expect(
        codeOf(() => Tensor.zeros([2 ** power], { device })),
        `2^${power}`,
      ).toBe('ERR_MEMORY_BUDGET');
    }
    expect((performance.now() - start) / 14).toBeLessThan(5 * TIME_SCALE);
    for (const power of [34, 40, 53]) {
      expect(
        codeOf(() => Tensor.zeros([2 ** power], { device })),
        `2^${power}`,
      ).toBe('ERR_SHAPE');
    }
  });

  it('shows as the memory of the device, and ends with null', async () => {
    setMemoryBudget(12_345, device);
    expect(deviceInfo(device).memory).toBe(12_345);
    setMemoryBudget(null, device);
    expect(deviceInfo(device).memory).toBeGreaterThan(2 ** 30);
    Tensor.zeros([2 ** 16], { device }).dispose();
    await synchronize(device);
  });
});

describe('setMemoryBudget', () => {
  it.each([-1, 1.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53])('refuses %s', (bytes) => {
    expect(codeOf(() => setMemoryBudget(bytes, 'cpu'))).toBe('ERR_VALUE');
  });

  it('refuses other types and devices', () => {
    expect(codeOf(() => setMemoryBudget('1G' as never, 'cpu'))).toBe('ERR_TYPE');
    expect(codeOf(() => setMemoryBudget(1, 'tpu' as never))).toBe('ERR_DEVICE');
  });
});

describe('LOWRANK_MEMORY_LIMIT', () => {
  const under = async (limit: string) =>
    reportOf<{ memory: number[]; codes: string[]; liveBytes: number }>(
      await runProgram('memory-limit', [], { env: { LOWRANK_MEMORY_LIMIT: limit } }),
    );

  it.each([
    ['3000000', 3_000_000],
    ['512K', 512 * 1024],
    ['3M', 3 * 2 ** 20],
    ['0', 0],
  ])('%s', async (limit, bytes) => {
    const { memory, codes, liveBytes } = await under(limit);
    expect(memory).toEqual([bytes, bytes]);
    expect(codes).toEqual(['ERR_MEMORY_BUDGET', 'ERR_MEMORY_BUDGET']);
    expect(liveBytes).toBe(0);
  });

  it.each(['lots', '1.5G', '-1', '1GB', '9999999T'])('refuses %s', async (limit) => {
    expect((await under(limit)).codes).toEqual(['ERR_VALUE', 'ERR_VALUE']);
  });
});
