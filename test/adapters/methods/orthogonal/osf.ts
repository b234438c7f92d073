import {
  type Adapter,
  matmul,
  matmulInputGrad,
  multiplyAdd,
  type Tensor,
  weightGrad,
} from '../../../../lib/index.js';
import { parts } from '../../../oracle/adapter-layer.js';
import type { MethodTests } from '../../settings.js';

/** OSF's gradients are those of a layer that takes the orthogonal part of a change alone. */
function osfWithinSubspace(start: Adapter) {
  const { uLow, vLow } = start.parameters as Record<'uLow' | 'vLow', Tensor>;
  const { uHigh, sHigh, vHigh } = start.buffers as Record<'uHigh' | 'sHigh' | 'vHigh', Tensor>;
  return (at: Readonly<Record<string, Tensor>>): Tensor => {
    const now = at as Record<'uLow' | 'sLow' | 'vLow' | 'dx' | 'dBias', Tensor>;
    const du = multiplyAdd({ a: now.uLow, c: uLow, beta: -1 });
    const dv = multiplyAdd({ a: now.vLow, c: vLow, beta: -1 });
    const u = multiplyAdd({
      a: now.uLow,
      c: matmulInputGrad(uHigh, weightGrad(uHigh, du)),
      beta: -1,
    });
    const v = multiplyAdd({ a: now.vLow, c: matmulInputGrad(matmul(dv, vHigh), vHigh), beta: -1 });
    const low = matmul(multiplyAdd({ a: matmul(now.dx, v), b: now.sLow }), u);
    const high = matmul(multiplyAdd({ a: matmul(now.dx, vHigh), b: sHigh }), uHigh);
    return multiplyAdd({ a: multiplyAdd({ a: low, c: high }), c: now.dBias });
  };
}

export const tests: MethodTests = {
  formulas: {
    osf: (layer) => {
      const [uLow, sLow, vLow] = parts(layer, 'uLow', 'sLow', 'vLow');
      const [uHigh, sHigh, vHigh] = parts(layer, 'uHigh', 'sHigh', 'vHigh');
      const low = uLow.scaleCols(sLow.data).times(vLow);
      return { weight: uHigh.scaleCols(sHigh.data).times(vHigh).plus(low) };
    },
  },
  cases: {
    osf: { settings: { rank: 5 }, held: osfWithinSubspace },
  },
};
