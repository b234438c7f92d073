// A sparse update: values and gradients against the dense matrix, with more entries than one part.
import { describe, expect, it } from 'vitest';
import {
  type Adapter,
  adapterMethods,
  matmul,
  matmulInputGrad,
  memoryUsage,
  SparsePattern,
  scope,
  sparseUpdate,
  synchronize,
  Tape,
  Tensor,
  weightGrad,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';

const [N, K, COUNT] = [70, 90, 5000];

/** Places with repetitions, in no order. */
const places = Int32Array.from({ length: COUNT }, (_, i) => (i * 7919 + 13 * (i % 5)) % (N * K));

function close(mine: Float32Array, expected: Float32Array): void {
  expect(mine.length).toBe(expected.length);
  const size = Math.max(...expected.map(Math.abs));
  mine.forEach((value, i) => {
    expect(Math.abs(value - (expected[i] as number)) / size).toBeLessThan(1e-5);
  });
}

describe.each(DEVICES)('sparseUpdate on %s', (device) => {
  it('is the product with the dense matrix, and so are its gradients', async () => {
    await scope(async () => {
      const [rows, columns] = [places.map((p) => Math.floor(p / K)), places.map((p) => p % K)];
      const pattern = new SparsePattern({ rows, columns, N, K, device });
      const values = Tensor.randn([COUNT], { seed: 1, device });
      const x = Tensor.randn([2, 3, K], { seed: 2, device });
      const dy = Tensor.randn([2, 3, N], { seed: 3, device });
      const dense = new Float32Array(N * K);
      values.readSync().forEach((v, i) => {
        dense[places[i] as number] = (dense[places[i] as number] as number) + v;
      });
      const s = Tensor.from(dense, [N, K], { device });
      const tape = new Tape();
      const [xv, vv] = [tape.variable(x), tape.variable(values)];
      const y = sparseUpdate(tape, xv, vv, pattern);
      const [dx, dValues] = tape.gradients('test', y, dy, [xv, vv]) as [Tensor, Tensor];
      close(await y.tensor.read(), await matmul(x, s).read());
      close(await dx.read(), await matmulInputGrad(dy, s).read());
      const ds = await weightGrad(dy, x).read();
      close(
        await dValues.read(),
        Float32Array.from(places, (p) => ds[p] as number),
      );
    });
  });
});

describe('SparsePattern', () => {
  it('refuses places outside the matrix and lists of different lengths', () => {
    const make = (rows: number[], columns: number[]) => () =>
      new SparsePattern({
        rows: Int32Array.from(rows),
        columns: Int32Array.from(columns),
        N: 4,
        K: 5,
      });
    expect(make([0, 4], [0, 0])).toThrow(/rows\[1\]/);
    expect(make([0, -1], [0, 0])).toThrow(/rows\[1\]/);
    expect(make([0, 1], [0, 5])).toThrow(/columns\[1\].*from 0 to 4, got 5/);
    expect(make([0], [0, 0])).toThrow(/columns/);
  });
});

describe('refresh', () => {
  const vblora = adapterMethods.find(({ method }) => method === 'vblora');
  const make = (): Adapter =>
    vblora?.create({
      inFeatures: 16,
      outFeatures: 16,
      device: 'cpu',
      ...{ r: 2, vectors: 5, vectorLength: 8, topK: 2 },
    } as never) as unknown as Adapter;

  it('chooses by the values as they are, and lives on when its scope closes', async () => {
    const before = memoryUsage('cpu').liveTensors;
    await scope(async () => {
      const adapter = make();
      const logits = adapter.parameters.logitsA as Tensor;
      const moved = Float32Array.from({ length: logits.size }, (_, i) =>
        i % 5 === 3 ? 9 : -(i % 5),
      );
      logits.write(moved);
      scope(() => adapter.refresh());
      expect([...(adapter.indexes.topA as Int32Array)]).toEqual([3, 0, 3, 0, 3, 0, 3, 0]);
      const x = Tensor.randn([2, 16], { seed: 1, device: 'cpu' });
      const w = Tensor.randn([16, 16], { seed: 2, device: 'cpu' });
      expect(
        (await adapter.forward(x, w, { training: false }).y.read()).every(Number.isFinite),
      ).toBe(true);
    });
    await synchronize('cpu');
    expect(memoryUsage('cpu').liveTensors).toBe(before);
  });
});
