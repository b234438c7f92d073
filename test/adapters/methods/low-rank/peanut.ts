import {
  type Adapter,
  type BaseWeight,
  loraExpand,
  loraShrink,
  mapTensor,
  matmulInputGrad,
  multiplyAdd,
  type Tensor,
} from '../../../../lib/index.js';
import { activationOracle } from '../../../oracle/activations.js';
import { Matrix, parts } from '../../../oracle/adapter-layer.js';
import type { MethodTests } from '../../settings.js';

/** PEANuT with the sign of every hidden value as it was: differences do not cross a kink. */
function peanutWithSignsHeld(start: Adapter, w: BaseWeight) {
  const gate = mapTensor(
    mapTensor(matmulInputGrad(start.parameters.a as Tensor, w), 'sign'),
    'relu',
  );
  return (at: Readonly<Record<string, Tensor>>): Tensor => {
    const now = at as Record<'a' | 'b' | 'dx' | 'dBias', Tensor>;
    const hidden = multiplyAdd({ a: matmulInputGrad(now.a, w), b: gate });
    const h = loraShrink(now.dx, hidden);
    return loraExpand(now.dx, w, h, now.b, { bias: now.dBias });
  };
}

export const tests: MethodTests = {
  formulas: {
    peanut: (layer) => {
      const [a, b] = parts(layer, 'a', 'b');
      const { r, depth, activation } = layer.config;
      const f = activationOracle[activation as string] as (v: number) => number;
      // As the paper has it: columns of w go through the network as rows.
      const through = (rows: Matrix, stack: Matrix | undefined, i: number): Matrix => {
        const own = Matrix.of(r, r, (row, col) => stack?.data[(i * r + row) * r + col] as number);
        return rows.times(own.transposed()).map(f);
      };
      let hidden = layer.w.transposed().times(a.transposed()).map(f);
      const before = [hidden];
      for (let i = 0; i < depth; i++) {
        hidden = through(hidden, layer.p.encoders, i);
        before.push(hidden);
      }
      for (let i = 0; i < depth; i++) {
        hidden = through(hidden, layer.p.decoders, i).plus(before[depth - 1 - i] as Matrix);
      }
      const update = hidden.times(b.transposed()).transposed();
      return { weight: layer.w.plus(update, layer.config.scaling) };
    },
  },
  cases: {
    peanut: { settings: { r: 4, scaling: 1.5, activation: 'tanh' } },
    'peanut/deep': { settings: { r: 4, scaling: 1.5, activation: 'tanh', depth: 2 } },
    'peanut/xielu': { settings: { r: 4, activation: 'xielu', depth: 1 } },
    'peanut/gelu': { settings: { r: 4, activation: 'gelu', depth: 1 } },
    'peanut/relu': { settings: { r: 4 }, held: peanutWithSignsHeld },
  },
};
