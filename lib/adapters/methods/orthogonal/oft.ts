import type { Value } from '../../../autograd/gradient-tape.js';
import type { Tape } from '../../../autograd/tape.js';
import { full } from '../../../core/full.js';
import type { Tensor } from '../../../core/tensor.js';
import { mapTensor, multiplyAdd, sumProduct } from '../../../ops/elementwise.js';
import { defineAdapter } from '../../definition/method.js';
import { cayley, cayleySeries, type SkewMaps, skew, stacked, triangleMaps } from './rotation.js';

interface Sizes {
  readonly K: number;
  readonly config: { readonly blocks: number; readonly blockSize: number; readonly share: boolean };
}

/** The features of a block, the blocks of the input, and the number of blocks with their own entries. */
function layout({ K, config }: Sizes): { size: number; blocks: number; own: number } {
  const size = config.blocks > 0 ? K / config.blocks : config.blockSize;
  const blocks = K / size;
  return { size, blocks, own: config.share ? 1 : blocks };
}

/**
 * The blocks of a config. PEFT takes the nearest divisor if they do not divide a layer's width, so the
 * number of stored entries, n · (n - 1) / 2 per block, decides.
 */
function sizeOf(
  config: Readonly<Record<string, unknown>>,
  stored: readonly number[] | undefined,
  K: number,
) {
  const blocks = Number(config.r ?? 0);
  const blockSize = Number(config.oft_block_size ?? 32);
  const entries = stored?.[1];
  if (entries === undefined) return { blocks, blockSize };
  const size = Math.round((1 + Math.sqrt(1 + 8 * entries)) / 2);
  if ((size * (size - 1)) / 2 !== entries) return { blocks, blockSize };
  // As in the config, if it fits. Layers of other widths have as many blocks, of another size.
  return { blocks: blocks > 0 && K === blocks * size ? blocks : 0, blockSize: size };
}

/** Each block's entries [blocks, n], shrunk so that the norm of its skew matrix is at most `limit`. */
function projected(t: Tape, entries: Value, limit: number): Value {
  const { tensor } = entries;
  const { device } = tensor;
  const constant = (value: number): Tensor => full([1], value, { device });
  const squares = sumProduct(tensor, tensor, { axis: 1 });
  const norm = mapTensor(multiplyAdd({ a: squares, alpha: 2 }), 'sqrt');
  // limit / max(norm, limit), without a division by zero.
  const beyond = multiplyAdd({ a: norm, c: constant(-1), alpha: 1 / limit });
  const share = mapTensor(
    multiplyAdd({ a: mapTensor(beyond, 'relu'), c: constant(1) }),
    'reciprocal',
  );
  const scale = share.reshape([share.size, 1]);
  return t.straightThrough(entries, multiplyAdd({ a: tensor, b: scale }));
}

interface Settings {
  readonly blocks: number;
  readonly blockSize: number;
  readonly share: boolean;
  readonly terms: number;
  readonly coft: boolean;
  readonly eps: number;
}

/** `x · R` [..., K], block by block. */
export function turnedInput(
  t: Tape,
  x: Value,
  weight: Value,
  { K, config, state }: { K: number; config: Settings; state: SkewMaps },
): Value {
  const { size, blocks } = layout({ K, config });
  const { terms, coft, eps, share } = config;
  const entries = coft ? projected(t, weight, eps / Math.sqrt(state.blocks)) : weight;
  const q = skew(t, entries, state);
  const rows = terms > 0 ? cayleySeries(t, q, state, terms) : cayley(t, q, state);
  const folded = t.reshape(x, [...x.shape.slice(0, -1), blocks, size]);
  const turned = share
    ? t.product(folded, t.reshape(rows, [size, size]))
    : t.blockProduct(folded, stacked(t, rows, state));
  return t.reshape(turned, x.shape);
}

/**
 * Orthogonal fine-tuning: rotates the input block by block, `y = (x · R)·wᵀ + bias`, with R
 * block-diagonal. Each block is the Cayley transform of a skew-symmetric Q: `(I - Q)(I + Q)⁻¹`, or
 * with `terms` above 0 that many terms of the series of `(I + Q)(I - Q)⁻¹` (OFTv2). The base stays as
 * it is stored: over a quantised one this is QOFT. `weight` has the entries of Q above the diagonal,
 * row by row. With `coft` the norm of each Q is limited to `eps / sqrt(number of Qs)` by a projection
 * that gradients pass straight through. PEFT's dropout of whole blocks is not supported.
 *
 * For a convolution, x are its patches ({@link Im2col}), K = C · KH · KW. This is the layer that PEFT merges;
 * {@link OftImages} is what PEFT computes before merging.
 */
export const oft = defineAdapter({
  method: 'oft',
  reference:
    'Qiu et al., Controlling Text-to-Image Diffusion by Orthogonal Finetuning, 2023, arXiv:2306.07280; Qiu et al., Orthogonal Finetuning Made Scalable, 2025, arXiv:2506.19847',
  defaults: { blocks: 0, blockSize: 32, share: false, terms: 5, coft: false, eps: 6e-5 },
  trained: ['weight'],
  shapes: (sizes) => {
    const { size, own } = layout(sizes);
    return { weight: [own, (size * (size - 1)) / 2] };
  },
  check: ({ K, config: { blocks, blockSize, eps } }) => {
    if (blocks > 0 ? K % blocks !== 0 : !(blockSize > 0) || K % blockSize !== 0) {
      const name = blocks > 0 ? 'blocks' : 'blockSize';
      return [name, `a divisor of ${K}`, String(blocks > 0 ? blocks : blockSize)];
    }
    return eps > 0 ? undefined : ['eps', 'above 0', String(eps)];
  },
  init: (make) => ({ weight: make.zeros('weight') }),
  prepare: (make) => {
    const { size, own } = layout(make);
    return triangleMaps(own, size, make.device);
  },
  forward: (t, { x, w, bias, p, config, state, K }) =>
    t.linear(turnedInput(t, x, p.weight, { K, config, state }), w, bias),
  peft: {
    type: 'OFT',
    zeros: ['module_dropout'],
    tensors: { weight: 'oft_R.weight' },
    read: (config, _, shapeOf, { inFeatures }) => ({
      ...sizeOf(config, shapeOf('weight'), inFeatures),
      share: config.block_share === true,
      terms: config.use_cayley_neumann === false ? 0 : Number(config.num_cayley_neumann_terms ?? 5),
      coft: config.coft === true,
      eps: Number(config.eps ?? 6e-5),
    }),
    write: ({ blocks, blockSize, share, terms, coft, eps }) => ({
      r: blocks,
      oft_block_size: blocks > 0 ? 0 : blockSize,
      block_share: share,
      use_cayley_neumann: terms > 0,
      num_cayley_neumann_terms: terms > 0 ? terms : 5,
      coft,
      eps,
    }),
  },
});
