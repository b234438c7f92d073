import { Tensor } from '../../../core/tensor.js';
import { FeatureMap } from '../../../ops/feature-map.js';
import { defineAdapter } from '../../definition/method.js';

/** How MoRA folds features. */
type Kind = 'rotation' | 'sharing';

/** Side of the square matrix: as many values as a LoRA of rank r, rounded to the nearest, and even for rotation. */
function sideOf(N: number, K: number, r: number, kind: string): number {
  const side = Math.max(1, Math.floor(Math.sqrt((N + K) * r) + 0.5));
  return kind === 'rotation' ? Math.max(2, side - (side % 2)) : side;
}

/** Cosines and sines of the angles `block · 10000^(-2i / side)`, as in rotary embeddings. */
function angles(blocks: number, side: number, f: (angle: number) => number): Float32Array {
  return Float32Array.from({ length: blocks * side }, (_, at) => {
    const pair = (at % side) % (side / 2);
    return f(Math.floor(at / side) * 10000 ** ((-2 * pair) / side));
  });
}

/**
 * High-rank updating: a square matrix [side, side] instead of two thin ones, with as many values:
 * `y = x·wᵀ + decompress(compress(x)·matrixᵀ)`. Neither compress nor decompress has parameters, and side is the nearest
 * integer to the root of (N + K) · r. In both kinds x is cut into blocks of side features, the last padded from the beginning
 * of x. For the kind `sharing` (the paper's equation 6) the blocks are added, and output n is element n mod side. For
 * `rotation` (equation 9; side is even) each block is rotated by its number, as rotary embeddings rotate by a position, and
 * multiplied by the matrix separately; output n is element n modulo the number of all blocks' outputs.
 *
 * The rounding of side and the padding of the last block are those of the authors' program
 * (github.com/kongds/MoRA, its types 1 and 6); the paper rounds side down.
 */
export const mora = defineAdapter({
  method: 'mora',
  reference:
    'Jiang et al., MoRA: High-Rank Updating for Parameter-Efficient Fine-Tuning, 2024, arXiv:2405.12130',
  defaults: { r: 8, kind: 'rotation' as string, dropout: 0 },
  trained: ['matrix'],
  shapes: ({ N, K, config: { r, kind } }) => {
    const side = sideOf(N, K, r, kind);
    return { matrix: [side, side] };
  },
  check: ({ config: { r, kind } }) => {
    if (!(r > 0)) return ['r', 'above 0', String(r)];
    const kinds: readonly string[] = ['rotation', 'sharing'] satisfies Kind[];
    return kinds.includes(kind) ? undefined : ['kind', kinds.join(' or '), `"${kind}"`];
  },
  init: (make) => ({ matrix: make.zeros('matrix') }),
  prepare: ({ N, K, config: { r, kind }, device }) => {
    const side = sideOf(N, K, r, kind);
    const blocks = Math.ceil(K / side);
    if (kind === 'sharing') {
      const lists = Array.from({ length: side }, (_, j) =>
        Array.from({ length: blocks }, (_, i) => (j + i * side) % K),
      );
      const open = Int32Array.from({ length: N }, (_, n) => n % side);
      return {
        compress: new FeatureMap({ inFeatures: K, outFeatures: side, lists, device }),
        decompress: FeatureMap.gather(open, side, { device }),
      };
    }
    const width = blocks * side;
    const fill = Int32Array.from({ length: width }, (_, k) => k % K);
    const turned = Int32Array.from({ length: width }, (_, k) => {
      const within = k % side;
      return (k - within + ((within + side / 2) % side)) % K;
    });
    // The first half is subtracted.
    const signed = (angle: number): number => Math.sin(angle);
    const sines = angles(blocks, side, signed).map((v, k) => (k % side < side / 2 ? -v : v));
    const open = Int32Array.from({ length: N }, (_, n) => n % width);
    return {
      compress: FeatureMap.gather(fill, K, { device }),
      turned: FeatureMap.gather(turned, K, { device }),
      cos: Tensor.from(angles(blocks, side, Math.cos), [width], { device }),
      sin: Tensor.from(sines, [width], { device }),
      decompress: FeatureMap.gather(open, width, { device }),
      blocks,
    };
  },
  forward: (t, { x, w, bias, p, config, state }) => {
    const input = t.dropout(x, config.dropout);
    const base = t.linear(x, w, bias);
    const gathered = t.features(input, state.compress, { dtype: 'f32' });
    if (!('turned' in state) || state.turned === undefined) {
      return t.add(base, t.features(t.matmul(gathered, p.matrix), state.decompress));
    }
    const straight = t.multiply(gathered, t.constant(state.cos));
    const across = t.features(input, state.turned, { dtype: 'f32' });
    const rotated = t.add(straight, t.multiply(across, t.constant(state.sin)));
    const [side = 0] = p.matrix.shape;
    const lead = x.shape.slice(0, -1);
    const blocks = t.matmul(t.reshape(rotated, [...lead, state.blocks, side]), p.matrix);
    const flat = t.reshape(blocks, [...lead, state.blocks * side]);
    return t.add(base, t.features(flat, state.decompress));
  },
});
