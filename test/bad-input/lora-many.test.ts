// Bad input to loraForwardMany and loraBackwardMany: one projection that is wrong refuses the whole call.
import { describe, expect, it } from 'vitest';
import {
  type Device,
  LoraAdapter,
  LoraManySaved,
  type LoraProjection,
  loraBackwardMany,
  loraForwardMany,
  quantize,
  scope,
  Tensor,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { bad, callWith, checkCases, covered, hostile, impostors } from './harness.js';

/** M 2, K 8; N 4 with an adapter of r 3, and N 6 without one. */
function layer(device: Device) {
  const random = (shape: number[], seed: number): Tensor => Tensor.randn(shape, { seed, device });
  const x = random([2, 8], 1);
  const w = random([4, 8], 2);
  const plain = random([6, 8], 3);
  const loraA = random([3, 8], 4);
  const loraB = random([4, 3], 5);
  const adapter = new LoraAdapter({ loraA, loraB, loraAlpha: 6, dropout: 0.5 });
  const dys = [random([2, 4], 6), random([2, 6], 7)];
  const good: LoraProjection[] = [{ w, adapter, seed: 1 }, { w: plain }];
  return { random, x, w, plain, loraA, loraB, adapter, dys, good };
}

describe.each(DEVICES)('%s', (device) => {
  it('loraForwardMany', async () => {
    await scope(async () => {
      const { random, x, w, plain, loraA, loraB, adapter, good } = layer(device);
      const other = DEVICES.find((candidate) => candidate !== device) as Device;
      const second = (wrong: object): unknown =>
        callWith(loraForwardMany, x, [good[0], { ...good[1], ...wrong }]);
      const first = (wrong: object): unknown =>
        callWith(loraForwardMany, x, [{ ...good[0], ...wrong }, good[1]]);
      const gone = random([6, 8], 9);
      gone.dispose();
      const cases = [
        bad(1, 'no arguments', 'ERR_TYPE', () => callWith(loraForwardMany)),
        bad(1, 'no projections', 'ERR_TYPE', () => callWith(loraForwardMany, x)),
        bad(13, 'an empty list', 'ERR_VALUE', () => loraForwardMany(x, [])),
        bad(12, 'nine of them', 'ERR_VALUE', () =>
          loraForwardMany(
            x,
            Array.from({ length: 9 }, () => ({ w: plain })),
          ),
        ),
        ...impostors(x).map(([kind, what, value]) =>
          bad(kind, `x: ${what}`, 'ERR_TYPE', () => callWith(loraForwardMany, value, good)),
        ),
        ...impostors(plain).map(([kind, what, value]) =>
          bad(kind, `w: ${what}`, 'ERR_TYPE', () => second({ w: value })),
        ),
        ...impostors(adapter)
          .filter(([, what]) => what !== 'undefined' && what !== 'a proxy' && what !== 'a forgery')
          .map(([kind, what, value]) =>
            bad(kind, `adapter: ${what}`, 'ERR_TYPE', () => first({ adapter: value })),
          ),
        bad(14, 'x of no columns', 'ERR_SHAPE', () => loraForwardMany(random([2, 0], 9), good)),
        bad(22, 'w of another K', 'ERR_SHAPE', () => second({ w: random([6, 7], 9) })),
        bad(23, 'w of one dimension', 'ERR_SHAPE', () => second({ w: random([8], 9) })),
        bad(12, 'bias too long', 'ERR_SHAPE', () => second({ bias: random([7], 9) })),
        bad(22, 'adapter of another layer', 'ERR_SHAPE', () => second({ adapter, seed: 1 })),
        bad(24, 'f16 w with bf16 x', 'ERR_DTYPE', () =>
          loraForwardMany(x.to({ dtype: 'bf16' }), [{ w: plain.to({ dtype: 'f16' }) }]),
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
          callWith(loraForwardMany, x, good, { training: 1 }),
        ),
        bad(33, 'a hostile projection', 'HOSTILE', () =>
          callWith(loraForwardMany, x, [good[0], hostile('w')]),
        ),
        bad(29, 'w quantised from NaN', 'ERR_NON_FINITE', async () => {
          const nan = Tensor.from(new Float32Array(64).fill(Number.NaN), [8, 8], { device });
          const { ys } = loraForwardMany(x, [
            { w: plain },
            { w: quantize(nan, { format: 'fp4' }) },
          ]);
          await ys[1]?.read();
        }),
      ];
      expect(covered(cases).size).toBeGreaterThanOrEqual(20);
      await checkCases('loraForwardMany', device, {
        watched: [x, w, plain, loraA, loraB],
        cases,
        valid: () =>
          scope(async () => Promise.all(loraForwardMany(x, good).ys.map((y) => y.read()))),
      });
    });
  });

  it('loraBackwardMany', async () => {
    await scope(async () => {
      const { random, x, w, plain, loraA, loraB, dys, good } = layer(device);
      const [dq, dk] = dys as [Tensor, Tensor];
      const { saved } = loraForwardMany(x, good);
      const { saved: freed } = loraForwardMany(x, good);
      freed.dispose();
      const target = random([4, 3], 8);
      const run = (list: unknown, options?: object): unknown =>
        callWith(loraBackwardMany, list, saved, { keep: true, ...options });
      const cases = [
        bad(1, 'no arguments', 'ERR_TYPE', () => callWith(loraBackwardMany)),
        bad(1, 'no saved state', 'ERR_TYPE', () => callWith(loraBackwardMany, dys)),
        ...impostors(saved).map(([kind, what, value]) =>
          bad(kind, `saved: ${what}`, 'ERR_TYPE', () => callWith(loraBackwardMany, dys, value)),
        ),
        ...impostors(dk).map(([kind, what, value]) =>
          bad(kind, `dys[1]: ${what}`, 'ERR_TYPE', () => run([dq, value])),
        ),
        bad(31, 'freed', 'ERR_DISPOSED', () => loraBackwardMany(dys, freed)),
        bad(11, 'one dy too few', 'ERR_SHAPE', () => run([dq])),
        bad(12, 'one dy too many', 'ERR_SHAPE', () => run([dq, dk, dk])),
        bad(22, 'dys[1] of another N', 'ERR_SHAPE', () => run([dq, dq])),
        bad(24, 'dys of two dtypes', 'ERR_DTYPE', () => run([dq, dk.to({ dtype: 'bf16' })])),
        bad(24, 'dys of another dtype than x', 'ERR_DTYPE', () =>
          run(dys.map((dy) => dy.to({ dtype: 'f16' }))),
        ),
        bad(3, 'needs: a string', 'ERR_TYPE', () => run(dys, { needs: 'dx' })),
        bad(35, 'needs: unknown', 'ERR_VALUE', () => run(dys, { needs: ['dW'] })),
        bad(3, 'accumulateInto: an object', 'ERR_TYPE', () => run(dys, { accumulateInto: {} })),
        bad(35, 'accumulateInto of dx', 'ERR_VALUE', () =>
          run(dys, { accumulateInto: [{ dx: random([2, 8], 9) }] }),
        ),
        bad(22, 'accumulateInto of another shape', 'ERR_SHAPE', () =>
          run(dys, { accumulateInto: [{ dLoraB: random([3, 4], 9) }] }),
        ),
      ];
      await checkCases('loraBackwardMany', device, {
        watched: [x, w, plain, loraA, loraB, target, ...dys],
        cases,
        valid: () =>
          scope(async () => {
            const { dx, gradients } = loraBackwardMany(dys, saved, { keep: true });
            const all = [dx as Tensor, ...Object.values(gradients[0] ?? {})];
            return Promise.all(all.map((tensor) => tensor.read()));
          }),
      });
      expect(saved).toBeInstanceOf(LoraManySaved);
    });
  });
});
