// Classes whose objects something else makes: their constructors refuse to be called.
import { describe, expect, it } from 'vitest';
import {
  GroupedSaved,
  HfModel,
  QuantizedWeight,
  SafetensorsFile,
  scope,
  Tensor,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { type BadCase, type BadClass, bad, checkCases } from './harness.js';

const classes = [
  [Tensor, 'Tensor.from'],
  [QuantizedWeight, 'quantize'],
  [SafetensorsFile, 'openSafetensors'],
  [HfModel, 'openHfModel'],
  [GroupedSaved, 'GroupedLora.forward'],
] as const;

describe.each(DEVICES)('bad input on %s', (device) => {
  it('constructors', async () => {
    await scope(async () => {
      const w = Tensor.randn([2, 64], { seed: 1, device });
      const given: readonly (readonly [BadClass, string, readonly unknown[]])[] = [
        [1, 'nothing', []],
        [2, 'null', [null]],
        [2, 'nulls', [null, null, null, null]],
        [3, 'numbers', [[1, 2], [2]]],
        [3, 'options', [[1, 2], [2], { device }]],
        [3, 'a tensor', [w]],
        [3, 'a tensor and a format', [w, { format: 'nf4' }]],
        [3, 'a path', ['model']],
        [3, 'an object', [{}]],
      ];
      await checkCases('constructors', device, {
        watched: [w],
        cases: classes.flatMap(([made]) =>
          given.map(
            ([kind, what, args]): BadCase =>
              bad(kind, `${made.name}: ${what}`, 'ERR_TYPE', () => Reflect.construct(made, args)),
          ),
        ),
        valid: () => scope(async () => [await w.read()]),
      });
      for (const [made, maker] of classes) {
        expect(() => Reflect.construct(made, [])).toThrow(
          new RegExp(`^${made.name}: it must be made by ${maker}.*, got new ${made.name}$`),
        );
      }
    });
  });
});
