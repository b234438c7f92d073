/** Streams, flushing and workspaces of the caller's: what every device answers, and a GPU does. */
import { describe, expect, it } from 'vitest';
import {
  type Device,
  devices,
  flush,
  flushSync,
  LowrankError,
  matmul,
  quantize,
  reserveWorkspace,
  scope,
  Tensor,
  useStream,
  withStream,
  workspaceBytes,
} from '../../lib/index.js';
import { exact } from '../oracle.js';

const available = devices()
  .filter((row) => row.available)
  .map(({ device }) => device);
const gpus = available.filter((device) => device.startsWith('cuda'));
if (gpus.length === 0) console.warn('no CUDA device and no emulator: only refusals are tried');

/** The legacy default stream, which every driver has under this handle. */
const LEGACY_STREAM = 1n;

function codeOf(body: () => unknown): string {
  try {
    body();
  } catch (error) {
    return (error as LowrankError).code;
  }
  return 'nothing';
}

describe('a host device', () => {
  it.each(['cpu', 'reference'] as const)('%s has no streams and no workspace', async (device) => {
    expect(codeOf(() => useStream(device, LEGACY_STREAM))).toBe('ERR_UNSUPPORTED');
    expect(codeOf(() => useStream(device, null))).toBe('ERR_UNSUPPORTED');
    expect(workspaceBytes(device)).toBe(0);
    await reserveWorkspace(device, 1 << 20);
    expect(workspaceBytes(device)).toBe(0);
    await flush(device);
    flushSync(device);
  });
});

describe.each(gpus)('%s', (device: Device) => {
  it('refuses what is no stream', async () => {
    expect(codeOf(() => useStream(device, 1 as unknown as bigint))).toBe('ERR_TYPE');
    expect(codeOf(() => useStream(device, 0n))).toBe('ERR_VALUE');
    expect(codeOf(() => useStream(device, 2n ** 64n))).toBe('ERR_VALUE');
    expect(codeOf(() => useStream('gpu' as Device, null))).toBe('ERR_DEVICE');
    await expect(reserveWorkspace(device, -1)).rejects.toMatchObject({ code: 'ERR_VALUE' });
    await expect(reserveWorkspace(device, '1' as unknown as number)).rejects.toMatchObject({
      code: 'ERR_TYPE',
    });
  });

  it("computes on the caller's stream and goes back", async () => {
    await scope(async () => {
      const x = Tensor.from([1, 2, 3, 4], [2, 2], { device });
      const y = withStream(device, LEGACY_STREAM, () => matmul(x, x));
      flushSync(device);
      const z = matmul(y, x);
      exact('on both', await z.read(), [27, 59, 61, 133]);
      expect(() =>
        withStream(device, LEGACY_STREAM, () => {
          throw new RangeError('of the body');
        }),
      ).toThrow(RangeError);
      exact('after it', await matmul(x, x).read(), [5, 11, 11, 25]);
    });
  });

  it('grows a workspace before, and then not in an op', async () => {
    await reserveWorkspace(device, 5 << 20);
    const bytes = workspaceBytes(device);
    expect(bytes).toBeGreaterThanOrEqual(5 << 20);
    await scope(async () => {
      const w = Tensor.randn([64, 64], { seed: 1, device });
      await quantize(w, { format: 'nf4', doubleQuant: true }).toBitsandbytes();
    });
    expect(workspaceBytes(device)).toBe(bytes);
  });

  it('takes no pointer that is not its own', () => {
    expect(codeOf(() => Tensor.wrap(4096n, [1], { device }))).toBe('ERR_VALUE');
  });

  it('refuses a workspace larger than its memory', async () => {
    const error = await reserveWorkspace(device, 2 ** 50).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(LowrankError);
    expect((error as LowrankError).code).toBe('ERR_OOM');
    // The device goes on, with as much as an op needs.
    await scope(async () => {
      const w = Tensor.randn([64, 64], { seed: 1, device });
      await quantize(w, { format: 'nf4', doubleQuant: true }).toBitsandbytes();
      exact('after it', await Tensor.from([7], [1], { device }).read(), [7]);
    });
  });
});
