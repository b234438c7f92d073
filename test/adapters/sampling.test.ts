// Methods that sample: the same draw for the same seed, its gradients, and the mean without one.
import { describe, expect, it } from 'vitest';
import { type Adapter, adapterMethods, checkGradients, scope, Tensor } from '../../lib/index.js';

const [M, N, K] = [3, 10, 12];

const make = (): Adapter =>
  adapterMethods
    .find(({ method }) => method === 'pvera')
    ?.create({
      inFeatures: K,
      outFeatures: N,
      seed: 3,
      device: 'reference',
      r: 4,
    } as never) as never;

const draw = (shape: number[], seed: number): Tensor =>
  Tensor.randn(shape, { seed, device: 'reference' });

describe('pvera', () => {
  it('samples where a seed is given in training', async () => {
    await scope(async () => {
      const adapter = make();
      adapter.parameters.lambdaB?.write(draw([N], 1).readSync());
      const [x, w] = [draw([M, K], 2), draw([N, K], 3)];
      const run = (options: object) => adapter.forward(x, w, options).y.read();
      const mean = await run({});
      expect(await run({ seed: 5 })).toEqual(await run({ seed: 5 }));
      expect(await run({ seed: 5 })).not.toEqual(await run({ seed: 6 }));
      expect(await run({ seed: 5 })).not.toEqual(mean);
      expect(await run({ seed: 5, training: false })).toEqual(mean);
    });
  });

  it('has the gradients of a sample', () => {
    scope(() => {
      const adapter = make();
      const w = draw([N, K], 3);
      const run = (at: Record<string, Tensor>) => {
        adapter.parameters.lambdaB?.write((at.lambdaB as Tensor).readSync());
        adapter.parameters.lambdaD?.write((at.lambdaD as Tensor).readSync());
        return adapter.forward(at.dx as Tensor, w, { seed: 5 });
      };
      const reports = checkGradients({
        inputs: { dx: draw([M, K], 2), lambdaB: draw([N], 1), lambdaD: draw([8], 4) },
        forward: (at) => run(at).y,
        backward: (dy, at) => {
          const { dx, parameters } = adapter.backward(dy, run(at).saved);
          return { dx, ...parameters } as Record<string, Tensor>;
        },
      });
      expect(reports.map(({ name }) => name).sort()).toEqual(['dx', 'lambdaB', 'lambdaD']);
      expect(reports.filter(({ passed }) => !passed)).toEqual([]);
    });
  });
});
