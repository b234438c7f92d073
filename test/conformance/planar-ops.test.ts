// Every op that reads a base weight, over planar weights of small integers: sums are exact, so that each device must give
// what it gives for the dense weight of the same values, bit for bit.
import { describe, expect, it } from 'vitest';
import {
  type BaseWeight,
  type Device,
  type DType,
  dequantize,
  embedding,
  factoredNorm,
  GroupedLora,
  Indices,
  LoraAdapter,
  linearCrossEntropy,
  loraBackward,
  loraBackwardMany,
  loraBackwardSwiglu,
  loraExpand,
  loraExpandWithNorms,
  loraForward,
  loraForwardMany,
  loraForwardSwiglu,
  loraShrinkBackward,
  matmul,
  matmulInputGrad,
  QuantizedWeight,
  quantize,
  scope,
  Tensor,
  weightNorms,
} from '../../lib/index.js';
import { exact } from '../oracle.js';
import { DEVICES, DTYPES, operand } from './operands.js';
import { integerPlanes, PLANAR_SPECS, planarCase } from './planar-cases.js';

const R = 4;
// Above and below a size of CUDA's plans; a K that no group divides; one row, and more than a tile has.
const SHAPES = [
  { M: 3, N: 24, K: 96 },
  { M: 70, N: 40, K: 72 },
  { M: 1, N: 17, K: 53 },
] as const;

interface Operands {
  readonly device: Device;
  readonly dtype: DType;
  readonly M: number;
  readonly N: number;
  readonly K: number;
}

/** All results of all ops over `w`, by name. */
function results(w: BaseWeight, { device, dtype, M, N, K }: Operands): Map<string, Float32Array> {
  const found = new Map<string, Float32Array>();
  const keep = (name: string, tensors: Record<string, Tensor | undefined>) => {
    for (const [part, tensor] of Object.entries(tensors)) {
      if (tensor !== undefined)
        found.set(`${name} ${part}`, tensor.to({ dtype: 'f32' }).readSync());
    }
  };
  const draw = (rows: number, cols: number, seed: number, of: DType = dtype) =>
    operand(rows, cols, { seed, dtype: of, device, integers: 2 }).tensor;
  const [x, dy] = [draw(M, K, 1), draw(M, N, 2)];
  const [loraA, loraB] = [draw(R, K, 3, 'f32'), draw(N, R, 4, 'f32')];
  const adapter = new LoraAdapter({ loraA, loraB, loraAlpha: R });

  keep('matmul', { y: matmul(x, w) });
  keep('matmulInputGrad', { dx: matmulInputGrad(dy, w) });
  const { y, saved } = loraForward(x, w, adapter);
  const { dx } = loraBackward(dy, saved);
  keep('lora', { y, dx });
  const many = loraForwardMany(x, [{ w, adapter }, { w }]);
  keep('many', { y0: many.ys[0], y1: many.ys[1] });
  keep('many', { dx: loraBackwardMany([dy, dy], many.saved).dx });
  const gated = loraForwardSwiglu(x, { w, adapter }, { w });
  keep('swiglu', { y: gated.y, dx: loraBackwardSwiglu(dy, gated.saved).dx });
  const h = draw(M, R, 5, 'f32');
  keep('parts', { y: loraExpand(x, w, h, loraB) });
  keep('parts', { dx: loraShrinkBackward(dy, w, h, loraA).dx });
  const group = new GroupedLora({ inFeatures: K, outFeatures: N, device });
  group.add('one', adapter);
  const rows = Array.from({ length: M }, (_, m) => (m % 3 === 1 ? null : 'one'));
  const batch = group.forward(x, w, rows);
  keep('grouped', { y: batch.y, dx: group.backward(dy, batch.saved).dx });
  const squares = weightNorms(w);
  keep('norms', { squares, norms: factoredNorm({ w, loraA, loraB, scaling: 0.5 }) });
  const both = loraExpandWithNorms(x, w, h, { loraA, loraB }, { scaling: 0.5 });
  keep('with norms', { y: both.y, norms: both.norms });
  const ids = Indices.from(Int32Array.of(N - 1, 0, N >> 1), { limit: N, device });
  keep('embedding', { y: embedding(ids, w, { dtype, scale: 2 }) });
  const targets = Indices.from(
    Int32Array.from({ length: M }, (_, m) => (m * 5) % N),
    {
      limit: N,
      device,
    },
  );
  const loss = linearCrossEntropy(x, w, targets, { gradient: true, softcap: 5 });
  keep('loss', { losses: loss.losses, dx: loss.dx });
  return found;
}

describe.each(DEVICES)('%s', (device) => {
  const cases = PLANAR_SPECS.filter(({ inProducts }) => inProducts).map((spec, i) => ({
    name: spec.name,
    spec,
    dtype: DTYPES[i % DTYPES.length] as DType,
  }));
  it.each(cases)('$name in $dtype', ({ spec, dtype }) => {
    for (const { M, N, K } of SHAPES) {
      scope(() => {
        const planes = integerPlanes(planarCase(spec, N, K, M + K).planes);
        const w = QuantizedWeight.fromPlanes(planes, { device });
        const place = { device, dtype, M, N, K };
        const planar = results(w, place);
        const dense = results(dequantize(w, { dtype }), place);
        expect([...planar.keys()]).toEqual([...dense.keys()]);
        for (const [name, values] of planar) {
          exact(`${name} ${M}x${N}x${K}`, values, dense.get(name) as Float32Array);
        }
      });
    }
  });

  it('what only blockwise formats do is refused', () => {
    scope(() => {
      const spec = PLANAR_SPECS.find(({ name }) => name === 'q4_0') as (typeof PLANAR_SPECS)[0];
      const { planes } = planarCase(spec, 8, 64, 1);
      const w = QuantizedWeight.fromPlanes(planes, { device });
      const x = Tensor.zeros([2, 64], { device });
      expect(() => matmul(x, w, { compute: 'int8' })).toThrow(/for compute int8.*got planar/);
      expect(() => quantize(w as unknown as Tensor, { format: 'nf4' })).toThrow();
    });
  });
});
