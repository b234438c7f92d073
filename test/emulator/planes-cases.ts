/** Planar weights: decoded by themselves, and before a product that reads what the launch before it wrote. */
import { dequantize, matmul, matmulInputGrad, QuantizedWeight } from '../../lib/index.js';
import { DTYPES, operand } from '../conformance/operands.js';
import { PLANAR_SPECS, planarCase } from '../conformance/planar-cases.js';
import { hashOf, type KernelCase } from './case-parts.js';

export function planes(): KernelCase[] {
  return PLANAR_SPECS.flatMap((spec, i) => [
    {
      name: `planes ${spec.name} [7, 333]`,
      run: (device) => {
        const w = QuantizedWeight.fromPlanes(planarCase(spec, 7, 333, i).planes, { device });
        return hashOf(DTYPES.map((dtype) => dequantize(w, { dtype })));
      },
    },
    ...DTYPES.filter((_, d) => d === i % DTYPES.length).map(
      (dtype): KernelCase => ({
        name: `planes ${spec.name} in products ${dtype} [33, 40, 128]`,
        run: (device) => {
          const w = QuantizedWeight.fromPlanes(planarCase(spec, 40, 128, i).planes, { device });
          const x = operand(33, 128, { seed: 1, dtype, device }).tensor;
          const dy = operand(33, 40, { seed: 2, dtype, device }).tensor;
          return hashOf([matmul(x, w), matmulInputGrad(dy, w)]);
        },
      }),
    ),
  ]);
}
