// Bad input to adapter methods: making adapters, forward, backward, merging.
import { describe, expect, it } from 'vitest';
import {
  type Adapter,
  type AdapterSaved,
  adapterFromPeft,
  adapterMethods,
  type Device,
  scope,
  Tensor,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { type BadCase, bad, callWith, checkCases, hostile, impostors } from './harness.js';

const [M, N, K] = [4, 6, 8];

const methodOf = (name: string) => {
  const found = adapterMethods.find(({ method }) => method === name);
  if (found === undefined) throw new Error(name);
  return found;
};

/** The same call with one argument replaced. */
function swaps(
  args: readonly unknown[],
  call: (...args: unknown[]) => unknown,
): (at: number, value: unknown) => () => unknown {
  return (at, value) => () => call(...args.map((arg, i) => (i === at ? value : arg)));
}

describe.each(DEVICES)('bad input to adapters on %s', (device: Device) => {
  it('forward, backward and merge', async () => {
    await scope(async () => {
      const random = (shape: number[], seed: number) => Tensor.randn(shape, { seed, device });
      const [x, w, dy, bias] = [
        random([M, K], 1),
        random([N, K], 2),
        random([M, N], 3),
        random([N], 4),
      ];
      const place = { inFeatures: K, outFeatures: N, device, seed: 1 };
      const adapter = methodOf('sora').create({ ...place, r: 3 } as never) as Adapter;
      const dropping = methodOf('sora').create({
        ...place,
        r: 3,
        dropout: 0.5,
      } as never) as Adapter;
      const gone = random([M, K], 1);
      gone.dispose();
      const elsewhere = device === 'cpu' ? 'reference' : 'cpu';
      const away = Tensor.zeros([M, K], { device: elsewhere });
      const saved = () => adapter.forward(x, w).saved;
      const forward = swaps([x, w, {}], (...args) =>
        callWith(adapter.forward.bind(adapter), ...args),
      );
      const options = (value: unknown) => forward(2, value);
      const back =
        (value: unknown, given: unknown = {}) =>
        () => {
          const state = saved();
          try {
            return callWith(adapter.backward.bind(adapter), value, state, given);
          } finally {
            state.dispose();
          }
        };
      const spent = saved();
      adapter.backward(dy, spent);
      const cases: BadCase[] = [
        ...impostors(x).flatMap(([kind, what, value]) => [
          bad(kind, `x: ${what}`, 'ERR_TYPE', forward(0, value)),
          bad(kind, `w: ${what}`, 'ERR_TYPE', forward(1, value)),
          bad(kind, `dy: ${what}`, 'ERR_TYPE', back(value)),
        ]),
        ...impostors(spent).map(([kind, what, value]) =>
          bad(kind, `saved: ${what}`, 'ERR_TYPE', () =>
            adapter.backward(dy, value as AdapterSaved),
          ),
        ),
        bad(31, 'x: disposed', 'ERR_DISPOSED', forward(0, gone)),
        bad(31, 'saved: used up', 'ERR_DISPOSED', () => adapter.backward(dy, spent)),
        bad(11, 'x: [4, 7]', 'ERR_SHAPE', forward(0, Tensor.zeros([M, K - 1], { device }))),
        bad(12, 'w: [5, 8]', 'ERR_SHAPE', forward(1, Tensor.zeros([N - 1, K], { device }))),
        bad(12, 'dy: [4, 5]', 'ERR_SHAPE', back(Tensor.zeros([M, N - 1], { device }))),
        bad(25, 'x elsewhere', 'ERR_DEVICE', forward(0, away)),
        bad(2, 'options: null', 'ERR_TYPE', options(null)),
        bad(3, 'options: a number', 'ERR_TYPE', options(3)),
        bad(33, 'options: a getter that throws', 'HOSTILE', options(hostile('seed'))),
        bad(3, 'training: a number', 'ERR_TYPE', options({ training: 1 })),
        bad(12, 'bias: [5]', 'ERR_SHAPE', options({ bias: Tensor.zeros([N - 1], { device }) })),
        bad(3, 'bias: numbers', 'ERR_TYPE', options({ bias: [1, 2] })),
        bad(3, 'inputs: numbers', 'ERR_TYPE', options({ inputs: { gates: [1] } })),
        bad(17, 'dropout without a seed', 'ERR_VALUE', () => dropping.forward(x, w)),
        bad(17, 'needs: no such name', 'ERR_VALUE', back(dy, { needs: ['dLoraC'] })),
        bad(3, 'needs: a string', 'ERR_TYPE', back(dy, { needs: 'dx' })),
        bad(3, 'merge: a number', 'ERR_TYPE', () => callWith(adapter.merge.bind(adapter), 3)),
      ];
      await checkCases('adapter', device, {
        watched: [x, w, dy, bias, ...Object.values(adapter.parameters)],
        cases,
        valid: () =>
          scope(async () => {
            const { y, saved: state } = adapter.forward(x, w, { bias });
            const { dx, parameters } = adapter.backward(dy, state);
            const gradients = Object.values(parameters).map((gradient) => gradient.read());
            return [await y.read(), await (dx as Tensor).read(), ...(await Promise.all(gradients))];
          }),
      });
    });
  });

  it('making adapters', async () => {
    await scope(async () => {
      const w = Tensor.randn([N, K], { seed: 2, device });
      const place = { inFeatures: K, outFeatures: N, device };
      const vera = methodOf('vera');
      const create = (wrong: object) => () =>
        callWith(vera.create.bind(vera), { ...place, ...wrong });
      const loraA = Tensor.zeros([3, K], { device });
      const cases: BadCase[] = [
        bad(1, 'no arguments', 'ERR_TYPE', () => callWith(vera.create.bind(vera))),
        bad(2, 'null', 'ERR_TYPE', () => callWith(vera.create.bind(vera), null)),
        bad(33, 'a getter that throws', 'HOSTILE', () => vera.create(hostile('r') as never)),
        bad(3, 'inFeatures: a string', 'ERR_TYPE', create({ inFeatures: '8' })),
        bad(17, 'inFeatures: 0', 'ERR_VALUE', create({ inFeatures: 0 })),
        bad(17, 'outFeatures: a half', 'ERR_VALUE', create({ outFeatures: 0.5 })),
        bad(17, 'a setting that is none', 'ERR_VALUE', create({ rank: 3 })),
        bad(3, 'r: a string', 'ERR_TYPE', create({ r: '3' })),
        bad(3, 'r: NaN', 'ERR_TYPE', create({ r: Number.NaN })),
        bad(17, 'seed: negative', 'ERR_VALUE', create({ seed: -1 })),
        bad(24, 'dtype: f64', 'ERR_DTYPE', create({ dtype: 'f64' })),
        bad(25, 'device: none', 'ERR_DEVICE', create({ device: 'tpu' })),
        bad(
          12,
          'weight: of another size',
          'ERR_SHAPE',
          create({ weight: Tensor.zeros([N, 3], { device }) }),
        ),
        bad(17, 'dora without a weight', 'ERR_VALUE', () => methodOf('dora').create({ ...place })),
        bad(17, 'more experts than there are', 'ERR_VALUE', () =>
          methodOf('loramoe').create({ ...place, experts: 2, topK: 3 } as never),
        ),
        bad(2, 'from: a tensor is missing', 'ERR_TYPE', () =>
          methodOf('lora').from({ loraA }, { ...place, r: 3 } as never),
        ),
        bad(12, 'from: a tensor of another size', 'ERR_SHAPE', () =>
          methodOf('lora').from({ loraA, loraB: loraA }, { ...place, r: 3 } as never),
        ),
        bad(17, 'a PEFT type that is none', 'ERR_UNSUPPORTED', () =>
          adapterFromPeft({ config: { peft_type: 'NOPE' }, tensors: new Map() }, 'lin', place),
        ),
      ];
      await checkCases('create', device, {
        watched: [w, loraA],
        cases,
        valid: () =>
          scope(async () => {
            const adapter = vera.create({ ...place, r: 3, seed: 1 } as never) as Adapter;
            return Promise.all(Object.values(adapter.parameters).map((tensor) => tensor.read()));
          }),
      });
      expect(cases.length).toBeGreaterThan(15);
    });
  });
});
