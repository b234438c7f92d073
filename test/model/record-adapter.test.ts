/** Every method of the library as a layer of a larger tape gives the bits that it gives alone. */
import { describe, expect, it } from 'vitest';
import { recordAdapter } from '../../lib/adapters/definition/record.js';
import { type Adapter, ModelTape, scope, Tensor } from '../../lib/index.js';
import { METHOD_CASES, settingsOf } from '../adapters/settings.js';
import { codeOf } from '../checkpoint/raw-file.js';

const M = 5;

describe('recordAdapter', () => {
  it.each(METHOD_CASES)('%s', (name) => {
    scope(() => {
      const { N, K, settings, create, inputs = {} } = settingsOf(name);
      const device = 'cpu';
      const w = Tensor.randn([N, K], { seed: 1, device });
      const x = Tensor.randn([M, K], { seed: 2, device });
      const bias = Tensor.randn([N], { seed: 3, device });
      const dy = Tensor.randn([M, N], { seed: 4, device });
      const place = { inFeatures: K, outFeatures: N, weight: w, seed: 5, device } as const;
      const adapter: Adapter = create({ ...place, ...settings });
      const given = Object.fromEntries(
        Object.entries(inputs).map(([input, shape], i) => [
          input,
          Tensor.uniform(shape(M, { N, K }), { seed: 6 + i, device }),
        ]),
      );
      const { y, saved } = adapter.forward(x, w, { bias, seed: 9, inputs: given });
      const alone = adapter.backward(dy, saved);

      const tape = new ModelTape({ dropout: { seed: 9 } });
      const xValue = tape.variable(x);
      const made = recordAdapter(tape, adapter, {
        x: xValue,
        w,
        bias: tape.variable(bias),
        seed: 9,
        inputs: Object.fromEntries(
          Object.entries(given).map(([input, tensor]) => [input, tape.variable(tensor)]),
        ),
      });
      expect(made.y.tensor.readSync()).toEqual(y.readSync());
      const names = Object.keys(made.parameters);
      expect(names).toEqual(Object.keys(adapter.parameters));
      const wanted = [xValue, ...Object.values(made.parameters)];
      const [dx, ...gradients] = tape.gradients('test', made.y, dy, wanted);
      expect(dx?.readSync()).toEqual(alone.dx?.readSync());
      names.forEach((parameter, i) => {
        expect(gradients[i]?.readSync(), parameter).toEqual(
          alone.parameters[parameter]?.readSync(),
        );
      });
    });
  });

  it('refuses a weight of another shape', () => {
    scope(() => {
      const { create } = settingsOf('lora');
      const adapter = create({ inFeatures: 8, outFeatures: 6, r: 2, seed: 1, device: 'cpu' });
      const tape = new ModelTape();
      const x = tape.variable(Tensor.zeros([2, 8], { device: 'cpu' }));
      const w = Tensor.zeros([5, 8], { device: 'cpu' });
      const call = () => recordAdapter(tape, adapter, { x, w });
      expect(codeOf(call)).toBe('ERR_SHAPE');
      expect(call).toThrow('lora.record: w must be of shape [N = 6, K = 8], got [5, 8]');
    });
  });
});
