import {
  type Adapter,
  type BaseWeight,
  dequantize,
  LoraAdapter,
  loraForward,
  multiplyAdd,
  Tensor,
} from '../../../../lib/index.js';
import { parts, scaling } from '../../../oracle/adapter-layer.js';
import { lowRank, norms } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';
import { alpha } from '../common.js';

/** DoRA's norm is no function of the factors for its gradients. */
function doraWithNormHeld(start: Adapter, w: BaseWeight) {
  const { loraA, loraB } = start.parameters as Record<'loraA' | 'loraB', Tensor>;
  const { loraAlpha } = start.config as { loraAlpha: number };
  const [r = 0, K = 0] = loraA.shape;
  const dense = (w instanceof Tensor ? w : dequantize(w, { dtype: 'f32' })).readSync();
  const [a, b] = [loraA.readSync(), loraB.readSync()];
  const reciprocals = Float32Array.from({ length: start.outFeatures }, (_, n) => {
    let sum = 0;
    for (let k = 0; k < K; k++) {
      let v = dense[n * K + k] as number;
      for (let i = 0; i < r; i++) {
        v += (loraAlpha / r) * (b[n * r + i] as number) * (a[i * K + k] as number);
      }
      sum += v * v;
    }
    return 1 / Math.sqrt(sum);
  });
  const held = Tensor.from(reciprocals, [start.outFeatures], { device: start.device });
  return (at: Readonly<Record<string, Tensor>>): Tensor => {
    const now = at as Record<'loraA' | 'loraB' | 'magnitude' | 'dx' | 'dBias', Tensor>;
    const adapter = new LoraAdapter({ loraA: now.loraA, loraB: now.loraB, loraAlpha });
    const { y } = loraForward(now.dx, w, adapter, { training: false });
    return multiplyAdd({ a: y, b: multiplyAdd({ a: now.magnitude, b: held }), c: now.dBias });
  };
}

export const tests: MethodTests = {
  formulas: {
    dora: (layer) => {
      const [a, b, magnitude] = parts(layer, 'loraA', 'loraB', 'magnitude');
      const { weight } = lowRank(layer, b, a, scaling(layer));
      const size = norms(weight);
      return { weight: weight.scaleRows(size.map((v, i) => (magnitude.data[i] as number) / v)) };
    },
  },
  cases: {
    dora: { ...alpha, held: doraWithNormHeld },
  },
};
