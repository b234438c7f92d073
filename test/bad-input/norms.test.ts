// Bad input to NormAdapter and to the random generators.
import { describe, it } from 'vitest';
import { NormAdapter, NumpyRandom, scope, Tensor, TorchRandom } from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { type BadCase, bad, callWith, checkCases, hostile, impostors } from './harness.js';
import { badShapes } from './shapes.js';

describe.each(DEVICES)('bad input on %s', (device) => {
  it('NormAdapter', async () => {
    await scope(async () => {
      const random = (shape: number[], seed: number) => Tensor.randn(shape, { seed, device });
      const [weight, bias, x, dy] = [
        random([8], 1),
        random([8], 2),
        random([3, 8], 3),
        random([3, 8], 4),
      ];
      const adapter = new NormAdapter({ weight, bias });
      const { saved } = adapter.forward(x);
      const make = (wrong: object) => () =>
        Reflect.construct(NormAdapter, [{ weight, bias, ...wrong }]);
      const forward = (...args: unknown[]) => callWith(adapter.forward.bind(adapter), ...args);
      const backward = (...args: unknown[]) => callWith(adapter.backward.bind(adapter), ...args);
      const cases: BadCase[] = [
        bad(1, 'no arguments', 'ERR_TYPE', () => Reflect.construct(NormAdapter, [])),
        bad(33, 'a getter that throws', 'HOSTILE', () =>
          Reflect.construct(NormAdapter, [hostile('weight')]),
        ),
        ...impostors(weight).flatMap(([kind, what, value]) => [
          bad(kind, `weight: ${what}`, 'ERR_TYPE', make({ weight: value })),
          ...(value === undefined
            ? []
            : [bad(kind, `bias: ${what}`, 'ERR_TYPE', make({ bias: value }))]),
          bad(kind, `x: ${what}`, 'ERR_TYPE', () => forward(value)),
          bad(kind, `dy: ${what}`, 'ERR_TYPE', () => backward(value, saved)),
          bad(kind, `saved: ${what}`, 'ERR_TYPE', () => backward(dy, value)),
        ]),
        bad(3, 'eps: a string', 'ERR_TYPE', make({ eps: '1' })),
        bad(2, 'eps: null', 'ERR_TYPE', make({ eps: null })),
        bad(17, 'eps: NaN', 'ERR_VALUE', make({ eps: Number.NaN })),
        bad(29, 'eps: infinity', 'ERR_VALUE', make({ eps: Number.POSITIVE_INFINITY })),
        bad(14, 'eps: 0', 'ERR_VALUE', make({ eps: 0 })),
        bad(35, 'kind: unknown', 'ERR_VALUE', make({ kind: 'batch' })),
        bad(3, 'training: a number', 'ERR_TYPE', () => forward(x, { training: 1 })),
        bad(3, 'needs: a name', 'ERR_TYPE', () => backward(dy, saved, { needs: 'dx' })),
        bad(3, 'needs: a number', 'ERR_TYPE', () => backward(dy, saved, { needs: 3 })),
        bad(2, 'needs: null', 'ERR_TYPE', () => backward(dy, saved, { needs: null })),
        bad(35, 'needs: unknown', 'ERR_VALUE', () => backward(dy, saved, { needs: ['dy'] })),
      ];
      await checkCases('NormAdapter', device, {
        watched: [weight, bias, x, dy],
        cases,
        valid: () =>
          scope(async () => {
            const { dx, dWeight } = adapter.backward(dy, saved, { keep: true });
            return [await (dx as Tensor).read(), await (dWeight as Tensor).read()];
          }),
      });
    });
  });

  it('TorchRandom and NumpyRandom', async () => {
    const torch = new TorchRandom(1);
    const numpy = new NumpyRandom(1);
    const model = Tensor.zeros([2], { device });
    const draws = {
      uniform: (shape: unknown) => callWith(torch.uniform.bind(torch), shape),
      kaimingUniform: (shape: unknown) => callWith(torch.kaimingUniform.bind(torch), shape, 1),
      normal: (shape: unknown) => callWith(torch.normal.bind(torch), shape),
      integers: (shape: unknown) => callWith(torch.integers.bind(torch), shape, 0, 9),
      bernoulli: (shape: unknown) => callWith(torch.bernoulli.bind(torch), shape, 0.5),
    };
    await checkCases('random', device, {
      watched: [model],
      cases: [
        ...Object.values(draws).flatMap((draw) => badShapes(draw, model)),
        ...[TorchRandom, NumpyRandom].flatMap((made) => [
          bad(1, `${made.name}: no seed`, 'ERR_TYPE', () => Reflect.construct(made, [])),
          bad(30, `${made.name}: seed -1`, 'ERR_VALUE', () => Reflect.construct(made, [-1])),
        ]),
        ...[undefined, null, Symbol('x'), 2n, '3', {}].flatMap((value) => [
          bad(3, `upTo: ${typeof value}`, 'ERR_TYPE', () =>
            callWith(numpy.upTo.bind(numpy), value),
          ),
          bad(3, `shuffle: ${typeof value}`, 'ERR_TYPE', () =>
            callWith(numpy.shuffle.bind(numpy), value),
          ),
        ]),
        bad(15, 'upTo: negative', 'ERR_VALUE', () => numpy.upTo(-1)),
        bad(17, 'upTo: NaN', 'ERR_VALUE', () => numpy.upTo(Number.NaN)),
        bad(4, 'shuffle: a Float32Array', 'ERR_TYPE', () =>
          callWith(numpy.shuffle.bind(numpy), new Float32Array(2)),
        ),
        bad(3, 'uniform, low: a string', 'ERR_TYPE', () =>
          callWith(torch.uniform.bind(torch), [2], '0'),
        ),
        bad(29, 'normal, std: NaN', 'ERR_VALUE', () => torch.normal([2], 0, Number.NaN)),
        bad(1, 'kaimingUniform, no a', 'ERR_TYPE', () =>
          callWith(torch.kaimingUniform.bind(torch), [2, 3]),
        ),
      ],
      valid: async () => [new TorchRandom(2).normal([3])],
    });
    model.dispose();
  });
});
