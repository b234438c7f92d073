// Bad input to the ops of a model around its linear layers: Indices, rmsNorm, embedding, linearCrossEntropy.
import { describe, it } from 'vitest';
import {
  embedding,
  Indices,
  linearCrossEntropy,
  rmsNormBackward,
  rmsNormForward,
  scope,
  Tensor,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { type BadCase, bad, callWith, checkCases, hostile, impostors } from './harness.js';

describe.each(DEVICES)('bad input on %s', (device) => {
  const draw = (shape: number[], seed: number) => Tensor.randn(shape, { seed, device });
  const other = device === 'cpu' ? 'reference' : 'cpu';

  it('Indices', async () => {
    await scope(async () => {
      const ids = Indices.from([1, 2], { limit: 4, device });
      const from = (...args: unknown[]) => callWith(Indices.from, ...args);
      const write = (values: unknown) => callWith(ids.write.bind(ids), values);
      const cases: BadCase[] = [
        bad(1, 'no arguments', 'ERR_TYPE', () => from()),
        bad(3, 'values: a string', 'ERR_TYPE', () => from('12', { limit: 4, device })),
        bad(3, 'values: floats', 'ERR_TYPE', () => from(new Float32Array(2), { limit: 4, device })),
        bad(14, 'values: above', 'ERR_VALUE', () => from([0, 4], { limit: 4, device })),
        bad(14, 'values: negative', 'ERR_VALUE', () => from([-1], { limit: 4, device })),
        bad(15, 'values: a fraction', 'ERR_VALUE', () => from([0.5], { limit: 4, device })),
        bad(17, 'values: NaN', 'ERR_VALUE', () => from([Number.NaN], { limit: 4, device })),
        bad(14, 'limit: negative', 'ERR_VALUE', () => from([], { limit: -1, device })),
        bad(3, 'holes: a number', 'ERR_TYPE', () => from([0], { limit: 4, holes: 1, device })),
        bad(33, 'a getter that throws', 'HOSTILE', () => from([0], hostile('limit'))),
        bad(5, 'write: another length', 'ERR_SHAPE', () => write([1])),
        bad(14, 'write: above', 'ERR_VALUE', () => write([1, 9])),
        bad(3, 'write: a string', 'ERR_TYPE', () => write('12')),
      ];
      await checkCases('Indices', device, {
        watched: [],
        cases,
        valid: () =>
          scope(async () => [
            await embedding(ids, Tensor.from([1, 2, 3, 4], [4, 1], { device })).read(),
          ]),
      });
    });
  });

  it('rmsNormForward and rmsNormBackward', async () => {
    await scope(async () => {
      const [x, g, dy, residual] = [
        draw([3, 8], 1),
        draw([8], 2),
        draw([3, 8], 3),
        draw([3, 8], 4),
      ];
      const invRms = rmsNormForward(x, g).invRms as Tensor;
      const forward = (...args: unknown[]) => callWith(rmsNormForward, ...args);
      const backward = (...args: unknown[]) => callWith(rmsNormBackward, ...args);
      const cases: BadCase[] = [
        bad(1, 'no arguments', 'ERR_TYPE', () => forward()),
        ...impostors(x).flatMap(([kind, what, value]) => [
          bad(kind, `x: ${what}`, 'ERR_TYPE', () => forward(value, g)),
          bad(kind, `g: ${what}`, 'ERR_TYPE', () => forward(x, value)),
          bad(kind, `dy: ${what}`, 'ERR_TYPE', () => backward(value, x, g, { invRms })),
          bad(kind, `invRms: ${what}`, 'ERR_TYPE', () => backward(dy, x, g, { invRms: value })),
        ]),
        bad(5, 'g: another size', 'ERR_SHAPE', () => forward(x, draw([7], 5))),
        bad(5, 'residual: another shape', 'ERR_SHAPE', () =>
          forward(x, g, { residual: draw([3, 4], 5) }),
        ),
        bad(5, 'dSum: another shape', 'ERR_SHAPE', () =>
          backward(dy, x, g, { invRms, dSum: draw([2, 8], 5) }),
        ),
        bad(5, 'invRms: too few', 'ERR_SHAPE', () => backward(dy, x, g, { invRms: draw([2], 5) })),
        bad(9, 'g: another device', 'ERR_DEVICE', () =>
          forward(x, Tensor.zeros([8], { device: other })),
        ),
        bad(17, 'eps: NaN', 'ERR_VALUE', () => forward(x, g, { eps: Number.NaN })),
        bad(14, 'eps: negative', 'ERR_VALUE', () => forward(x, g, { eps: -1 })),
        bad(3, 'plusOne: a number', 'ERR_TYPE', () => forward(x, g, { plusOne: 1 })),
        bad(35, 'needs: unknown', 'ERR_VALUE', () => backward(dy, x, g, { invRms, needs: ['dy'] })),
        bad(33, 'a getter that throws', 'HOSTILE', () => forward(x, g, hostile('eps'))),
      ];
      await checkCases('rmsNormForward', device, {
        watched: [x, g, dy, residual],
        cases,
        valid: () =>
          scope(async () => {
            const { y } = rmsNormForward(x, g, { residual });
            const { dx } = rmsNormBackward(dy, x, g, { invRms });
            return [await y.read(), await (dx as Tensor).read()];
          }),
      });
    });
  });

  it('embedding and linearCrossEntropy', async () => {
    await scope(async () => {
      const [x, head, weights] = [draw([3, 8], 1), draw([5, 8], 2), draw([3], 3)];
      const targets = Indices.from([0, -1, 4], { limit: 5, holes: true, device });
      const wide = Indices.from([0, 1, 2], { limit: 6, device });
      const loss = (...args: unknown[]) => callWith(linearCrossEntropy, ...args);
      const look = (...args: unknown[]) => callWith(embedding, ...args);
      const cases: BadCase[] = [
        bad(1, 'no arguments', 'ERR_TYPE', () => loss()),
        bad(1, 'embedding: no arguments', 'ERR_TYPE', () => look()),
        ...impostors(x).flatMap(([kind, what, value]) => [
          bad(kind, `x: ${what}`, 'ERR_TYPE', () => loss(value, head, targets)),
          bad(kind, `head: ${what}`, 'ERR_TYPE', () => loss(x, value, targets)),
          bad(kind, `targets: ${what}`, 'ERR_TYPE', () => loss(x, head, value)),
          bad(kind, `ids: ${what}`, 'ERR_TYPE', () => look(value, head)),
          bad(kind, `table: ${what}`, 'ERR_TYPE', () => look(targets, value)),
        ]),
        bad(5, 'x: another K', 'ERR_SHAPE', () => loss(draw([3, 7], 5), head, targets)),
        bad(5, 'targets: too few', 'ERR_SHAPE', () => loss(draw([2, 8], 5), head, targets)),
        bad(14, 'targets: beyond the head', 'ERR_VALUE', () => loss(x, head, wide)),
        bad(14, 'ids: beyond the table', 'ERR_VALUE', () => look(wide, head)),
        bad(5, 'weights: another size', 'ERR_SHAPE', () =>
          loss(x, head, targets, { weights: draw([2], 5) }),
        ),
        bad(7, 'weights: bf16', 'ERR_DTYPE', () =>
          loss(x, head, targets, { weights: weights.to({ dtype: 'bf16' }) }),
        ),
        bad(14, 'softcap: negative', 'ERR_VALUE', () => loss(x, head, targets, { softcap: -1 })),
        bad(17, 'scale: NaN', 'ERR_VALUE', () => loss(x, head, targets, { scale: Number.NaN })),
        bad(3, 'gradient: a number', 'ERR_TYPE', () => loss(x, head, targets, { gradient: 1 })),
        bad(7, 'dtype: unknown', 'ERR_DTYPE', () => look(targets, head, { dtype: 'f64' })),
        bad(9, 'head: another device', 'ERR_DEVICE', () =>
          loss(x, Tensor.zeros([5, 8], { device: other }), targets),
        ),
        bad(9, 'ids: another device', 'ERR_DEVICE', () =>
          look(Indices.from([0], { limit: 5, device: other }), head),
        ),
        bad(33, 'a getter that throws', 'HOSTILE', () => loss(x, head, targets, hostile('scale'))),
      ];
      await checkCases('linearCrossEntropy', device, {
        watched: [x, head, weights],
        cases,
        valid: () =>
          scope(async () => {
            const { losses, dx } = linearCrossEntropy(x, head, targets, { weights });
            return [
              await losses.read(),
              await (dx as Tensor).read(),
              await embedding(targets, head).read(),
            ];
          }),
      });
    });
  });
});
