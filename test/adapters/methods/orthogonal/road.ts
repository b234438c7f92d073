import { Matrix, type OracleLayer, parts } from '../../../oracle/adapter-layer.js';
import type { MethodTests } from '../../settings.js';

/** RoAd's matrix on the left of w and of the bias. */
function roadOf(layer: OracleLayer): { weight: Matrix; bias: Float64Array } {
  const [theta, alpha] = parts(layer, 'theta', 'alpha');
  const { variant, groupSize: g } = layer.config;
  const place = (n: number, sine: boolean): number => {
    const [group, within] = [Math.floor(n / g), n % g];
    if (variant === 1) return (group * g) / 2 + (within % (g / 2));
    return variant === 2 ? n : 2 * group * g + (sine ? g : 0) + within;
  };
  const turn = Matrix.of(layer.N, layer.N, (n, m) => {
    const partner = n % g < g / 2 ? n + g / 2 : n - g / 2;
    const at = place(n, m !== n);
    const angle = theta.data[at] as number;
    const scale = alpha.data[at] as number;
    if (m === n) return scale * Math.cos(angle);
    return m === partner ? (m > n ? -1 : 1) * scale * Math.sin(angle) : 0;
  });
  const bias = Matrix.of(layer.N, 1, (n) => layer.bias[n] as number);
  return { weight: turn.times(layer.w), bias: turn.times(bias).data };
}

export const tests: MethodTests = {
  formulas: {
    road: roadOf,
  },
  cases: {
    road: { settings: { groupSize: 12 } },
    'road/2': { settings: { variant: 2, groupSize: 8 } },
    'road/4': { settings: { variant: 4, groupSize: 6 } },
  },
};
