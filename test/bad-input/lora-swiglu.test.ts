// Bad input to loraForwardSwiglu and loraBackwardSwiglu: a gate or an up that is wrong refuses the whole call.
import { describe, expect, it } from 'vitest';
import {
  type Device,
  LoraAdapter,
  type LoraProjection,
  LoraSwigluSaved,
  loraBackwardSwiglu,
  loraForwardSwiglu,
  quantize,
  scope,
  Tensor,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { bad, callWith, checkCases, covered, hostile, impostors } from './harness.js';

/** M 2, N 4, K 8; gate has an adapter of r 3. */
function layer(device: Device) {
  const random = (shape: number[], seed: number): Tensor => Tensor.randn(shape, { seed, device });
  const x = random([2, 8], 1);
  const w = random([4, 8], 2);
  const plain = random([4, 8], 3);
  const loraA = random([3, 8], 4);
  const loraB = random([4, 3], 5);
  const adapter = new LoraAdapter({ loraA, loraB, loraAlpha: 6, dropout: 0.5 });
  const dy = random([2, 4], 6);
  const gate: LoraProjection = { w, adapter, seed: 1 };
  const up: LoraProjection = { w: plain };
  return { random, x, w, plain, loraA, loraB, adapter, dy, gate, up };
}

describe.each(DEVICES)('%s', (device) => {
  it('loraForwardSwiglu', async () => {
    await scope(async () => {
      const { random, x, w, plain, loraA, loraB, adapter, gate, up } = layer(device);
      const other = DEVICES.find((candidate) => candidate !== device) as Device;
      const first = (wrong: object): unknown =>
        callWith(loraForwardSwiglu, x, { ...gate, ...wrong }, up);
      const second = (wrong: object): unknown =>
        callWith(loraForwardSwiglu, x, gate, { ...up, ...wrong });
      const gone = random([4, 8], 9);
      gone.dispose();
      const cases = [
        bad(1, 'no arguments', 'ERR_TYPE', () => callWith(loraForwardSwiglu)),
        bad(1, 'no projections', 'ERR_TYPE', () => callWith(loraForwardSwiglu, x)),
        bad(1, 'no up', 'ERR_TYPE', () => callWith(loraForwardSwiglu, x, gate)),
        bad(3, 'an array of both', 'ERR_TYPE', () => callWith(loraForwardSwiglu, x, [gate, up])),
        ...impostors(x).map(([kind, what, value]) =>
          bad(kind, `x: ${what}`, 'ERR_TYPE', () => callWith(loraForwardSwiglu, value, gate, up)),
        ),
        ...impostors(plain).map(([kind, what, value]) =>
          bad(kind, `up.w: ${what}`, 'ERR_TYPE', () => second({ w: value })),
        ),
        ...impostors(adapter)
          .filter(([, what]) => what !== 'undefined' && what !== 'a proxy' && what !== 'a forgery')
          .map(([kind, what, value]) =>
            bad(kind, `gate.adapter: ${what}`, 'ERR_TYPE', () => first({ adapter: value })),
          ),
        bad(12, 'up of more rows than gate', 'ERR_SHAPE', () => second({ w: random([5, 8], 9) })),
        bad(11, 'up of fewer rows than gate', 'ERR_SHAPE', () => second({ w: random([3, 8], 9) })),
        bad(14, 'x of no columns', 'ERR_SHAPE', () =>
          loraForwardSwiglu(random([2, 0], 9), gate, up),
        ),
        bad(22, 'w of another K', 'ERR_SHAPE', () => second({ w: random([4, 7], 9) })),
        bad(23, 'w of one dimension', 'ERR_SHAPE', () => second({ w: random([8], 9) })),
        bad(12, 'bias too long', 'ERR_SHAPE', () => second({ bias: random([5], 9) })),
        bad(24, 'f16 w with bf16 x', 'ERR_DTYPE', () =>
          loraForwardSwiglu(
            x.to({ dtype: 'bf16' }),
            { w: plain },
            { w: plain.to({ dtype: 'f16' }) },
          ),
        ),
        bad(30, 'no seed', 'ERR_VALUE', () => first({ seed: undefined })),
        bad(30, 'seed of a half', 'ERR_VALUE', () => first({ seed: 0.5 })),
        bad(3, 'seed without an adapter', 'ERR_VALUE', () => second({ seed: 1 })),
        bad(3, 'mask without an adapter', 'ERR_VALUE', () => second({ dropoutMask: x })),
        bad(35, 'compute', 'ERR_VALUE', () => second({ compute: 'int4' })),
        bad(35, 'int8 of a dense weight', 'ERR_UNSUPPORTED', () => second({ compute: 'int8' })),
        bad(31, 'a disposed w', 'ERR_DISPOSED', () => second({ w: gone })),
        bad(32, 'w of another device', 'ERR_DEVICE', () =>
          second({ w: plain.to({ device: other }) }),
        ),
        bad(3, 'training: a number', 'ERR_TYPE', () =>
          callWith(loraForwardSwiglu, x, gate, up, { training: 1 }),
        ),
        bad(33, 'a hostile projection', 'HOSTILE', () =>
          callWith(loraForwardSwiglu, x, gate, hostile('w')),
        ),
        bad(29, 'w quantised from NaN', 'ERR_NON_FINITE', async () => {
          const nan = Tensor.from(new Float32Array(32).fill(Number.NaN), [4, 8], { device });
          const { y } = loraForwardSwiglu(x, { w: quantize(nan, { format: 'fp4' }) }, up);
          await y.read();
        }),
      ];
      expect(covered(cases).size).toBeGreaterThanOrEqual(20);
      await checkCases('loraForwardSwiglu', device, {
        watched: [x, w, plain, loraA, loraB],
        cases,
        valid: () =>
          scope(async () => {
            const { y, saved } = loraForwardSwiglu(x, gate, up);
            return Promise.all([y, saved.gate as Tensor, saved.up as Tensor].map((t) => t.read()));
          }),
      });
      expect(() => second({ w: random([5, 8], 9) })).toThrow(
        'loraForwardSwiglu: up.w must be of shape [N = 4, K], got [5, 8]',
      );
    });
  });

  it('loraBackwardSwiglu', async () => {
    await scope(async () => {
      const { random, x, w, plain, loraA, loraB, dy, gate, up } = layer(device);
      const { saved } = loraForwardSwiglu(x, gate, up);
      const { saved: freed } = loraForwardSwiglu(x, gate, up);
      freed.dispose();
      const { saved: robbed } = loraForwardSwiglu(x, gate, up);
      robbed.up?.dispose();
      const { saved: plainSaved } = loraForwardSwiglu(x, gate, up, { training: false });
      const target = random([4, 3], 8);
      const run = (value: unknown, options?: object): unknown =>
        callWith(loraBackwardSwiglu, value, saved, { keep: true, ...options });
      const cases = [
        bad(1, 'no arguments', 'ERR_TYPE', () => callWith(loraBackwardSwiglu)),
        bad(1, 'no saved state', 'ERR_TYPE', () => callWith(loraBackwardSwiglu, dy)),
        ...impostors(saved).map(([kind, what, value]) =>
          bad(kind, `saved: ${what}`, 'ERR_TYPE', () => callWith(loraBackwardSwiglu, dy, value)),
        ),
        bad(3, 'the state of another op', 'ERR_TYPE', () =>
          callWith(loraBackwardSwiglu, dy, saved.projections),
        ),
        ...impostors(dy).map(([kind, what, value]) =>
          bad(kind, `dy: ${what}`, 'ERR_TYPE', () => run(value)),
        ),
        bad(31, 'freed', 'ERR_DISPOSED', () => loraBackwardSwiglu(dy, freed)),
        bad(31, 'without its up', 'ERR_DISPOSED', () => loraBackwardSwiglu(dy, robbed)),
        bad(3, 'not of a training step', 'ERR_VALUE', () => loraBackwardSwiglu(dy, plainSaved)),
        bad(22, 'dy of another N', 'ERR_SHAPE', () => run(random([2, 5], 9))),
        bad(24, 'dy of another dtype than x', 'ERR_DTYPE', () => run(dy.to({ dtype: 'f16' }))),
        bad(32, 'dy of another device', 'ERR_DEVICE', () =>
          run(dy.to({ device: DEVICES.find((candidate) => candidate !== device) as Device })),
        ),
        bad(3, 'needs: a string', 'ERR_TYPE', () => run(dy, { needs: 'dx' })),
        bad(35, 'needs: unknown', 'ERR_VALUE', () => run(dy, { needs: ['dW'] })),
        bad(3, 'accumulateInto: an object', 'ERR_TYPE', () => run(dy, { accumulateInto: {} })),
        bad(35, 'accumulateInto of dx', 'ERR_VALUE', () =>
          run(dy, { accumulateInto: [{ dx: random([2, 8], 9) }] }),
        ),
        bad(22, 'accumulateInto of another shape', 'ERR_SHAPE', () =>
          run(dy, { accumulateInto: [{ dLoraB: random([3, 4], 9) }] }),
        ),
      ];
      await checkCases('loraBackwardSwiglu', device, {
        watched: [x, w, plain, loraA, loraB, target, dy],
        cases,
        valid: () =>
          scope(async () => {
            const { dx, gradients } = loraBackwardSwiglu(dy, saved, { keep: true });
            const all = [dx as Tensor, ...Object.values(gradients[0])];
            return Promise.all(all.map((tensor) => tensor.read()));
          }),
      });
      expect(saved).toBeInstanceOf(LoraSwigluSaved);
    });
  });
});
