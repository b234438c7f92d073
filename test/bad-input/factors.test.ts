// Bad input where a LoraAdapter is taken: other adapters are refused by what they are.
import { describe, expect, it } from 'vitest';
import {
  adapters,
  arrowExperts,
  GroupedLora,
  LoraAdapter,
  LoraLinear,
  mergeLora,
  scope,
  Tensor,
  unmergeLora,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { bad, callWith, checkCases, hostile, impostors } from './harness.js';

const make = (parts?: unknown) => Reflect.construct(LoraLinear, [parts]);

describe.each(DEVICES)('bad input on %s', (device) => {
  it('LoraLinear, and adapters of methods in place of a LoraAdapter', async () => {
    await scope(async () => {
      const place = { inFeatures: 8, outFeatures: 6, device } as const;
      const own = adapters.lora.create({ ...place, r: 2 });
      const adapter = LoraAdapter.init({ ...place, r: 2, loraAlpha: 4, seed: 1 });
      const weight = Tensor.randn([6, 8], { seed: 2, device });
      const bias = Tensor.zeros([6], { device });
      const gone = Tensor.zeros([6, 8], { device });
      gone.dispose();
      const group = new GroupedLora(place);
      group.add('one', adapter);
      const parts = { weight, bias, adapters: { one: adapter } };
      const layer = (wrong: object) => () => make({ ...parts, ...wrong });
      // A proxy and a forgery of an adapter pass as one until their tensors are looked at.
      const noAdapters = impostors(adapter).filter(([, what]) => what !== 'a proxy');
      await checkCases('LoraLinear', device, {
        watched: [weight, bias, adapter.loraA, adapter.loraB, ...Object.values(own.parameters)],
        cases: [
          bad(1, 'no arguments', 'ERR_TYPE', () => make()),
          bad(2, 'null', 'ERR_TYPE', () => make(null)),
          bad(3, 'an array', 'ERR_TYPE', () => make([])),
          bad(33, 'a getter that throws', 'HOSTILE', () => make(hostile('weight'))),
          ...impostors(weight).map(([kind, what, value]) =>
            bad(kind, `weight: ${what}`, 'ERR_TYPE', layer({ weight: value })),
          ),
          bad(31, 'weight: disposed', 'ERR_DISPOSED', layer({ weight: gone })),
          bad(23, 'weight: a vector', 'ERR_SHAPE', layer({ weight: bias })),
          bad(2, 'bias: null', 'ERR_TYPE', layer({ bias: null })),
          bad(31, 'bias: disposed', 'ERR_DISPOSED', layer({ bias: gone })),
          bad(2, 'adapters: null', 'ERR_TYPE', layer({ adapters: null })),
          bad(3, 'adapters: a string', 'ERR_TYPE', layer({ adapters: 'one' })),
          bad(3, 'adapters: one by itself', 'ERR_TYPE', layer({ adapters: adapter })),
          bad(3, 'active: a number', 'ERR_TYPE', layer({ active: 1 })),
          ...[[3, 'of a method', own] as const, ...noAdapters].flatMap(([kind, what, value]) => [
            ...(what === 'a forgery'
              ? []
              : [bad(kind, `adapter: ${what}`, 'ERR_TYPE', layer({ adapters: { one: value } }))]),
            bad(kind, `add: ${what}`, 'ERR_TYPE', () =>
              callWith(group.add.bind(group), 'two', value),
            ),
            bad(kind, `update: ${what}`, 'ERR_TYPE', () =>
              callWith(group.update.bind(group), 'one', value),
            ),
            bad(kind, `experts: ${what}`, 'ERR_TYPE', () =>
              callWith(arrowExperts, [adapter, value]),
            ),
            bad(kind, `general: ${what}`, 'ERR_TYPE', () =>
              callWith(arrowExperts, [adapter], { general: [value] }),
            ),
          ]),
          bad(3, 'mergeLora: of a method', 'ERR_TYPE', () => callWith(mergeLora, weight, own)),
          bad(3, 'unmergeLora: of a method', 'ERR_TYPE', () => callWith(unmergeLora, weight, own)),
        ],
        valid: () =>
          scope(async () => [
            await new LoraLinear(parts).forward(weight, { training: false }).read(),
          ]),
      });
      expect(() => callWith(mergeLora, weight, own)).toThrow(
        'mergeLora: parts must be a LoraAdapter or { loraA, loraB, scaling } (for an adapter from adapters.lora.create call ' +
          'adapter.merge(w)), got an adapter of the method lora',
      );
      expect(() => callWith(group.add.bind(group), 'two', own)).toThrow(
        'GroupedLora.add: adapter must be a LoraAdapter from new LoraAdapter or LoraAdapter.init ' +
          '(make it with new LoraAdapter({ ...adapter.parameters, loraAlpha, rslora, dropout }), with the numbers of ' +
          'adapter.config), got an adapter of the method lora',
      );
      expect(() => callWith(group.add.bind(group), 'two', { ...own.parameters })).toThrow(
        'GroupedLora.add: adapter must be a LoraAdapter from new LoraAdapter or LoraAdapter.init, got an object',
      );
      expect(() => Reflect.construct(LoraAdapter, [own])).toThrow(
        /^LoraAdapter: parts must be { loraA, loraB, loraAlpha } \(make it with .*, got an adapter of the method lora$/,
      );
      const scaled = adapters.dora.create({ ...place, r: 2, weight });
      expect(() => callWith(group.add.bind(group), 'two', scaled)).toThrow(
        /\(call adapter.forward and adapter.backward of this adapter instead\), got an adapter of the method dora$/,
      );
      // What the message says to do.
      const { loraAlpha, rslora, dropout } = own.config;
      group.add('two', new LoraAdapter({ ...own.parameters, loraAlpha, rslora, dropout } as never));
    });
  });
});
