// Bad input to the steps of optimisers: lists of tensors, options, memory that is updated and shared.
import { describe, it } from 'vitest';
import { adamwStep, globalNorm, scope, Tensor } from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { type BadCase, bad, callWith, checkCases, hostile, impostors } from './harness.js';

describe.each(DEVICES)('bad input on %s', (device) => {
  const draw = (shape: number[], seed: number) => Tensor.randn(shape, { seed, device });
  const scalar = (value: number) => Tensor.from([value], [1], { device });
  const other = device === 'cpu' ? 'reference' : 'cpu';

  it('globalNorm', async () => {
    await scope(async () => {
      const tensors = [draw([3, 4], 1), draw([5], 2)];
      const [first] = tensors as [Tensor];
      const norm = (...args: unknown[]) => callWith(globalNorm, ...args);
      const cases: BadCase[] = [
        bad(1, 'no arguments', 'ERR_TYPE', () => norm()),
        bad(3, 'a tensor', 'ERR_TYPE', () => norm(first)),
        bad(5, 'an array-like', 'ERR_TYPE', () => norm({ length: 1, 0: first })),
        bad(13, 'an empty list', 'ERR_SHAPE', () => norm([])),
        ...impostors(first).map(([kind, what, value]) =>
          bad(kind, `tensors[1]: ${what}`, 'ERR_TYPE', () => norm([first, value])),
        ),
        bad(31, 'disposed', 'ERR_DISPOSED', () => {
          const gone = draw([2], 3);
          gone.dispose();
          norm([first, gone]);
        }),
        bad(32, 'another device', 'ERR_DEVICE', () =>
          norm([first, Tensor.zeros([2], { device: other })]),
        ),
        bad(33, 'a getter that throws', 'HOSTILE', () => {
          const getter = Object.getOwnPropertyDescriptor(hostile('1'), '1') as PropertyDescriptor;
          norm(Object.defineProperty([first], 1, getter));
        }),
      ];
      await checkCases('globalNorm', device, {
        watched: tensors,
        cases,
        valid: () => scope(async () => [await globalNorm(tensors).read()]),
      });
    });
  });

  it('adamwStep', async () => {
    await scope(async () => {
      const shapes = [[3, 4], [5]];
      const [p, g, m, v] = [1, 3, 5, 7].map((seed) =>
        shapes.map((shape, i) => draw(shape, seed + i)),
      ) as [Tensor[], Tensor[], Tensor[], Tensor[]];
      const [step, norm] = [scalar(3), scalar(2)];
      const lr = 0.1;
      const call = (...args: unknown[]) => callWith(adamwStep, ...args);
      const withOptions = (options: object) => call(p, g, m, v, { lr, step: 1, ...options });
      const lists = ['parameters', 'gradients', 'm', 'v'];
      const replaced = (at: number, list: unknown) =>
        call(...[p, g, m, v].map((own, i) => (i === at ? list : own)), { lr, step: 1 });
      /** Of the first entry of one list. */
      const first = (at: number, value: unknown) =>
        replaced(at, [value, ([p, g, m, v][at] as Tensor[])[1]]);
      const cases: BadCase[] = [
        bad(1, 'no arguments', 'ERR_TYPE', () => call()),
        bad(1, 'no options', 'ERR_TYPE', () => call(p, g, m, v)),
        bad(13, 'empty lists', 'ERR_SHAPE', () => call([], [], [], [], { lr, step: 1 })),
        ...lists.flatMap((name, at) => [
          bad(3, `${name}: a tensor`, 'ERR_TYPE', () => replaced(at, p[0])),
          bad(2, `${name}: null`, 'ERR_TYPE', () => replaced(at, null)),
          bad(5, `${name}: a proxy`, 'ERR_TYPE', () => first(at, new Proxy(p[0] as Tensor, {}))),
          bad(14, `${name}[0]: another shape`, 'ERR_SHAPE', () => first(at, draw([4, 3], 9))),
          bad(32, `${name}[0]: another device`, 'ERR_DEVICE', () =>
            first(at, Tensor.zeros([3, 4], { device: other })),
          ),
          bad(31, `${name}[0]: disposed`, 'ERR_DISPOSED', () => {
            const gone = draw([3, 4], 9);
            gone.dispose();
            first(at, gone);
          }),
        ]),
        ...lists
          .slice(1)
          .map((name, i) =>
            bad(11, `${name}: one too few`, 'ERR_SHAPE', () => replaced(i + 1, [draw([3, 4], 9)])),
          ),
        bad(24, 'm[0]: bf16', 'ERR_DTYPE', () => first(2, draw([3, 4], 9).to({ dtype: 'bf16' }))),
        bad(24, 'v[0]: f16', 'ERR_DTYPE', () => first(3, draw([3, 4], 9).to({ dtype: 'f16' }))),
        bad(27, 'a parameter is its gradient', 'ERR_ALIAS', () => first(1, p[0])),
        bad(27, 'm and v are one', 'ERR_ALIAS', () => first(3, m[0])),
        bad(28, 'one parameter twice', 'ERR_ALIAS', () => {
          const twin = (p[0] as Tensor).reshape([3, 4]);
          const four = [p, g, m, v].map((list) => [list[0], draw([3, 4], 9)]);
          (four[0] as Tensor[])[1] = twin;
          call(...four, { lr, step: 1 });
        }),
        bad(28, 'the counter is the norm', 'ERR_ALIAS', () => withOptions({ step, norm: step })),
        bad(15, 'lr: negative', 'ERR_VALUE', () => withOptions({ lr: -0.1 })),
        bad(29, 'lr: NaN', 'ERR_VALUE', () => withOptions({ lr: Number.NaN })),
        bad(29, 'lr: beyond f32', 'ERR_VALUE', () => withOptions({ lr: 1e39 })),
        bad(2, 'lr: missing', 'ERR_TYPE', () => call(p, g, m, v, { step: 1 })),
        bad(3, 'lr: a string', 'ERR_TYPE', () => withOptions({ lr: '0.1' })),
        bad(23, 'lr: [1, 1]', 'ERR_SHAPE', () =>
          withOptions({ lr: Tensor.zeros([1, 1], { device }) }),
        ),
        bad(2, 'step: missing', 'ERR_TYPE', () => call(p, g, m, v, { lr })),
        bad(14, 'step: 0', 'ERR_VALUE', () => withOptions({ step: 0 })),
        bad(16, 'step: a fraction', 'ERR_VALUE', () => withOptions({ step: 1.5 })),
        bad(18, 'step: beyond 2^24', 'ERR_VALUE', () => withOptions({ step: 2 ** 24 + 1 })),
        bad(24, 'step: bf16', 'ERR_DTYPE', () => withOptions({ step: step.to({ dtype: 'bf16' }) })),
        bad(23, 'step: [2]', 'ERR_SHAPE', () => withOptions({ step: draw([2], 9) })),
        bad(32, 'step: another device', 'ERR_DEVICE', () =>
          withOptions({ step: Tensor.zeros([1], { device: other }) }),
        ),
        bad(15, 'eps: negative', 'ERR_VALUE', () => withOptions({ eps: -1e-8 })),
        bad(29, 'eps: infinite', 'ERR_VALUE', () => withOptions({ eps: Number.POSITIVE_INFINITY })),
        bad(35, 'betas: 1', 'ERR_VALUE', () => withOptions({ betas: [0.9, 1] })),
        bad(35, 'betas: negative', 'ERR_VALUE', () => withOptions({ betas: [-0.1, 0.9] })),
        bad(11, 'betas: one', 'ERR_SHAPE', () => withOptions({ betas: [0.9] })),
        bad(12, 'betas: three', 'ERR_SHAPE', () => withOptions({ betas: [0.9, 0.9, 0.9] })),
        bad(3, 'betas: a number', 'ERR_TYPE', () => withOptions({ betas: 0.9 })),
        bad(15, 'weightDecay: negative', 'ERR_VALUE', () => withOptions({ weightDecay: -0.1 })),
        bad(11, 'weightDecay: one', 'ERR_SHAPE', () => withOptions({ weightDecay: [0.1] })),
        bad(3, 'weightDecay: a string', 'ERR_TYPE', () => withOptions({ weightDecay: ['0', 0] })),
        bad(3, 'lrScale: a number', 'ERR_TYPE', () => withOptions({ lrScale: 2 })),
        bad(12, 'lrScale: three', 'ERR_SHAPE', () => withOptions({ lrScale: [1, 1, 1] })),
        bad(15, 'lrScale: negative', 'ERR_VALUE', () => withOptions({ lrScale: [1, -1] })),
        bad(35, 'maxNorm without norm', 'ERR_VALUE', () => withOptions({ maxNorm: 1 })),
        bad(14, 'maxNorm: 0', 'ERR_VALUE', () => withOptions({ norm, maxNorm: 0 })),
        bad(15, 'maxNorm: negative', 'ERR_VALUE', () => withOptions({ norm, maxNorm: -1 })),
        bad(29, 'maxNorm: infinite', 'ERR_VALUE', () =>
          withOptions({ norm, maxNorm: Number.POSITIVE_INFINITY }),
        ),
        bad(3, 'norm: a number', 'ERR_TYPE', () => withOptions({ norm: 1 })),
        bad(23, 'norm: [5]', 'ERR_SHAPE', () => withOptions({ norm: g[1] })),
        bad(35, 'an unknown option', 'ERR_VALUE', () => withOptions({ momentum: 0.9 })),
        bad(33, 'a getter that throws', 'HOSTILE', () => call(p, g, m, v, hostile('lr'))),
      ];
      await checkCases('adamwStep', device, {
        watched: [...p, ...g, ...m, ...v, step, norm],
        cases,
        // A copy of each, as the call changes them.
        valid: () =>
          scope(async () => {
            const copies = [p, m, v].map((list) => list.map((tensor) => copyOf(tensor)));
            const [ps, ms, vs] = copies as [Tensor[], Tensor[], Tensor[]];
            adamwStep(ps, g, ms, vs, { lr, step: 2, norm, maxNorm: 1 });
            return Promise.all([...ps, ...ms, ...vs].map((tensor) => tensor.read()));
          }),
      });
    });
  });
});

const copyOf = (tensor: Tensor): Tensor =>
  Tensor.from(tensor.readSync(), tensor.shape, { device: tensor.device });
