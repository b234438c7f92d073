import { NumpyRandom } from '../../../checkpoint/random/numpy-random.js';
import { FeatureMap } from '../../../ops/feature-map.js';
import type { LayerSize } from '../../definition/maker.js';
import { defineAdapter } from '../../definition/method.js';
import { belowOne } from '../../parts/counts.js';
import { needsLayers } from '../../parts/folder-layers.js';
import { balanced } from '../../parts/sparse.js';

/** Positions of each layer's values in the common table, and how often each entry is used. */
interface Tables {
  readonly key: string;
  readonly indexes: Int32Array;
  readonly scales: Float32Array;
}

/** The table last drawn for a folder's layers: it covers all of them. */
const kTables = new WeakMap<ReadonlyMap<string, LayerSize>, Tables>();

/** As PEFT draws it: each entry equally often, up to one, in an order from NumPy. */
function drawn(count: number, length: number, seed: number): Omit<Tables, 'key'> {
  const random = new NumpyRandom(seed);
  const whole = Math.floor(count / length);
  const indexes = new Int32Array(count);
  for (let i = 0; i < whole * length; i++) indexes[i] = Math.floor(i / whole);
  const over = count % length;
  if (over > 0) indexes.set(random.choice(length, over), whole * length);
  random.shuffle(indexes);
  const uses = new Float64Array(length);
  for (const index of indexes) uses[index] = (uses[index] as number) + 1;
  return { indexes, scales: Float32Array.from(uses, (n) => (n > 0 ? 1 / Math.sqrt(n) : 0)) };
}

/** A layer's part of the table: layer by layer, loraA before loraB. */
function tableOf(
  layers: ReadonlyMap<string, LayerSize>,
  r: number,
  length: number,
  seed: number,
  module: string,
) {
  let count = 0;
  let [from, K, N] = [0, 0, 0];
  for (const [name, { inFeatures, outFeatures }] of layers) {
    if (name === module) [from, K, N] = [count, inFeatures, outFeatures];
    count += r * (inFeatures + outFeatures);
  }
  const key = `${r}/${length}/${seed}/${count}`;
  let tables = kTables.get(layers);
  if (tables?.key !== key) {
    tables = { key, ...drawn(count, length, seed) };
    kTables.set(layers, tables);
  }
  return partOfTable(tables as Tables, from, { r, K, N });
}

/** A layer's part, from one position on: loraA before loraB. */
function partOfTable(
  { indexes, scales }: Omit<Tables, 'key'>,
  from: number,
  { r, K, N }: { readonly r: number; readonly K: number; readonly N: number },
) {
  const indexesA = indexes.slice(from, from + r * K);
  const indexesB = indexes.slice(from + r * K, from + r * (K + N));
  const scalesOf = (own: Int32Array) => Float32Array.from(own, (i) => scales[i] as number);
  return {
    indexes: { indexesA, indexesB },
    tensors: { scalesA: scalesOf(indexesA), scalesB: scalesOf(indexesB) },
  };
}

/**
 * All entries of the factors are entries of one short vector, shared by all layers:
 * `loraA = theta[indexesA] ⊙ scalesA`, `loraB = theta[indexesB] ⊙ scalesB`. The positions are drawn once. The
 * scales are `1 / sqrt(count)`, where count says how often a position is used by all layers that share the
 * vector.
 *
 * A new adapter counts its own layer only; {@link AdapterMethod.createAll} makes the tables and scales of several
 * layers together. Both factors have random entries from the start: training starts near the base model, not at it.
 */
export const unilora = defineAdapter({
  method: 'unilora',
  reference: 'Li et al., Uni-LoRA: One Vector is All You Need, 2025, arXiv:2506.00799',
  defaults: { r: 4, length: 10000, bound: 0.02, dropout: 0 },
  trained: ['theta'],
  frozen: ['scalesA', 'scalesB'],
  check: ({ config }) => belowOne(config, 'length'),
  shapes: ({ N, K, config: { r, length } }) => ({
    theta: [length],
    scalesA: [r, K],
    scalesB: [N, r],
  }),
  init: (make) => {
    const { N, K, config } = make;
    // Every position is used equally often, up to one.
    const count = Math.max(1, (config.r * (N + K)) / config.length);
    return {
      theta: make.uniform('theta', config.bound),
      scalesA: make.full('scalesA', 1 / Math.sqrt(count)),
      scalesB: make.full('scalesB', 1 / Math.sqrt(count)),
    };
  },
  drawIndexes: (make) => {
    const { N, K, config } = make;
    const all = balanced(config.r * (N + K), config.length, make.seed());
    return { indexesA: all.slice(0, config.r * K), indexesB: all.slice(config.r * K) };
  },
  drawTogether: (makes) => {
    const sizeOf = ({ N, K, config: { r } }: (typeof makes)[number]) => r * (K + N);
    const [first] = makes;
    const count = makes.reduce((sum, make) => sum + sizeOf(make), 0);
    const tables = drawn(count, first?.config.length ?? 1, (first?.seed() ?? 0) % 2 ** 32);
    let from = 0;
    return makes.map((make) => {
      const { N, K, config } = make;
      const part = partOfTable(tables, from, { r: config.r, K, N });
      from += sizeOf(make);
      return part;
    });
  },
  prepare: ({ config: { length }, device }, { indexesA, indexesB }) => ({
    a: FeatureMap.gather(indexesA as Int32Array, length, { device }),
    b: FeatureMap.gather(indexesB as Int32Array, length, { device }),
  }),
  forward: (t, { x, w, bias, p, state, N, K, config: { r, length, dropout } }) => {
    const theta = t.reshape(p.theta, [1, length]);
    const a = t.multiply(t.reshape(t.features(theta, state.a), [r, K]), p.scalesA);
    const b = t.multiply(t.reshape(t.features(theta, state.b), [N, r]), p.scalesB);
    return t.expand(x, w, t.shrink(x, a, { dropout }), b, { bias });
  },
  peft: {
    type: 'UNILORA',
    tensors: { scalesA: 'unilora_scales_A', scalesB: 'unilora_scales_B' },
    shared: { theta: 'unilora_theta_d' },
    indexes: { indexesA: 'unilora_indices_A', indexesB: 'unilora_indices_B' },
    indexShapes: ({ N, K, config: { r } }) => ({ indexesA: [r, K], indexesB: [N, r] }),
    regenerate: ({ save_indices, proj_seed }, { config }, _, __, { module, layers }) => {
      if (save_indices !== false) return {};
      const all = layers ?? needsLayers('its tables are drawn for all of them together');
      return tableOf(all, config.r, config.length, Number(proj_seed ?? 42), module);
    },
    read: ({ r, theta_d_length, init_theta_d_bound, unilora_dropout }) => ({
      r: Number(r),
      length: Number(theta_d_length),
      bound: Number(init_theta_d_bound ?? 0.02),
      dropout: Number(unilora_dropout ?? 0),
    }),
    write: ({ r, length, bound, dropout }) => ({
      r,
      theta_d_length: length,
      init_theta_d_bound: bound,
      unilora_dropout: dropout,
      save_indices: true,
    }),
  },
});
