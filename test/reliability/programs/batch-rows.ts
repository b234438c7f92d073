/**
 * Which rows of a product differ between a batch and the first rows of it alone. Prints one line of
 * JSON: for each case the number of differing rows at each smaller count.
 */
import {
  type Device,
  GroupedLora,
  LoraAdapter,
  loraBackward,
  loraForward,
  matmul,
  matmulInputGrad,
  quantize,
  scope,
  Tensor,
} from '../../../lib/index.js';

const device: Device = 'cuda-emulated';

type Outputs = Record<string, Tensor>;

interface BatchCase {
  readonly name: string;
  /** Rows of the batch, and what of it is computed alone. */
  readonly batch: number;
  readonly alone: readonly number[];
  run(m: number): Outputs;
}

/** The first m rows of normal values that do not depend on m. */
function rowsOf(m: number, of: number, cols: number, seed: number): Tensor {
  const whole = Tensor.randn([of, cols], { seed, device: 'cpu' }).readSync();
  return Tensor.from(whole.subarray(0, m * cols), [m, cols], { device }).to({ dtype: 'bf16' });
}

function weight(N: number, K: number) {
  const dense = Tensor.randn([N, K], { seed: 2, device: 'cpu' });
  return quantize(dense, { format: 'nf4' }).to({ device });
}

function adapter(N: number, K: number, r: number): LoraAdapter {
  return new LoraAdapter({
    loraA: Tensor.randn([r, K], { seed: 3, device }),
    loraB: Tensor.randn([N, r], { seed: 4, device }),
    loraAlpha: r,
  });
}

const cases: BatchCase[] = [
  {
    // Few tokens, and many, of a weight large enough that the family of kernels may follow M.
    name: 'product',
    batch: 70,
    alone: [1, 5, 40],
    run(m) {
      const w = weight(1032, 2080);
      return {
        y: matmul(rowsOf(m, 70, 2080, 1), w),
        dx: matmulInputGrad(rowsOf(m, 70, 1032, 5), w),
      };
    },
  },
  {
    // The base product and input gradient of several adapters, as f32 sums; of one it is loraForward's.
    name: 'grouped',
    batch: 70,
    alone: [2, 5, 40],
    run(m) {
      const [N, K] = [2056, 1056];
      const group = new GroupedLora({ inFeatures: K, outFeatures: N, device });
      group.add('a', adapter(N, K, 3));
      group.add('b', adapter(N, K, 2));
      const names = Array.from({ length: m }, (_, i) => (i % 2 === 0 ? 'a' : 'b'));
      const { y, saved } = group.forward(rowsOf(m, 70, K, 9), weight(N, K), names);
      const { dx } = group.backward(rowsOf(m, 70, N, 10), saved, { needs: ['dx'] });
      return { y, dx: dx as Tensor };
    },
  },
  {
    // The adapter's own sums: so many tokens that the contraction need not be cut to fill a device.
    name: 'adapter',
    batch: 1100,
    alone: [1, 5, 300],
    run(m) {
      const down = loraForward(rowsOf(m, 1100, 2080, 6), weight(64, 2080), adapter(64, 2080, 16));
      const up = loraForward(rowsOf(m, 1100, 64, 7), weight(2080, 64), adapter(2080, 64, 16));
      const { dx } = loraBackward(rowsOf(m, 1100, 2080, 8), up.saved, { needs: ['dx', 'dLoraB'] });
      const again = loraForward(rowsOf(m, 1100, 64, 7), weight(2080, 64), adapter(2080, 64, 16));
      const only = loraBackward(rowsOf(m, 1100, 2080, 8), again.saved, { needs: ['dx'] });
      return { h: down.saved.h as Tensor, y: down.y, dx: dx as Tensor, dxAlone: only.dx as Tensor };
    },
  },
];

async function valuesOf(outputs: Outputs): Promise<Map<string, Float32Array>> {
  const values = new Map<string, Float32Array>();
  for (const [name, tensor] of Object.entries(outputs)) values.set(name, await tensor.read());
  return values;
}

const report: Record<string, Record<string, number>> = {};
for (const { name, batch, alone, run } of cases) {
  const whole = await scope(() => valuesOf(run(batch)));
  for (const m of alone) {
    const part = await scope(() => valuesOf(run(m)));
    for (const [output, values] of part) {
      const cols = values.length / m;
      const expected = whole.get(output) as Float32Array;
      let differing = 0;
      for (let row = 0; row < m; row++) {
        const at = row * cols;
        if (values.subarray(at, at + cols).some((value, i) => value !== expected[at + i])) {
          differing++;
        }
      }
      const counts = report[`${name} ${output}`] ?? {};
      counts[m] = differing;
      report[`${name} ${output}`] = counts;
    }
  }
}
console.log(JSON.stringify(report));
