// Classes whose objects something else makes: their constructors refuse to be called.
import { describe, expect, it } from 'vitest';
import {
  Adapter,
  AdapterMethod,
  AdapterSaved,
  CapturedStep,
  CapturedTraining,
  CoreSaved,
  DeviceSeed,
  GradientTape,
  GroupedSaved,
  HfModel,
  LoraManySaved,
  LoraSaved,
  LoraSwigluSaved,
  QuantizedWeight,
  SafetensorsFile,
  scope,
  Tape,
  Tensor,
  Value,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { type BadCase, type BadClass, bad, checkCases } from './harness.js';

const classes = [
  [Tensor, 'Tensor.from'],
  [QuantizedWeight, 'quantize'],
  [SafetensorsFile, 'openSafetensors'],
  [HfModel, 'openHfModel'],
  [GroupedSaved, 'GroupedLora.forward'],
  [LoraSaved, 'loraForward'],
  [LoraManySaved, 'loraForwardMany'],
  [LoraSwigluSaved, 'loraForwardSwiglu'],
  [CoreSaved, 'coreScale'],
  [Adapter, 'create of a method, like adapters.lora.create'],
  [AdapterSaved, "an adapter's forward"],
  [AdapterMethod, 'defineAdapter'],
  [CapturedStep, 'captureStep'],
  [CapturedTraining, 'Trainer.capture'],
  [DeviceSeed, 'DeviceSeed.from'],
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
          new RegExp(
            `^${made.name}: an instance must be made by ${maker}.*, got new ${made.name}$`,
          ),
        );
      }
    });
  });

  it('tapes and their values', async () => {
    await scope(async () => {
      const w = Tensor.randn([2, 64], { seed: 1, device });
      const tape = (...args: unknown[]) => Reflect.construct(Tape, args);
      const noObject: readonly (readonly [BadClass, string, unknown])[] = [
        [2, 'null', null],
        [3, 'a number', 3],
        [3, 'a string', 'x'],
        [3, 'a function', () => 3],
      ];
      const noFlag = [...noObject, [3, 'an object', {}]] as const;
      await checkCases('tapes', device, {
        watched: [w],
        cases: [
          ...noObject.flatMap(([kind, what, value]) => [
            bad(kind, `Tape: ${what}`, 'ERR_TYPE', () => tape(value)),
            bad(kind, `dropout: ${what}`, 'ERR_TYPE', () => tape({ dropout: value })),
            bad(kind, `Value: ${what}`, 'ERR_TYPE', () => Reflect.construct(Value, [value, true])),
            bad(kind, `own: ${what}`, 'ERR_TYPE', () => new Tape().own(value as never)),
          ]),
          ...noFlag.flatMap(([kind, what, value]) => [
            bad(kind, `recording: ${what}`, 'ERR_TYPE', () => tape({ recording: value })),
            bad(kind, `GradientTape: ${what}`, 'ERR_TYPE', () =>
              Reflect.construct(GradientTape, [value]),
            ),
          ]),
          bad(3, 'Tape: an array', 'ERR_TYPE', () => tape([])),
        ],
        valid: () =>
          scope(async () => {
            const t = new Tape({ recording: true, dropout: {}, compute: 'exact' });
            return [await t.multiply(t.constant(w), t.constant(w)).tensor.read()];
          }),
      });
      expect(() => tape(null)).toThrow(/^Tape: options must be an object, got null$/);
      expect(() => Reflect.construct(Value, [])).toThrow(
        /^Value: tensor must be a Tensor \(a Value comes from Tape\.variable, .*, got undefined$/,
      );
    });
  });
});
