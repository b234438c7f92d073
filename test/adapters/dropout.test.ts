// Dropout of adapter methods: off without training and in merging, on with a seed, asked for without.
import { describe, expect, it } from 'vitest';
import { type Adapter, adapterMethods, scope, Tensor } from '../../lib/index.js';
import { settingsOf } from './settings.js';

const M = 5;
const wave = (size: number, phase: number): Float32Array =>
  Float32Array.from({ length: size }, (_, i) => Math.sin(1.3 * i + phase));

const dropping = adapterMethods
  .filter(({ definition }) => 'dropout' in definition.defaults)
  .map(({ method }) => method);

describe.each(dropping)('%s', (method) => {
  it('drops while training and only then', async () => {
    await scope(async () => {
      const { create, N, K, settings, inputs = {} } = settingsOf(method);
      const w = Tensor.from(wave(N * K, 1), [N, K], { device: 'cpu' });
      const x = Tensor.from(wave(M * K, 2), [M, K], { device: 'cpu' });
      const place = { inFeatures: K, outFeatures: N, device: 'cpu', weight: w, seed: 3 } as const;
      const make = (dropout: number): Adapter => {
        const adapter = create({ ...place, ...settings, dropout });
        Object.values(adapter.parameters).forEach((tensor, i) => {
          const moved = wave(tensor.size, i);
          tensor.write(tensor.readSync().map((v, j) => v + 0.3 * (moved[j] as number)));
        });
        return adapter;
      };
      const given = Object.fromEntries(
        Object.entries(inputs).map(([name, shape]) => {
          const dims = shape(M, { N, K });
          const size = dims.reduce((product, dim) => product * dim, 1);
          return [name, Tensor.from(wave(size, 6), dims, { device: 'cpu' })];
        }),
      );
      const [plain, half] = [make(0), make(0.5)];
      const off = { training: false, inputs: given };
      const still = await plain.forward(x, w, off).y.read();
      expect(await half.forward(x, w, off).y.read()).toEqual(still);
      expect(await half.forward(x, w, { ...off, seed: 7 }).y.read()).toEqual(still);
      if (half.definition.mergeable !== false) {
        const merged = half.merge(w).weight as Tensor;
        expect(await merged.read()).toEqual(await (plain.merge(w).weight as Tensor).read());
      }
      const on = half.forward(x, w, { inputs: given, seed: 7 });
      expect(await on.y.read()).not.toEqual(still);
      on.saved.dispose();
      expect(() => half.forward(x, w, { inputs: given })).toThrow(/seed/);
    });
  });
});
