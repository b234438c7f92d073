// Bad input to mergeLora and unmergeLora.
import { describe, it } from 'vitest';
import {
  type BaseWeight,
  mergeLora,
  quantize,
  scope,
  Tensor,
  unmergeLora,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { bad, callWith, checkCases, hostile, impostors } from './harness.js';
import { factorCases, operandCases, wrongMatrix, wrongVector } from './operand-cases.js';

describe.each(DEVICES)('bad input on %s', (device) => {
  it.each(['dense', 'nf4'])('mergeLora and unmergeLora, %s', async (kind) => {
    await scope(async () => {
      const random = (shape: number[], seed: number): Tensor =>
        Tensor.randn(shape, { seed, device });
      const dense = random([6, 64], 1);
      const w: BaseWeight = kind === 'dense' ? dense : quantize(dense, { format: 'nf4' });
      const gone = quantize(dense, { format: 'nf4' });
      gone.dispose();
      const parts = { loraA: random([3, 64], 2), loraB: random([6, 3], 3) };
      const core = random([3, 3], 4);
      const cases = [mergeLora, unmergeLora].flatMap((f) => {
        const run = (wrong: object): unknown => callWith(f, w, { ...parts, ...wrong });
        return [
          bad(1, 'no arguments', 'ERR_TYPE', () => callWith(f)),
          bad(1, 'no parts', 'ERR_TYPE', () => callWith(f, w)),
          bad(2, 'parts: null', 'ERR_TYPE', () => callWith(f, w, null)),
          bad(3, 'parts: a number', 'ERR_TYPE', () => callWith(f, w, 3)),
          bad(1, 'parts: empty', 'ERR_TYPE', () => callWith(f, w, {})),
          bad(33, 'a getter that throws', 'HOSTILE', () => callWith(f, w, hostile('loraA'))),
          ...impostors(dense).map(([what, name, value]) =>
            bad(what, `w: ${name}`, 'ERR_TYPE', () => callWith(f, value, parts)),
          ),
          bad(31, 'w: disposed', 'ERR_DISPOSED', () => callWith(f, gone, parts)),
          bad(23, 'w: a vector', 'ERR_SHAPE', () => callWith(f, random([64], 1), parts)),
          bad(22, 'w: [64, 6]', 'ERR_SHAPE', () => callWith(f, random([64, 6], 1), parts)),
          ...operandCases(
            device,
            [
              { name: 'loraA', shape: [3, 64], wrong: wrongMatrix([3, 64]) },
              { name: 'loraB', shape: [6, 3], wrong: [...wrongMatrix([6, 3]), [12, [7, 3]]] },
            ],
            run,
          ),
          ...operandCases(
            device,
            [
              {
                name: 'core',
                shape: [3, 3],
                optional: true,
                wrong: [
                  ...wrongMatrix([3, 3]).slice(0, 5),
                  ...wrongVector(3).slice(0, 3),
                  [23, []],
                ],
              },
            ],
            run,
          ),
          bad(22, 'core: for another loraB', 'ERR_SHAPE', () =>
            run({ core, loraB: random([6, 4], 3) }),
          ),
          ...factorCases('scaling', run),
          ...factorCases('beta', run),
          ...(f === unmergeLora ? [bad(14, 'beta: 0', 'ERR_VALUE', () => run({ beta: 0 }))] : []),
        ];
      });
      await checkCases('mergeLora', device, {
        watched: [dense, parts.loraA, parts.loraB, core],
        cases,
        valid: () =>
          scope(async () => {
            const own = w instanceof Tensor ? w.to({}) : w;
            const { weight, lost } = mergeLora(own, { ...parts, core });
            return [
              Object.values(lost),
              weight instanceof Tensor
                ? await weight.read()
                : ((await weight.toBitsandbytes()).weight?.data as Uint8Array),
            ];
          }),
      });
    });
  });
});
