/** Test settings of the methods whose update is a function of the weight, or dense. */
import {
  type Adapter,
  type BaseWeight,
  loraExpand,
  loraShrink,
  mapTensor,
  matmul,
  matmulInputGrad,
  multiplyAdd,
  type Tensor,
  weightGrad,
} from '../../lib/index.js';
import type { Row } from './settings.js';

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

export const DENSE_ROWS: Readonly<Record<string, Row>> = {
  adamss: { settings: { r: 7, subspaces: 3 } },
  'adamss/with the bias': { settings: { r: 7, subspaces: 3, subspaceRank: 2, withBias: true } },
  deft: { settings: { r: 4, scaling: 1.5 }, step: 1 / 128 },
  'deft/para': {
    settings: { r: 4, para: true },
    step: 1 / 128,
    startsElsewhere: 'a subspace is taken out from the start',
  },
  'deft-qr/para': {
    settings: { r: 4, para: true },
    step: 1 / 128,
    startsElsewhere: 'a subspace is taken out from the start',
  },
  glora: { settings: { r: 3 } },
  'glora/vectors': { settings: { pathAB: 'vector', pathC: 'vector', pathDE: 'vector' } },
  'glora/constants': { settings: { pathAB: 'constant', pathC: 'none', pathDE: 'constant' } },
  'glora/bias': { settings: { r: 3, pathAB: 'none', pathC: 'lora', pathDE: 'none' } },
  'glora/weight': { settings: { r: 3, pathAB: 'lora', pathC: 'none', pathDE: 'none' } },
  'glora/none': { settings: { pathAB: 'none', pathC: 'none', pathDE: 'none' } },
  hira: { settings: { r: 4 } },
  loha: { settings: { r: 3, loraAlpha: 6 } },
  'loha/tucker': { settings: { r: 3, loraAlpha: 6, kernel: [4, 2] } },
  osf: { settings: { rank: 5 }, held: osfWithinSubspace },
  peanut: { settings: { r: 4, scaling: 1.5, activation: 'tanh' } },
  'peanut/deep': { settings: { r: 4, scaling: 1.5, activation: 'tanh', depth: 2 } },
  'peanut/xielu': { settings: { r: 4, activation: 'xielu', depth: 1 } },
  'peanut/gelu': { settings: { r: 4, activation: 'gelu', depth: 1 } },
  'peanut/relu': { settings: { r: 4 }, held: peanutWithSignsHeld },
  'deft-qr': { settings: { r: 4, scaling: 1.5 }, step: 1 / 128 },
  fourierft: {
    settings: { frequencies: 21, scaling: 20 },
    startsElsewhere: 'the paper draws the coefficients',
  },
  'fourierft/ortho': {
    settings: { frequencies: 21, scaling: 2, norm: 'ortho' },
    startsElsewhere: 'the paper draws the coefficients',
  },
  frod: { settings: { sparseRate: 0.05 } },
  pvera: { settings: { r: 5, dInitial: 0.2 } },
  shira: { settings: { r: 2 } },
  supertuning: { settings: { sparsity: 0.9 } },
  unilora: {
    settings: { r: 3, length: 31 },
    startsElsewhere: 'both factors come from one drawn vector',
  },
  velora: { settings: { r: 4, loraAlpha: 6, groups: 5, scale: 0.8 }, held: veloraWithSignalHeld },
  vblora: {
    settings: { r: 3, vectors: 6, vectorLength: 8, topK: 2, bankBound: 0.5 },
    startsElsewhere: 'both factors come from one drawn bank',
  },
  'trainable-tokens': { settings: { tokens: [5, 0, 31] } },
  waveft: { settings: { frequencies: 30, scaling: 2 } },
  'waveft/odd sizes': { N: 23, K: 31, settings: { frequencies: 30, scaling: 2 } },
  'waveft/sym2': { settings: { frequencies: 30, scaling: 2, wavelet: 'sym2' } },
  'waveft/coif1, odd sizes': {
    N: 23,
    K: 31,
    settings: { frequencies: 90, scaling: 2, wavelet: 'coif1' },
  },
  'waveft/entries': { settings: { frequencies: 30, scaling: 2, transform: false } },
};
