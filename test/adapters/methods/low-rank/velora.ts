import {
  type Adapter,
  type BaseWeight,
  loraExpand,
  matmul,
  matmulInputGrad,
  multiplyAdd,
  type Tensor,
} from '../../../../lib/index.js';
import { parts } from '../../../oracle/adapter-layer.js';
import type { MethodTests } from '../../settings.js';

/**
 * VeLoRA's gradient of the first factor is that of a layer that sees a reconstruction of x: one whose
 * factor is the old one on x and the change on the reconstruction.
 */
function veloraWithSignalHeld(start: Adapter, w: BaseWeight) {
  const { loraAlpha, r, scale } = start.config as Record<'loraAlpha' | 'r' | 'scale', number>;
  const { groups } = start.state as { groups: Tensor };
  const old = start.parameters.loraA as Tensor;
  return (at: Readonly<Record<string, Tensor>>): Tensor => {
    const now = at as Record<'loraA' | 'loraB' | 'dx' | 'dBias', Tensor>;
    const seen = matmulInputGrad(matmul(now.dx, groups), groups);
    const moved = multiplyAdd({ a: now.loraA, c: old, beta: -1 });
    const h = multiplyAdd({ a: matmul(now.dx, old), c: matmul(seen, moved), beta: scale });
    return loraExpand(now.dx, w, h, now.loraB, { scaling: loraAlpha / r, bias: now.dBias });
  };
}

export const tests: MethodTests = {
  formulas: {
    velora: (layer) => {
      const [a, b] = parts(layer, 'loraA', 'loraB');
      return { weight: layer.w.plus(b.times(a), layer.config.loraAlpha / layer.config.r) };
    },
  },
  cases: {
    velora: { settings: { r: 4, loraAlpha: 6, groups: 5, scale: 0.8 }, held: veloraWithSignalHeld },
  },
};
