/** What the tests of this folder share: jax-js, values, and models that it computes alone and in a chain. */

import { uniform } from '../../lib/core/random.js';
import type { Segment } from '../../lib/jax/index.js';
import { branches, type ChainPart, chain } from '../../lib/jax/index.js';

// jax-js reads the name of the browser when it first tunes a kernel; Node has a navigator from version 21 on.
if (!('navigator' in globalThis)) Object.assign(globalThis, { navigator: { userAgent: 'node' } });

export const jax = await import('@jax-js/jax');
await jax.init('wasm');
jax.defaultDevice('wasm');
export const { numpy: np, nn, tree } = jax;
export type Jax = InstanceType<typeof jax.Array>;

/** `count` values in (-scale, scale), the same for the same name. */
export function values(name: string, count: number, scale = 1): Float32Array {
  const next = uniform(1, name);
  return Float32Array.from({ length: count }, () => scale * (2 * next() - 1));
}

export function array(name: string, shape: number[], scale = 1): Jax {
  const count = shape.reduce((product, dim) => product * dim, 1);
  return np.array(values(name, count, scale), { shape });
}

/** y = x · wᵀ + scaling · (x · aᵀ) · bᵀ in jax-js. Consumes all arrays. */
export function lora(x: Jax, w: Jax, a: Jax, b: Jax, scaling: number): Jax {
  const base = np.matmul(x.ref, np.transpose(w));
  const h = np.matmul(np.matmul(x, np.transpose(a)), np.transpose(b));
  return np.add(base, np.multiply(h, scaling));
}

/** Distance of two arrays of values, relative to the norm of the second. */
export function distance(found: ArrayLike<number>, expected: ArrayLike<number>): number {
  let error = 0;
  let norm = 0;
  for (let i = 0; i < expected.length; i++) {
    error += ((found[i] ?? Number.NaN) - (expected[i] as number)) ** 2;
    norm += (expected[i] as number) ** 2;
  }
  return Math.sqrt(error / (norm || 1));
}

/** Values of a tree by path; consumes its arrays. */
export async function read(of: unknown, path = ''): Promise<Record<string, Float32Array>> {
  if (of instanceof jax.Array) return { [path]: (await of.data()) as Float32Array };
  const found: Record<string, Float32Array> = {};
  for (const [key, item] of Object.entries(of as object)) {
    Object.assign(found, await read(item, path === '' ? key : `${path}.${key}`));
  }
  return found;
}

/** The largest distance among the arrays of two trees; consumes both. */
export async function treeDistance(found: unknown, expected: unknown): Promise<number> {
  const [a, b] = [await read(found), await read(expected)];
  if (Object.keys(a).join() !== Object.keys(b).join()) {
    throw new Error(`trees differ: ${Object.keys(a)} and ${Object.keys(b)}`);
  }
  return Math.max(...Object.keys(b).map((name) => distance(a[name] ?? [], b[name] ?? [])));
}

/** The functions of a transformer block, between its linear layers. */
export type BlockParams = {
  embed: Jax;
  norms: { gain: Jax; bias: Jax }[];
  layers: { a: Jax; b: Jax }[];
};
export type BlockBatch = { tokens: Jax; targets: Jax; mask: Jax };

export const block = { B: 2, T: 6, D: 32, heads: 2, vocab: 11, r: 4, loraAlpha: 12, hidden: 48 };

/** [N, K] of the layers: q, k, v, o, up, down. */
export const blockLayers: readonly (readonly [number, number])[] = [
  ...Array.from({ length: 4 }, () => [block.D, block.D] as const),
  [block.hidden, block.D],
  [block.D, block.hidden],
];

function norm(x: Jax, { gain, bias }: { gain: Jax; bias: Jax }): Jax {
  const centred = x.ref.sub(np.mean(x, -1, { keepdims: true }));
  const variance = np.mean(np.square(centred.ref), -1, { keepdims: true });
  return centred
    .div(np.sqrt(variance.add(1e-5)))
    .mul(gain)
    .add(bias);
}

export function embed({ tokens }: BlockBatch, p: BlockParams): { n: Jax; x: Jax } {
  const [{ gain, bias }] = p.norms as [{ gain: Jax; bias: Jax }];
  const x = np.take(p.embed, tokens, 0);
  return { n: norm(x.ref, { gain, bias }), x };
}

/** Causal attention; q, k and v are [B, T, D]. */
export function attend(s: { q: Jax; k: Jax; v: Jax; x: Jax }, mask: Jax): { o: Jax; x: Jax } {
  const { B, T, D, heads } = block;
  const split = (y: Jax) => np.transpose(y.reshape([B, T, heads, D / heads]), [0, 2, 1, 3]);
  const scores = np
    .matmul(split(s.q), np.transpose(split(s.k), [0, 1, 3, 2]))
    .mul(1 / Math.sqrt(D / heads));
  const o = np.matmul(nn.softmax(scores.add(mask), -1), split(s.v));
  return { o: np.transpose(o, [0, 2, 1, 3]).reshape([B, T, D]), x: s.x };
}

export function mid({ o, x }: { o: Jax; x: Jax }, p: BlockParams): { n: Jax; h: Jax } {
  const h = x.add(o);
  return { n: norm(h.ref, p.norms[1] as { gain: Jax; bias: Jax }), h };
}

export function activate({ u, h }: { u: Jax; h: Jax }): { g: Jax; h: Jax } {
  return { g: nn.gelu(u), h };
}

/** Cross-entropy; the head is the embedding. */
export function crossEntropy({ d, h }: { d: Jax; h: Jax }, p: BlockParams, targets: Jax): Jax {
  const logits = np.matmul(h.add(d), np.transpose(p.embed));
  const picked = nn.logSoftmax(logits, -1).mul(nn.oneHot(targets, block.vocab));
  return np.sum(picked).mul(-1 / (block.B * block.T));
}

/** The parts of the block as a chain of these segments. */
export function blockParts(layers: readonly Segment[]): ChainPart[] {
  const [q, k, v, o, up, down] = layers as [Segment, Segment, Segment, Segment, Segment, Segment];
  return [
    embed,
    branches({ q: ['n', q], k: ['n', k], v: ['n', v], x: 'x' }),
    (s: { q: Jax; k: Jax; v: Jax; x: Jax }, _: BlockParams, b: BlockBatch) => attend(s, b.mask),
    branches({ o: ['o', o], x: 'x' }),
    mid,
    branches({ u: ['n', up], h: 'h' }),
    activate,
    branches({ d: ['g', down], h: 'h' }),
    (s: { d: Jax; h: Jax }, p: BlockParams, b: BlockBatch) => crossEntropy(s, p, b.targets),
  ];
}

export const blockChain = (layers: readonly Segment[]) => chain(...blockParts(layers));

/** The loss of the block in jax-js alone. */
export function blockLoss(p: BlockParams, weights: readonly Jax[], b: BlockBatch): Jax {
  const scaling = block.loraAlpha / block.r;
  const linear = (at: number, x: Jax) => {
    const { a, b: factor } = p.layers[at] as { a: Jax; b: Jax };
    return lora(x, weights[at] as Jax, a, factor, scaling);
  };
  const { n, x } = embed(b, { ...p, embed: p.embed.ref });
  const attended = attend({ q: linear(0, n.ref), k: linear(1, n.ref), v: linear(2, n), x }, b.mask);
  const { n: n2, h } = mid({ o: linear(3, attended.o), x: attended.x }, p);
  const { g, h: same } = activate({ u: linear(4, n2), h });
  return crossEntropy({ d: linear(5, g), h: same }, p, b.targets);
}

export function blockParams(): BlockParams {
  const { D, vocab, r } = block;
  return {
    embed: array('embed', [vocab, D], 0.3),
    norms: [0, 1].map((at) => ({
      gain: array(`gain ${at}`, [D]).add(1),
      bias: array(`norm bias ${at}`, [D], 0.3),
    })),
    layers: blockLayers.map(([N, K], at) => ({
      a: array(`a ${at}`, [r, K], 0.15),
      b: array(`b ${at}`, [N, r], 0.15),
    })),
  };
}

export function blockWeights(): Jax[] {
  return blockLayers.map(([N, K], at) => array(`w ${at}`, [N, K], 0.2));
}

/** Values of the gain are [1 - 1, 1 + 1]: far from a norm without one. */
export function blockBatch(step = 0): BlockBatch {
  const { B, T, vocab } = block;
  const next = uniform(2, step);
  const whole = () => Int32Array.from({ length: B * T }, () => Math.floor(next() * vocab));
  const mask = Float32Array.from({ length: T * T }, (_, i) =>
    i % T > Math.floor(i / T) ? -1e9 : 0,
  );
  return {
    tokens: np.array(whole(), { shape: [B, T] }),
    targets: np.array(whole(), { shape: [B, T] }),
    mask: np.array(mask, { shape: [T, T] }),
  };
}
