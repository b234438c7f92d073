// Bad input to loraShrink, loraExpand, their gradients, and weightGrad.
import { describe, it } from 'vitest';
import {
  type Device,
  loraExpand,
  loraExpandBackward,
  loraShrink,
  loraShrinkBackward,
  quantize,
  scope,
  Tensor,
  weightGrad,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { type BadCase, type BadClass, bad, callWith, checkCases } from './harness.js';
import {
  factorCases,
  operandCases,
  optionCases,
  wrongMatrix,
  wrongVector,
} from './operand-cases.js';
import { hugeProducts } from './shapes.js';

/** One layer, M 2, N 4, K 8, r 3. */
function layer(device: Device) {
  const random = (shape: number[], seed: number): Tensor => Tensor.randn(shape, { seed, device });
  const zeros = (shape: number[], dtype: 'f32' | 'bf16' | 'f16' = 'f32'): Tensor =>
    Tensor.zeros(shape, { dtype, device });
  return {
    zeros,
    x: random([2, 8], 1),
    dense: random([4, 8], 2),
    loraA: random([3, 8], 3),
    loraB: random([4, 3], 4),
    bias: random([4], 5),
    h: random([2, 3], 6),
    dh: random([2, 3], 7),
    dy: random([2, 4], 8),
    mask: Tensor.from(new Float32Array(16).fill(1), [2, 8], { device }),
  };
}

const dropoutCases = (call: (options: object) => unknown): BadCase[] => {
  const one = (kind: BadClass, what: string, code: string, options: object): BadCase =>
    bad(kind, `dropout: ${what}`, code, () => call(options));
  return [
    one(3, 'a string', 'ERR_TYPE', { dropout: '0.1', seed: 1 }),
    one(15, 'negative', 'ERR_VALUE', { dropout: -0.1, seed: 1 }),
    one(30, '1', 'ERR_VALUE', { dropout: 1, seed: 1 }),
    one(29, 'NaN', 'ERR_VALUE', { dropout: Number.NaN, seed: 1 }),
    one(30, 'no seed', 'ERR_VALUE', { dropout: 0.5 }),
    one(30, 'a negative seed', 'ERR_VALUE', { dropout: 0.5, seed: -1 }),
    one(16, 'half a seed', 'ERR_VALUE', { dropout: 0.5, seed: 0.5 }),
    one(20, 'a seed of 2^53', 'ERR_VALUE', { dropout: 0.5, seed: 2 ** 53 }),
    one(3, 'training: 1', 'ERR_TYPE', { training: 1 }),
  ];
};

const needsCases = (call: (options: object) => unknown): BadCase[] => [
  bad(3, 'needs: a string', 'ERR_TYPE', () => call({ needs: 'dx' })),
  bad(2, 'needs: null', 'ERR_TYPE', () => call({ needs: null })),
  bad(3, 'needs: a name unknown', 'ERR_VALUE', () => call({ needs: ['dW'] })),
  bad(3, 'needs: a number', 'ERR_TYPE', () => call({ needs: [0] })),
  bad(3, 'accumulateInto: a number', 'ERR_TYPE', () => call({ accumulateInto: 3 })),
  bad(2, 'accumulateInto: null', 'ERR_TYPE', () => call({ accumulateInto: null })),
  bad(3, 'accumulateInto: a name unknown', 'ERR_VALUE', () =>
    call({ accumulateInto: { dW: undefined } }),
  ),
];

describe.each(DEVICES)('bad input on %s', (device) => {
  it('loraShrink', async () => {
    await scope(async () => {
      const { zeros, x, loraA, mask } = layer(device);
      const run = (wrong: Record<string, unknown>, options?: unknown): unknown => {
        const { dropoutMask, ...operands } = wrong;
        const given = { x, loraA, ...operands };
        const masked = 'dropoutMask' in wrong ? { dropoutMask } : undefined;
        return callWith(loraShrink, given.x, given.loraA, options ?? masked);
      };
      const option = (options: unknown): unknown => callWith(loraShrink, x, loraA, options);
      const cases = [
        bad(1, 'no arguments', 'ERR_TYPE', () => callWith(loraShrink)),
        bad(1, 'x alone', 'ERR_TYPE', () => callWith(loraShrink, x)),
        ...operandCases(
          device,
          [
            {
              name: 'x',
              shape: [2, 8],
              leads: true,
              wrong: [
                [11, [2, 7]],
                [12, [2, 9]],
                [13, [2, 0]],
                [23, []],
              ],
            },
            { name: 'loraA', shape: [3, 8], wrong: wrongMatrix([3, 8]) },
            { name: 'dropoutMask', shape: [2, 8], optional: true, wrong: wrongMatrix([2, 8]) },
          ],
          run,
        ),
        bad(24, 'bf16 x, f16 loraA', 'ERR_DTYPE', () =>
          run({ x: zeros([2, 8], 'bf16'), loraA: zeros([3, 8], 'f16') }),
        ),
        ...factorCases('scaling', option),
        ...dropoutCases(option),
        ...optionCases(option, 'seed'),
        ...hugeProducts(device, loraShrink),
      ];
      await checkCases('loraShrink', device, {
        watched: [x, loraA, mask],
        cases,
        valid: () => scope(async () => [await loraShrink(x, loraA, { dropoutMask: mask }).read()]),
      });
    });
  });

  it('loraExpand', async () => {
    await scope(async () => {
      const { zeros, x, dense, h, loraB, bias } = layer(device);
      const w = quantize(dense, { format: 'nf4' });
      const run = (wrong: Record<string, unknown>): unknown => {
        const given = { x, w, h, loraB, bias, ...wrong };
        const options = { bias: given.bias };
        return callWith(loraExpand, given.x, given.w, given.h, given.loraB, options);
      };
      const option = (options: unknown): unknown => callWith(loraExpand, x, w, h, loraB, options);
      const cases = [
        bad(1, 'no arguments', 'ERR_TYPE', () => callWith(loraExpand)),
        bad(1, 'no loraB', 'ERR_TYPE', () => callWith(loraExpand, x, w, h)),
        ...operandCases(
          device,
          [
            { name: 'x', shape: [2, 8], leads: true, wrong: wrongMatrix([2, 8]) },
            {
              name: 'w',
              shape: [4, 8],
              wrong: [
                [11, [4, 7]],
                [12, [5, 8]],
                [23, [8]],
                [23, [1, 4, 8]],
              ],
            },
            { name: 'h', shape: [2, 3], dtypes: ['bf16', 'f16'], wrong: wrongMatrix([2, 3]) },
            { name: 'loraB', shape: [4, 3], wrong: wrongMatrix([4, 3]) },
            { name: 'bias', shape: [4], optional: true, wrong: wrongVector(4) },
          ],
          run,
        ),
        bad(24, 'bf16 x, f16 loraB', 'ERR_DTYPE', () =>
          run({ x: zeros([2, 8], 'bf16'), loraB: zeros([4, 3], 'f16') }),
        ),
        bad(24, 'f16 x, bf16 w', 'ERR_DTYPE', () =>
          run({ x: zeros([2, 8], 'f16'), w: zeros([4, 8], 'bf16') }),
        ),
        bad(29, 'w: quantised from NaN', 'ERR_NON_FINITE', async () => {
          const nan = Tensor.from(new Float32Array(32).fill(Number.NaN), [4, 8], { device });
          await (run({ w: quantize(nan, { format: 'fp4' }) }) as Tensor).read();
        }),
        bad(3, 'compute: a number', 'ERR_TYPE', () => option({ compute: 8 })),
        bad(3, 'compute: unknown', 'ERR_VALUE', () => option({ compute: 'int4' })),
        bad(24, 'compute: int8 of a dense weight', 'ERR_UNSUPPORTED', () =>
          callWith(loraExpand, x, dense, h, loraB, { compute: 'int8' }),
        ),
        ...factorCases('scaling', option),
        ...optionCases(option, 'bias'),
        ...hugeProducts(device, (x0, w0) =>
          loraExpand(x0, w0, zeros([x0.shape[0] as number, 0]), zeros([w0.shape[0] as number, 0])),
        ),
      ];
      await checkCases('loraExpand', device, {
        watched: [x, dense, h, loraB, bias],
        cases,
        valid: () => scope(async () => [await loraExpand(x, w, h, loraB, { bias }).read()]),
      });
    });
  });

  it('loraExpandBackward', async () => {
    await scope(async () => {
      const { zeros, dy, h, loraB } = layer(device);
      const target = Tensor.randn([4, 3], { seed: 20, device });
      const run = (wrong: Record<string, unknown>): unknown => {
        const { dLoraB, dBias, dhInto, ...operands } = wrong;
        const given = { dy, h, loraB, ...operands };
        const into = {
          ...('dLoraB' in wrong ? { dLoraB } : {}),
          ...('dBias' in wrong ? { dBias } : {}),
          ...('dhInto' in wrong ? { dh: dhInto } : {}),
        };
        return callWith(loraExpandBackward, given.dy, given.h, given.loraB, {
          accumulateInto: into,
        });
      };
      const option = (options: unknown): unknown =>
        callWith(loraExpandBackward, dy, h, loraB, options);
      const cases = [
        bad(1, 'no arguments', 'ERR_TYPE', () => callWith(loraExpandBackward)),
        bad(1, 'no loraB', 'ERR_TYPE', () => callWith(loraExpandBackward, dy, h)),
        ...operandCases(
          device,
          [
            { name: 'dy', shape: [2, 4], leads: true, wrong: wrongMatrix([2, 4]) },
            { name: 'h', shape: [2, 3], dtypes: ['bf16', 'f16'], wrong: wrongMatrix([2, 3]) },
            { name: 'loraB', shape: [4, 3], wrong: wrongMatrix([4, 3]) },
            { name: 'dLoraB', shape: [4, 3], optional: true, wrong: wrongMatrix([4, 3]) },
            { name: 'dBias', shape: [4], optional: true, wrong: wrongVector(4) },
            {
              name: 'dhInto',
              shape: [2, 3],
              optional: true,
              dtypes: ['bf16', 'f16'],
              wrong: wrongMatrix([2, 3]),
            },
          ],
          run,
        ),
        bad(24, 'bf16 dy, f16 loraB', 'ERR_DTYPE', () =>
          run({ dy: zeros([2, 4], 'bf16'), loraB: zeros([4, 3], 'f16') }),
        ),
        bad(27, 'dLoraB is loraB', 'ERR_ALIAS', () => run({ dLoraB: loraB })),
        bad(27, 'dh is h', 'ERR_ALIAS', () => run({ dhInto: h })),
        bad(27, 'two gradients into one tensor', 'ERR_ALIAS', () => {
          const memory = zeros([1, 4]);
          const narrow = { dy: zeros([1, 4]), h: zeros([1, 4]), loraB: zeros([4, 4]) };
          return run({ ...narrow, dBias: memory, dhInto: memory });
        }),
        bad(27, 'dBias is dy', 'ERR_ALIAS', () => {
          const one = Tensor.from([1, 2, 3, 4], [1, 4], { device });
          return run({ dy: one, h: zeros([1, 3]), dBias: one });
        }),
        bad(28, 'dh over a part of dy', 'ERR_ALIAS', () => {
          const memory = new Float32Array(new SharedArrayBuffer(4 * 12));
          const part = Tensor.wrap(memory.subarray(0, 8), [2, 4], { device });
          return run({ dy: part, dhInto: Tensor.wrap(memory.subarray(6, 12), [2, 3], { device }) });
        }),
        ...factorCases('scaling', option),
        ...needsCases(option),
        ...optionCases(option, 'needs'),
      ];
      await checkCases('loraExpandBackward', device, {
        watched: [dy, h, loraB, target],
        cases,
        valid: () =>
          scope(async () =>
            Promise.all(Object.values(loraExpandBackward(dy, h, loraB)).map((g) => g.read())),
          ),
      });
    });
  });

  it('loraShrinkBackward', async () => {
    await scope(async () => {
      const { zeros, x, dense, dy, dh, loraA } = layer(device);
      const w = quantize(dense, { format: 'nf4' });
      const run = (wrong: Record<string, unknown>): unknown => {
        const { dx, dLoraA, dropoutMask, x: xGiven, ...operands } = wrong;
        const given = { dy, w, dh, loraA, ...operands };
        const options = {
          x: 'x' in wrong ? xGiven : x,
          ...('dropoutMask' in wrong ? { dropoutMask } : {}),
          accumulateInto: {
            ...('dx' in wrong ? { dx } : {}),
            ...('dLoraA' in wrong ? { dLoraA } : {}),
          },
        };
        return callWith(loraShrinkBackward, given.dy, given.w, given.dh, given.loraA, options);
      };
      const option = (options: unknown): unknown =>
        callWith(loraShrinkBackward, dy, w, dh, loraA, options);
      const cases = [
        bad(1, 'no arguments', 'ERR_TYPE', () => callWith(loraShrinkBackward)),
        bad(1, 'no loraA', 'ERR_TYPE', () => callWith(loraShrinkBackward, dy, w, dh)),
        ...operandCases(
          device,
          [
            { name: 'dy', shape: [2, 4], leads: true, wrong: wrongMatrix([2, 4]) },
            {
              name: 'w',
              shape: [4, 8],
              wrong: [
                [11, [4, 7]],
                [12, [5, 8]],
                [23, [8]],
              ],
            },
            { name: 'dh', shape: [2, 3], dtypes: ['bf16', 'f16'], wrong: wrongMatrix([2, 3]) },
            { name: 'loraA', shape: [3, 8], wrong: wrongMatrix([3, 8]) },
            {
              name: 'x',
              shape: [2, 8],
              optional: true,
              dtypes: ['bf16', 'f16'],
              wrong: wrongMatrix([2, 8]),
            },
            { name: 'dropoutMask', shape: [2, 8], optional: true, wrong: wrongMatrix([2, 8]) },
            {
              name: 'dx',
              shape: [2, 8],
              optional: true,
              dtypes: ['bf16', 'f16'],
              wrong: wrongMatrix([2, 8]),
            },
            { name: 'dLoraA', shape: [3, 8], optional: true, wrong: wrongMatrix([3, 8]) },
          ],
          run,
        ),
        bad(24, 'bf16 dy, f16 w', 'ERR_DTYPE', () =>
          run({ dy: zeros([2, 4], 'bf16'), w: zeros([4, 8], 'f16'), x: undefined }),
        ),
        bad(27, 'dx is x', 'ERR_ALIAS', () => run({ dx: x })),
        bad(27, 'dLoraA is loraA', 'ERR_ALIAS', () => run({ dLoraA: loraA })),
        bad(28, 'dLoraA over half of loraA', 'ERR_ALIAS', () => {
          const memory = new Float32Array(new SharedArrayBuffer(4 * 36));
          const wrap = (from: number): Tensor =>
            Tensor.wrap(memory.subarray(from, from + 24), [3, 8], { device });
          return run({ loraA: wrap(0), dLoraA: wrap(12) });
        }),
        bad(30, 'dLoraA without x', 'ERR_VALUE', () => option({ needs: ['dLoraA'] })),
        bad(29, 'w: quantised from NaN', 'ERR_NON_FINITE', async () => {
          const nan = Tensor.from(new Float32Array(32).fill(Number.NaN), [4, 8], { device });
          const { dx } = run({ w: quantize(nan, { format: 'nf4' }) }) as { dx: Tensor };
          await dx.read();
        }),
        ...factorCases('scaling', option),
        ...dropoutCases(option),
        ...needsCases(option),
        ...optionCases(option, 'needs'),
      ];
      await checkCases('loraShrinkBackward', device, {
        watched: [x, dense, dy, dh, loraA],
        cases,
        valid: () =>
          scope(async () => {
            const gradients = loraShrinkBackward(dy, w, dh, loraA, { x, dropout: 0.5, seed: 1 });
            return Promise.all(Object.values(gradients).map((g) => g.read()));
          }),
      });
    });
  });

  it('weightGrad', async () => {
    await scope(async () => {
      const { zeros, x, dy } = layer(device);
      const run = (wrong: Record<string, unknown>): unknown => {
        const { dW, ...operands } = wrong;
        const given = { dy, x, ...operands };
        const options = 'dW' in wrong ? { accumulateInto: dW } : {};
        return callWith(weightGrad, given.dy, given.x, options);
      };
      const option = (options: unknown): unknown => callWith(weightGrad, dy, x, options);
      const cases = [
        bad(1, 'no arguments', 'ERR_TYPE', () => callWith(weightGrad)),
        bad(1, 'dy alone', 'ERR_TYPE', () => callWith(weightGrad, dy)),
        ...operandCases(
          device,
          [
            {
              name: 'dy',
              shape: [2, 4],
              leads: true,
              wrong: [
                [11, [1, 4]],
                [12, [3, 4]],
                [14, [0, 4]],
                [23, [8]],
                [23, []],
              ],
            },
            {
              name: 'x',
              shape: [2, 8],
              wrong: [
                [11, [1, 8]],
                [12, [3, 8]],
                [14, [0, 8]],
                [23, [16]],
                [23, [1, 2, 8]],
                [23, []],
              ],
            },
            { name: 'dW', shape: [4, 8], optional: true, wrong: wrongMatrix([4, 8]) },
          ],
          run,
        ),
        bad(24, 'dtype: f64', 'ERR_DTYPE', () => option({ dtype: 'f64' })),
        bad(3, 'dtype: a number', 'ERR_TYPE', () => option({ dtype: 32 })),
        bad(27, 'dW is x', 'ERR_ALIAS', () => run({ dy: zeros([2, 2]), dW: x, x })),
        bad(28, 'dW over a part of dy', 'ERR_ALIAS', () => {
          const memory = new Float32Array(new SharedArrayBuffer(4 * 40));
          const part = Tensor.wrap(memory.subarray(0, 8), [2, 4], { device });
          return run({ dy: part, dW: Tensor.wrap(memory.subarray(4, 36), [4, 8], { device }) });
        }),
        ...optionCases(option, 'dtype'),
        ...hugeProducts(device, (x0, w0) => {
          // dy [0, M], x [0, N]: the result would hold M · N.
          const turned = (t: Tensor): Tensor => zeros([0, t.shape[0] as number]);
          return weightGrad(turned(x0), turned(w0));
        }),
      ];
      await checkCases('weightGrad', device, {
        watched: [x, dy],
        cases,
        valid: () => scope(async () => [await weightGrad(dy, x).read()]),
      });
    });
  });
});
