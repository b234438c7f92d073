// Bad input to calls that take no tensors, and that messages name the call that was made.
import { describe, expect, it, vi } from 'vitest';
import {
  activeTokens,
  getThreads,
  invocationOffsets,
  LoraAdapter,
  scope,
  setThreads,
  Tensor,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { bad, callWith, checkCases } from './harness.js';

describe.each(DEVICES)('bad input on %s', (device) => {
  it('scope and setThreads', async () => {
    const threads = getThreads();
    await checkCases('calls', device, {
      watched: [],
      cases: [
        bad(1, 'scope: no arguments', 'ERR_TYPE', () => callWith(scope)),
        bad(2, 'scope: null', 'ERR_TYPE', () => callWith(scope, null)),
        bad(3, 'scope: a number', 'ERR_TYPE', () => callWith(scope, 3)),
        bad(3, 'scope: a promise', 'ERR_TYPE', () => callWith(scope, Promise.resolve())),
        bad(1, 'setThreads: no arguments', 'ERR_TYPE', () => callWith(setThreads)),
        bad(3, 'setThreads: a string', 'ERR_TYPE', () => callWith(setThreads, '2')),
        bad(14, 'setThreads: 0', 'ERR_VALUE', () => setThreads(0)),
        bad(15, 'setThreads: negative', 'ERR_VALUE', () => setThreads(-3)),
        bad(16, 'setThreads: a fraction', 'ERR_VALUE', () => setThreads(1.5)),
        bad(17, 'setThreads: NaN', 'ERR_VALUE', () => setThreads(Number.NaN)),
        bad(18, 'setThreads: 2^32 + 1', 'ERR_VALUE', () => setThreads(2 ** 32 + 1)),
      ],
      valid: async () => [[getThreads()]],
    });
    expect(getThreads()).toBe(threads);
    expect(() => setThreads(0)).toThrow(/^setThreads: n must be an integer from 1 to 256, got 0$/);
  });

  it('invocationOffsets and activeTokens', async () => {
    const noLists = [
      [1, 'undefined', undefined],
      [2, 'null', null],
      [3, 'a number', 3],
      [3, 'a string', 'x'],
      [3, 'an object', {}],
    ] as const;
    await checkCases('activated adapters', device, {
      watched: [],
      cases: [
        ...noLists.flatMap(([kind, what, value]) => [
          bad(kind, `ids: ${what}`, 'ERR_TYPE', () => callWith(invocationOffsets, value, [1])),
          bad(kind, `a sequence: ${what}`, 'ERR_TYPE', () =>
            callWith(invocationOffsets, [[1], value], [1]),
          ),
          bad(kind, `invocation: ${what}`, 'ERR_TYPE', () =>
            callWith(invocationOffsets, [[1]], value),
          ),
          bad(kind, `offsets: ${what}`, 'ERR_TYPE', () => callWith(activeTokens, value, 2, device)),
        ]),
        bad(2, 'an offset: null', 'ERR_TYPE', () => callWith(activeTokens, [null], 2, device)),
        bad(17, 'an offset: NaN', 'ERR_VALUE', () => activeTokens([Number.NaN], 2, device)),
        bad(1, 'no T', 'ERR_TYPE', () => callWith(activeTokens, [1])),
        bad(15, 'T: negative', 'ERR_VALUE', () => activeTokens([1], -1, device)),
        bad(16, 'T: a fraction', 'ERR_VALUE', () => activeTokens([1], 1.5, device)),
        bad(17, 'T: NaN', 'ERR_VALUE', () => activeTokens([1], Number.NaN, device)),
        bad(32, 'device: unknown', 'ERR_DEVICE', () => callWith(activeTokens, [1], 2, 'gpu')),
      ],
      valid: () =>
        scope(async () => [
          invocationOffsets([[5, 1, 2, 9], Int32Array.of(1, 3)], [1, 2]),
          await activeTokens([3, -1], 4, device).read(),
        ]),
    });
  });

  it('messages name the call', () => {
    const gone = Tensor.zeros([2], { device });
    gone.dispose();
    expect(() => gone.readSync()).toThrow(/^readSync: tensor must be a live tensor/);
    expect(() => gone.readInto(new Float32Array(2))).toThrow(/^readInto: /);
    const options = { inFeatures: 4, outFeatures: 2, r: 2, loraAlpha: 4, device };
    const init = (more: object) => callWith(LoraAdapter.init, { ...options, ...more });
    for (const kind of ['kaiming', 'gaussian']) {
      expect(() => init({ init: kind })).toThrow(
        /^LoraAdapter.init: seed must be a number, got undefined$/,
      );
      expect(() => init({ init: kind, seed: -1 })).toThrow(/^LoraAdapter.init: seed/);
      expect(() => init({ init: kind, seed: 1, dtype: 'f64' })).toThrow(/^LoraAdapter.init: dtype/);
      expect(() => init({ init: kind, seed: 1, device: 'x' })).toThrow(/^LoraAdapter.init: device/);
    }
  });
});

describe('LOWRANK_NUM_THREADS', () => {
  /** The library as a process that has this value finds it. */
  const startedWith = async (threads: string) => {
    vi.stubEnv('LOWRANK_NUM_THREADS', threads);
    vi.resetModules();
    return import('../../lib/index.js');
  };

  it.each(['abc', '-1', '0', '1.5', '4x', ' '])(
    "of '%s' is refused at the first use",
    async (value) => {
      const { Tensor, getThreads, devices, setThreads } = await startedWith(value);
      const refused = `LOWRANK_NUM_THREADS: the number of threads must be a positive integer, got "${value}"`;
      const zeros = () => Tensor.zeros([2], { device: 'cpu' }).dispose();
      expect(devices().length).toBeGreaterThan(1);
      for (const use of [zeros, zeros, getThreads]) {
        expect(use).toThrow(expect.objectContaining({ code: 'ERR_VALUE', message: refused }));
      }
      setThreads(2);
      expect(getThreads()).toBe(2);
      zeros();
      vi.unstubAllEnvs();
    },
  );

  it.each(['3', ' 3 ', '003', '', '100000'])("of '%s' is taken", async (value) => {
    const { Tensor, getThreads } = await startedWith(value);
    Tensor.zeros([2], { device: 'cpu' }).dispose();
    expect(getThreads()).toBeGreaterThan(0);
    vi.unstubAllEnvs();
  });
});
