// Bad input to multiplyAdd, mapTensor, swiglu, swigluBackward, sumProduct, coreScale, coreScaleBackward, checkGradients.
import { describe, it } from 'vitest';
import {
  CoreSaved,
  checkGradients,
  coreScale,
  coreScaleBackward,
  type Device,
  gatedActivation,
  gatedActivationBackward,
  mapTensor,
  multiplyAdd,
  scope,
  sumProduct,
  swiglu,
  swigluBackward,
  Tensor,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { type BadClass, bad, callWith, checkCases, hostile, impostors } from './harness.js';
import { factorCases, operandCases, wrongMatrix, wrongVector } from './operand-cases.js';

// Beside a [2, 8]: neither of its dimensions, nor 1.
const WRONG_BESIDE: readonly (readonly [BadClass, readonly number[]])[] = [
  [11, [7]],
  [12, [9]],
  [13, [0]],
  [11, [2, 7]],
  [12, [3, 8]],
  [14, [0, 8]],
  [22, [8, 2]],
  [23, [16]],
  [23, [2, 2, 4]],
];

describe.each(DEVICES)('bad input on %s', (device) => {
  it('multiplyAdd', async () => {
    await scope(async () => {
      const random = (shape: number[], seed: number): Tensor =>
        Tensor.randn(shape, { seed, device });
      const [a, b, c] = [random([2, 8], 1), random([8], 2), random([2, 1], 3)];
      const run = (wrong: object): unknown => callWith(multiplyAdd, { a, b, c, ...wrong });
      const cases = [
        bad(1, 'no arguments', 'ERR_TYPE', () => callWith(multiplyAdd)),
        bad(2, 'null', 'ERR_TYPE', () => callWith(multiplyAdd, null)),
        bad(3, 'a number', 'ERR_TYPE', () => callWith(multiplyAdd, 3)),
        bad(3, 'an array', 'ERR_TYPE', () => callWith(multiplyAdd, [a, b])),
        bad(33, 'a getter that throws', 'HOSTILE', () => callWith(multiplyAdd, hostile('alpha'))),
        ...operandCases(
          device,
          [
            { name: 'a', shape: [2, 8], leads: true, wrong: [[12, [2, 9]]] },
            { name: 'b', shape: [8], optional: true, wrong: WRONG_BESIDE },
            { name: 'c', shape: [2, 1], optional: true, wrong: WRONG_BESIDE },
          ],
          run,
        ),
        ...factorCases('alpha', run),
        ...factorCases('beta', run),
        bad(24, 'dtype: f64', 'ERR_DTYPE', () => run({ dtype: 'f64' })),
        bad(3, 'dtype: 3', 'ERR_TYPE', () => run({ dtype: 3 })),
        bad(2, 'dtype: null', 'ERR_TYPE', () => run({ dtype: null })),
      ];
      await checkCases('multiplyAdd', device, {
        watched: [a, b, c],
        cases,
        valid: () => scope(async () => [await multiplyAdd({ a, b, c }).read()]),
      });
    });
  });

  it('swiglu and swigluBackward', async () => {
    await scope(async () => {
      const [gate, up, dy] = [1, 2, 3].map((seed) => Tensor.randn([2, 8], { seed, device })) as [
        Tensor,
        Tensor,
        Tensor,
      ];
      const operands = [
        { name: 'gate', shape: [2, 8], leads: true, wrong: [[12, [2, 9]]] as const },
        { name: 'up', shape: [2, 8], wrong: wrongMatrix([2, 8]) },
      ];
      const forward = (wrong: object): unknown => {
        const given = { gate, up, ...wrong };
        return callWith(swiglu, given.gate, given.up);
      };
      const backward = (wrong: object): unknown => {
        const given = { dy, gate, up, ...wrong };
        return callWith(swigluBackward, given.dy, given.gate, given.up);
      };
      const half = up.to({ dtype: 'bf16' });
      await checkCases('swiglu', device, {
        watched: [gate, up],
        cases: [
          bad(1, 'no arguments', 'ERR_TYPE', () => callWith(swiglu)),
          bad(1, 'no up', 'ERR_TYPE', () => callWith(swiglu, gate)),
          bad(24, 'another dtype', 'ERR_DTYPE', () => forward({ up: half })),
          ...operandCases(device, operands, forward),
        ],
        valid: () => scope(async () => [await swiglu(gate, up).read()]),
      });
      const third = { name: 'dy', shape: [2, 8], wrong: wrongMatrix([2, 8]) };
      await checkCases('swigluBackward', device, {
        watched: [gate, up, dy],
        cases: [
          bad(1, 'no arguments', 'ERR_TYPE', () => callWith(swigluBackward)),
          bad(1, 'no up', 'ERR_TYPE', () => callWith(swigluBackward, dy, gate)),
          bad(24, 'another dtype', 'ERR_DTYPE', () => backward({ up: half })),
          ...operandCases(device, [...operands, third], backward),
        ],
        valid: () =>
          scope(async () => {
            const { dGate, dUp } = swigluBackward(dy, gate, up);
            return [await dGate.read(), await dUp.read()];
          }),
      });
    });
  });

  it('gatedActivation and gatedActivationBackward', async () => {
    await scope(async () => {
      const [gate, up, dy] = [1, 2, 3].map((seed) => Tensor.randn([2, 8], { seed, device })) as [
        Tensor,
        Tensor,
        Tensor,
      ];
      const kind = 'gelu';
      const operands = [
        { name: 'gate', shape: [2, 8], leads: true, wrong: [[12, [2, 9]]] as const },
        { name: 'up', shape: [2, 8], wrong: wrongMatrix([2, 8]) },
      ];
      const third = { name: 'dy', shape: [2, 8], wrong: wrongMatrix([2, 8]) };
      const forward = (wrong: object, options: unknown = { kind }): unknown => {
        const given = { gate, up, ...wrong };
        return callWith(gatedActivation, given.gate, given.up, options);
      };
      const backward = (wrong: object, options: unknown = { kind }): unknown => {
        const given = { dy, gate, up, ...wrong };
        return callWith(gatedActivationBackward, given.dy, given.gate, given.up, options);
      };
      const half = up.to({ dtype: 'bf16' });
      const kinds = (run: (wrong: object, options: unknown) => unknown) => [
        bad(2, 'options: null', 'ERR_TYPE', () => run({}, null)),
        bad(2, 'kind: missing', 'ERR_VALUE', () => run({}, {})),
        bad(3, 'kind: a number', 'ERR_VALUE', () => run({}, { kind: 1 })),
        bad(35, 'kind: unknown', 'ERR_VALUE', () => run({}, { kind: 'relu' })),
        bad(33, 'a getter that throws', 'HOSTILE', () => run({}, hostile('kind'))),
      ];
      await checkCases('gatedActivation', device, {
        watched: [gate, up],
        cases: [
          bad(1, 'no arguments', 'ERR_TYPE', () => callWith(gatedActivation)),
          bad(1, 'no options', 'ERR_VALUE', () => callWith(gatedActivation, gate, up)),
          bad(24, 'another dtype', 'ERR_DTYPE', () => forward({ up: half })),
          ...kinds(forward),
          ...operandCases(device, operands, forward),
        ],
        valid: () => scope(async () => [await gatedActivation(gate, up, { kind }).read()]),
      });
      await checkCases('gatedActivationBackward', device, {
        watched: [gate, up, dy],
        cases: [
          bad(1, 'no arguments', 'ERR_TYPE', () => callWith(gatedActivationBackward)),
          bad(24, 'another dtype', 'ERR_DTYPE', () => backward({ up: half })),
          ...kinds(backward),
          ...operandCases(device, [...operands, third], backward),
        ],
        valid: () =>
          scope(async () => {
            const { dGate, dUp } = gatedActivationBackward(dy, gate, up, { kind });
            return [await dGate.read(), await dUp.read()];
          }),
      });
    });
  });

  it('mapTensor', async () => {
    await scope(async () => {
      const a = Tensor.randn([2, 8], { seed: 1, device });
      const call = (...args: unknown[]): unknown => callWith(mapTensor, ...args);
      const cases = [
        bad(1, 'no arguments', 'ERR_TYPE', () => call()),
        bad(1, 'no kind', 'ERR_TYPE', () => call(a)),
        ...operandCases(device, [{ name: 'a', shape: [2, 8], leads: true, wrong: [] }], (wrong) =>
          call(wrong.a, 'exp'),
        ),
        bad(2, 'kind: null', 'ERR_TYPE', () => call(a, null)),
        bad(3, 'kind: a number', 'ERR_TYPE', () => call(a, 1)),
        bad(3, 'kind: a symbol', 'ERR_TYPE', () => call(a, Symbol('exp'))),
        bad(3, 'kind: unknown', 'ERR_VALUE', () => call(a, 'cosh')),
        bad(3, 'kind: empty', 'ERR_VALUE', () => call(a, '')),
        bad(3, 'kind: of Object', 'ERR_VALUE', () => call(a, 'toString')),
        bad(24, 'dtype: f64', 'ERR_DTYPE', () => call(a, 'exp', { dtype: 'f64' })),
        bad(2, 'options: null', 'ERR_TYPE', () => call(a, 'exp', null)),
        bad(33, 'options: a getter that throws', 'HOSTILE', () => call(a, 'exp', hostile('dtype'))),
      ];
      await checkCases('mapTensor', device, {
        watched: [a],
        cases,
        valid: () => scope(async () => [await mapTensor(a, 'tanh').read()]),
      });
    });
  });

  it('sumProduct', async () => {
    await scope(async () => {
      const a = Tensor.randn([2, 8], { seed: 1, device });
      const b = Tensor.randn([2, 8], { seed: 2, device });
      const call = (...args: unknown[]): unknown => callWith(sumProduct, ...args);
      const run = (wrong: Record<string, unknown>): unknown => {
        const given = { a, b, ...wrong };
        return call(given.a, given.b, { axis: 0 });
      };
      const axis = (value: unknown) => () => call(a, b, { axis: value });
      const cases = [
        bad(1, 'no arguments', 'ERR_TYPE', () => call()),
        bad(1, 'no options', 'ERR_TYPE', () => call(a, b)),
        ...operandCases(
          device,
          [
            { name: 'a', shape: [2, 8], leads: true, wrong: [[12, [2, 9]]] },
            { name: 'b', shape: [2, 8], optional: true, wrong: WRONG_BESIDE },
          ],
          run,
        ),
        bad(2, 'axis: undefined', 'ERR_TYPE', axis(undefined)),
        bad(3, 'axis: a string', 'ERR_TYPE', axis('0')),
        bad(15, 'axis: -1', 'ERR_VALUE', axis(-1)),
        bad(16, 'axis: 0.5', 'ERR_VALUE', axis(0.5)),
        bad(17, 'axis: NaN', 'ERR_VALUE', axis(Number.NaN)),
        bad(12, 'axis: 2', 'ERR_VALUE', axis(2)),
        bad(2, 'options: null', 'ERR_TYPE', () => call(a, b, null)),
        bad(33, 'options: a getter that throws', 'HOSTILE', () => call(a, b, hostile('axis'))),
      ];
      await checkCases('sumProduct', device, {
        watched: [a, b],
        cases,
        valid: () => scope(async () => [await sumProduct(a, b, { axis: 1 }).read()]),
      });
    });
  });

  it('coreScale and coreScaleBackward', async () => {
    await scope(async () => {
      const random = (shape: number[], seed: number): Tensor =>
        Tensor.randn(shape, { seed, device });
      const h = random([2, 3], 1);
      const parts = { dIn: random([3], 2), core: random([3, 3], 3), dOut: random([3], 4) };
      const dh2 = random([2, 3], 5);
      const { saved } = coreScale(h, parts);
      const finished = coreScale(h, parts).saved;
      finished.dispose();
      const run = (wrong: Record<string, unknown>): unknown => {
        const { h: given = h, ...rest } = wrong;
        return callWith(coreScale, 'h' in wrong ? wrong.h : given, { ...parts, ...rest });
      };
      const back = (...args: unknown[]): unknown => callWith(coreScaleBackward, ...args);
      const halves = ['bf16', 'f16'] as const;
      const vector = { shape: [3], optional: true, dtypes: halves, wrong: wrongVector(3) };
      const cases = [
        bad(1, 'no arguments', 'ERR_TYPE', () => callWith(coreScale)),
        bad(1, 'h alone', 'ERR_TYPE', () => callWith(coreScale, h)),
        bad(2, 'parts: null', 'ERR_TYPE', () => callWith(coreScale, h, null)),
        bad(30, 'no parts', 'ERR_VALUE', () => callWith(coreScale, h, {})),
        bad(33, 'a getter that throws', 'HOSTILE', () => callWith(coreScale, h, hostile('core'))),
        ...operandCases(
          device,
          [
            {
              name: 'h',
              shape: [2, 3],
              leads: true,
              dtypes: halves,
              wrong: [
                [11, [2, 2]],
                [12, [2, 4]],
                [13, [2, 0]],
                [23, []],
              ],
            },
            { ...vector, name: 'dIn' },
            { ...vector, name: 'dOut' },
            {
              name: 'core',
              shape: [3, 3],
              optional: true,
              dtypes: halves,
              wrong: [
                [11, [3, 2]],
                [12, [3, 4]],
                // dOut has 3 elements, and this makes 4.
                [22, [4, 3]],
                [23, [1, 3, 3]],
                [23, []],
              ],
            },
          ],
          run,
        ),
        bad(1, 'backward: no arguments', 'ERR_TYPE', () => back()),
        bad(1, 'backward: no saved', 'ERR_TYPE', () => back(dh2)),
        ...operandCases(
          device,
          [
            {
              name: 'dh2',
              shape: [2, 3],
              dtypes: halves,
              wrong: [
                [11, [2, 2]],
                [12, [3, 3]],
                [23, [6]],
              ],
            },
          ],
          (wrong) => back(wrong.dh2, saved),
        ),
        ...impostors(saved).map(([kind, what, value]) =>
          bad(kind, `saved: ${what}`, 'ERR_TYPE', () => back(dh2, value)),
        ),
        bad(5, 'saved: a forgery', 'ERR_TYPE', () => back(dh2, Object.create(CoreSaved.prototype))),
        bad(31, 'saved: used up', 'ERR_DISPOSED', () => back(dh2, finished)),
        bad(31, 'a part disposed since', 'ERR_DISPOSED', () => {
          const mortal = Tensor.zeros([3], { device });
          const held = coreScale(h, { ...parts, dOut: mortal }).saved;
          mortal.dispose();
          return back(dh2, held);
        }),
        bad(2, 'backward, options: null', 'ERR_TYPE', () => back(dh2, saved, null)),
      ];
      await checkCases('coreScale', device, {
        watched: [h, parts.dIn, parts.core, parts.dOut, dh2],
        cases,
        valid: () =>
          scope(async () => {
            const gradients = coreScaleBackward(dh2, saved, { keep: true });
            return [
              await coreScale(h, parts).h2.read(),
              ...(await Promise.all(Object.values(gradients).map((g: Tensor) => g.read()))),
            ];
          }),
      });
    });
  });
});

describe('bad input', () => {
  it('checkGradients', async () => {
    await scope(async () => {
      const device: Device = 'reference';
      const other = DEVICES.find((candidate) => candidate !== device) as Device;
      const a = Tensor.randn([2, 8], { seed: 1, device });
      const good = {
        inputs: { a },
        forward: ({ a: value }: Record<string, Tensor>) =>
          multiplyAdd({ a: value as Tensor, alpha: 3 }),
        backward: (dy: Tensor) => ({ a: multiplyAdd({ a: dy, alpha: 3 }) }),
      };
      const run = (change: object): unknown => callWith(checkGradients, { ...good, ...change });
      const cases = [
        bad(1, 'no arguments', 'ERR_TYPE', () => callWith(checkGradients)),
        bad(2, 'null', 'ERR_TYPE', () => callWith(checkGradients, null)),
        bad(2, 'inputs: null', 'ERR_TYPE', () => run({ inputs: null })),
        bad(3, 'inputs: an array', 'ERR_TYPE', () => run({ inputs: [a] })),
        ...impostors(a).map(([kind, what, value]) =>
          bad(kind, `inputs.a: ${what}`, 'ERR_TYPE', () => run({ inputs: { a: value } })),
        ),
        bad(24, 'inputs.a: bf16', 'ERR_DTYPE', () =>
          run({ inputs: { a: Tensor.zeros([2], { dtype: 'bf16', device }) } }),
        ),
        bad(32, `inputs.a: on ${other}`, 'ERR_DEVICE', () =>
          run({ inputs: { a: Tensor.zeros([2], { device: other }) } }),
        ),
        bad(2, 'forward: undefined', 'ERR_TYPE', () => run({ forward: undefined })),
        bad(3, 'forward: a number', 'ERR_TYPE', () => run({ forward: 3 })),
        bad(3, 'forward: gives a number', 'ERR_TYPE', () => run({ forward: () => 3 })),
        bad(3, 'backward: a string', 'ERR_TYPE', () => run({ backward: 'a' })),
        bad(3, 'backward: gives a number', 'ERR_TYPE', () => run({ backward: () => 3 })),
        bad(3, 'backward: a name unknown', 'ERR_VALUE', () => run({ backward: () => ({ b: a }) })),
        bad(3, 'backward: no tensor', 'ERR_TYPE', () => run({ backward: () => ({ a: 3 }) })),
        bad(22, 'backward: another shape', 'ERR_SHAPE', () =>
          run({ backward: () => ({ a: Tensor.zeros([8, 2], { device }) }) }),
        ),
        bad(3, 'step: a string', 'ERR_TYPE', () => run({ step: '1' })),
        bad(14, 'step: 0', 'ERR_VALUE', () => run({ step: 0 })),
        bad(17, 'step: NaN', 'ERR_VALUE', () => run({ step: Number.NaN })),
        bad(16, 'samples: 1.5', 'ERR_VALUE', () => run({ samples: 1.5 })),
        bad(30, 'seed: -1', 'ERR_VALUE', () => run({ seed: -1 })),
        bad(3, 'gradients that are promised', 'ERR_TYPE', () =>
          run({ backward: async () => ({}) }),
        ),
        bad(33, 'a getter that throws', 'HOSTILE', () => callWith(checkGradients, hostile('step'))),
      ];
      await checkCases('checkGradients', device, {
        watched: [a],
        cases,
        valid: async () => [checkGradients(good).map(({ worst }) => worst)],
      });
    });
  });
});
