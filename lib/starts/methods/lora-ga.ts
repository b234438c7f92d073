import { permutation } from '../../core/random.js';
import { svd } from '../../linalg/tensors/svd.js';
import { defineStart, type StartLayer } from '../definition/definition.js';
import { scaleColumns, scaleRows } from '../parts/factors.js';
import { gradientOf } from '../parts/gradient.js';
import { checkIterations, passesOf } from '../parts/iterations.js';
import { requireRank } from '../parts/rank.js';
import { chosenColumns, chosenRows } from '../parts/take.js';

const kDirections = ['ArBr', 'A2rBr', 'ArB2r', 'random'];
const kScales = ['stable', 'weight_svd', 'gd_scale', 'unit'];

/** Which of the 2r triplets A and B take. */
function directions(direction: string, r: number, seed: number): readonly [number[], number[]] {
  const range = (first: number, step = 1) => Array.from({ length: r }, (_, i) => first + i * step);
  if (direction === 'ArBr') return [range(1, 2), range(0, 2)];
  if (direction === 'A2rBr') return [range(r), range(0)];
  if (direction === 'ArB2r') return [range(0), range(r)];
  const drawn = [...permutation(2 * r, seed, 'lora-ga')].slice(0, r);
  return [drawn, drawn];
}

/** Factors of A and B. */
function scales(
  { w, N }: StartLayer,
  { scale, gamma }: { readonly scale: string; readonly gamma: number },
  scaling: number,
  largest: number,
  seed: number,
): readonly [number, number] {
  if (scale === 'gd_scale') return [1 / scaling, 1 / scaling];
  if (scale === 'stable') return [1, N ** 0.25 / Math.sqrt(gamma)];
  if (scale === 'unit') return [1, 1];
  const [top = 0] = svd(w, { r: 1, seed }).s;
  return [1, largest > 0 ? top / largest : 1];
}

/**
 * Triplets of the first gradient: `U · S · Vᵀ` are the leading 2r of dW; `loraA` takes rows of Vᵀ and `loraB` columns of U · S, by
 * `direction`: `ArB2r` the first r and the second r, `A2rBr` the other way, `ArBr` in turns, `random` the same r of both. `scale`:
 * `stable` (B times N^¼/√`gamma`), `gd_scale` (both over s), `weight_svd` (B's largest column as long as the largest singular
 * value of w), `unit`. The base is `w − s · loraB · loraA`. As in PEFT 0.20, whose B has S; in the authors' program it has not.
 */
export const loraGa = defineStart({
  start: 'lora-ga',
  reference:
    'Wang et al., LoRA-GA: Low-Rank Adaptation with Gradient Approximation, 2024, arXiv:2407.05000',
  from: 'gradient',
  defaults: { direction: 'ArB2r', scale: 'stable', gamma: 16, iterations: 12 },
  replacesBase: true,
  check: (settings) => {
    const { direction, scale, gamma } = settings;
    if (!kDirections.includes(direction)) {
      return ['direction', `one of ${kDirections.join(', ')}`, JSON.stringify(direction)];
    }
    if (!kScales.includes(scale)) {
      return ['scale', `one of ${kScales.join(', ')}`, JSON.stringify(scale)];
    }
    if (!(gamma > 0)) return ['gamma', 'above 0', String(gamma)];
    return checkIterations(settings);
  },
  factors: (layer, { r, scaling, seed, settings }) => {
    const { N, K } = layer;
    requireRank('lora-ga', r, N, K, 2);
    const dw = gradientOf(layer);
    const { u, s, v } = svd(dw, { r: 2 * r, seed, iterations: passesOf(settings) });
    const [ofA, ofB] = directions(settings.direction, r, seed);
    const values = ofB.map((i) => s[i] as number);
    const [a, b] = scales(layer, settings, scaling, Math.max(...values), seed);
    return {
      loraA: scaleRows(chosenRows(v, ofA), new Array(r).fill(a)),
      loraB: scaleColumns(
        chosenColumns(u, ofB),
        values.map((value) => value * b),
      ),
      base: 'residual',
    };
  },
});
