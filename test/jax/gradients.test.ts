/** Losses and gradients of chains, against `valueAndGrad` of jax-js over the same functions. */

import { describe, expect, it } from 'vitest';
import { adapters, dequantize, quantize, Tensor } from '../../lib/index.js';
import { adapterLinear, branches, chain, loraLinear } from '../../lib/jax/index.js';
import {
  array,
  type BlockParams,
  block,
  blockBatch,
  blockChain,
  blockLoss,
  blockParams,
  blockWeights,
  distance,
  type Jax,
  jax,
  lora,
  nn,
  np,
  read,
  tree,
  treeDistance,
  values,
} from './setup.js';

const kGradients = 2e-6;
const kLoss = 1e-6;

/** Layers of the block over copies of the weights. */
function blockSegments(weights: readonly Jax[]) {
  return weights.map((w, at) =>
    loraLinear({
      w: w.ref,
      loraA: `layers.${at}.a`,
      loraB: `layers.${at}.b`,
      loraAlpha: block.loraAlpha,
    }),
  );
}

const meanSquare = (y: Jax, target: Jax) => np.mean(np.square(np.subtract(y, target)));

type Mlp = { l1: { a: Jax; b: Jax; bias: Jax }; l2: { a: Jax; b: Jax } };
const sizes = { M: 24, K: 40, H: 56, N: 32, r: 3 };

function mlpParams(): Mlp {
  const { K, H, N, r } = sizes;
  return {
    l1: { a: array('a1', [r, K]), b: array('b1', [H, r]), bias: array('bias1', [H]) },
    l2: { a: array('a2', [r, H]), b: array('b2', [N, r]) },
  };
}

function mlpLoss(p: Mlp, w: readonly [Jax, Jax, Jax], x: Jax, t: Jax): Jax {
  const h = nn.relu(lora(x, w[0], p.l1.a, p.l1.b, 16 / sizes.r).add(p.l1.bias));
  const y = lora(h, w[1], p.l2.a, p.l2.b, 8 / Math.sqrt(sizes.r)).add(w[2]);
  return meanSquare(y, t);
}

function mlpChain(w: readonly [Jax, Jax, Jax], format?: 'nf4') {
  const storage = format === undefined ? {} : { format };
  const first = { w: w[0], bias: 'l1.bias', loraA: 'l1.a', loraB: 'l1.b', loraAlpha: 16 };
  const second = { w: w[1], bias: w[2], loraA: 'l2.a', loraB: 'l2.b', loraAlpha: 8 };
  return chain(
    (b: { x: Jax; t: Jax }) => b.x,
    loraLinear({ ...first, ...storage }),
    (h: Jax) => nn.relu(h),
    loraLinear({ ...second, rslora: true, ...storage }),
    (y: Jax, _: Mlp, b: { x: Jax; t: Jax }) => meanSquare(y, b.t),
  );
}

const mlpWeights = (): [Jax, Jax, Jax] => [
  array('w1', [sizes.H, sizes.K]),
  array('w2', [sizes.N, sizes.H]),
  array('bias2', [sizes.N]),
];
const mlpBatch = () => ({ x: array('x', [sizes.M, sizes.K]), t: array('t', [sizes.M, sizes.N]) });

describe('an MLP', () => {
  it('has the loss and the gradients of jax-js', async () => {
    const { x, t } = mlpBatch();
    const [value, grads] = jax.valueAndGrad(mlpLoss)(mlpParams(), mlpWeights(), x, t);
    const found = await mlpChain(mlpWeights()).valueAndGrad(mlpParams(), mlpBatch());
    expect(await treeDistance(found.value, value)).toBeLessThan(kLoss);
    expect(await treeDistance(found.grads, grads)).toBeLessThan(kGradients);
  });

  it('over an nf4 base has those of the dequantised base', async () => {
    const dense = mlpWeights();
    const rounded = [dense[0], dense[1]].map((w) => {
      const { shape } = w;
      const tensor = Tensor.from(w.ref.dataSync() as Float32Array, shape);
      const values = dequantize(quantize(tensor, { format: 'nf4' })).readSync();
      return np.array(values, { shape });
    });
    expect(distance(await rounded[0]!.ref.data(), await dense[0].ref.data())).toBeGreaterThan(0.01);
    const { x, t } = mlpBatch();
    const weights: [Jax, Jax, Jax] = [rounded[0]!, rounded[1]!, dense[2].ref];
    const [value, grads] = jax.valueAndGrad(mlpLoss)(mlpParams(), weights, x, t);
    const found = await mlpChain(dense, 'nf4').valueAndGrad(mlpParams(), mlpBatch());
    expect(await treeDistance(found.value, value)).toBeLessThan(kLoss);
    expect(await treeDistance(found.grads, grads)).toBeLessThan(kGradients);
  });

  it('has the values of jax-js without gradients', async () => {
    const w = mlpWeights();
    const layer = loraLinear({ w: w[0].ref, loraA: 'l1.a', loraB: 'l1.b', loraAlpha: 16 });
    const params = mlpParams();
    const expected = lora(
      array('x', [sizes.M, sizes.K]),
      w[0],
      params.l1.a.ref,
      params.l1.b.ref,
      16 / 3,
    );
    const found = await chain(layer).apply(params, array('x', [sizes.M, sizes.K]));
    expect(await treeDistance(found, expected)).toBeLessThan(kLoss);
  });
});

describe('a transformer block', () => {
  it('has the loss and the gradients of jax-js', async () => {
    const weights = blockWeights();
    const model = blockChain(blockSegments(weights));
    const [value, grads] = jax.valueAndGrad(blockLoss)(blockParams(), weights, blockBatch());
    const found = await model.valueAndGrad(blockParams(), blockBatch());
    expect(await treeDistance(found.value, value)).toBeLessThan(kLoss);
    expect(await treeDistance(found.grads, grads)).toBeLessThan(kGradients);
  });

  it('trains for 20 steps with the losses of jax-js', async () => {
    const weights = blockWeights();
    const model = blockChain(blockSegments(weights));
    const alone = jax.jit(jax.valueAndGrad(blockLoss));
    const step = (p: BlockParams, g: BlockParams): BlockParams =>
      tree.map((a: Jax, d: Jax) => a.sub(d.mul(0.03)), p, g) as BlockParams;
    let [mine, theirs] = [blockParams(), blockParams()];
    const losses: number[] = [];
    for (let i = 0; i < 20; i++) {
      const [value, gradients] = alone(tree.ref(theirs), tree.ref(weights), blockBatch(i % 4));
      const found = await model.valueAndGrad(tree.ref(mine), blockBatch(i % 4));
      [mine, theirs] = [step(mine, found.grads), step(theirs, gradients)];
      const [a, b] = [found.value.item(), value.item()];
      expect(Math.abs(a - b) / b, `step ${i}`).toBeLessThan(kLoss);
      losses.push(b);
    }
    // The same batch.
    expect(losses[19]! / losses[3]!).toBeLessThan(0.9);
  });
});

describe('gradients that meet', () => {
  const M = 8;
  const D = 16;
  const params = () => ({ a: array('a', [2, D]), b: array('b', [D, 2]), c: array('c', [D]) });
  type Params = ReturnType<typeof params>;
  const linear = (path = '') =>
    loraLinear({ w: array(`w${path}`, [D, D], 0.3), loraA: 'a', loraB: 'b', loraAlpha: 2 });

  it('are added for tied factors and for an input of two layers, one that passes and one that ends', async () => {
    const alone = (p: Params, x: Jax): Jax => {
      const h = np.multiply(x, p.c);
      const l = lora(h.ref, array('w', [D, D], 0.3), p.a.ref, p.b.ref, 1);
      const m = lora(h.ref, array('w2', [D, D], 0.3), p.a, p.b, 1);
      return np.mean(np.square(l.add(m).add(h)));
    };
    const model = chain(
      (x: Jax, p: Params) => ({ h: np.multiply(x.ref, p.c), unused: np.sin(x) }),
      branches({ l: ['h', linear()], m: ['h', linear('2')], h: 'h', end: 'unused' }),
      (s: { l: Jax; m: Jax; h: Jax }) => np.mean(np.square(s.l.add(s.m).add(s.h))),
    );
    const [value, grads] = jax.valueAndGrad(alone)(params(), array('x', [M, D]));
    const found = await model.valueAndGrad(params(), array('x', [M, D]));
    expect(await treeDistance(found.value, value)).toBeLessThan(kLoss);
    expect(await treeDistance(found.grads, grads)).toBeLessThan(kGradients);
  });

  it('pass through two layers without a function between them', async () => {
    const alone = (p: Params, x: Jax): Jax => {
      const h = lora(np.multiply(x, p.c), array('w', [D, D], 0.3), p.a.ref, p.b.ref, 1);
      return np.mean(np.square(lora(h, array('w2', [D, D], 0.3), p.a, p.b, 1)));
    };
    const model = chain(
      (x: Jax, p: Params) => np.multiply(x, p.c),
      linear(),
      linear('2'),
      (y: Jax) => np.mean(np.square(y)),
    );
    const [value, grads] = jax.valueAndGrad(alone)(params(), array('x', [2, M, D]));
    const found = await model.valueAndGrad(params(), array('x', [2, M, D]));
    expect(await treeDistance(found.value, value)).toBeLessThan(kLoss);
    expect(await treeDistance(found.grads, grads)).toBeLessThan(kGradients);
  });

  it('are zero for a parameter that nothing reads', async () => {
    const model = chain(linear(), (y: Jax) => np.mean(np.square(y)));
    const { grads } = await model.valueAndGrad(params(), array('x', [M, D]));
    const found = await read(grads);
    expect(found.c).toEqual(new Float32Array(D));
    expect(found.b!.some((value) => value !== 0)).toBe(true);
  });
});

describe('an adapter of another method', () => {
  const [M, K, N, r] = [8, 32, 24, 2];
  const wValues = values('w', N * K);

  it('has the gradients of its formula (DoRA) in jax-js', async () => {
    const w = Tensor.from(wValues, [N, K]);
    const adapter = adapters.dora.create({
      inFeatures: K,
      outFeatures: N,
      r,
      loraAlpha: 4,
      weight: w,
      seed: 1,
    });
    const names = Object.keys(adapter.parameters);
    const params = Object.fromEntries(
      Object.entries(adapter.parameters).map(([name, { shape }]) => [
        name,
        array(name, [...shape], 0.5),
      ]),
    ) as Record<'loraA' | 'loraB' | 'magnitude' | 'c', Jax>;
    params.c = array('c', [N]);
    expect(names.sort()).toEqual(['loraA', 'loraB', 'magnitude']);
    const alone = (p: typeof params, x: Jax): Jax => {
      const updated = np
        .array(wValues, { shape: [N, K] })
        .add(np.matmul(p.loraB, p.loraA).mul(4 / r));
      const norms = np.sqrt(np.sum(np.square(jax.lax.stopGradient(updated.ref)), 1));
      const y = np.matmul(x, np.transpose(updated)).mul(p.magnitude.div(norms)).add(p.c);
      return np.mean(np.square(y));
    };
    const parameters = { loraA: 'loraA', loraB: 'loraB', magnitude: 'magnitude' };
    const model = chain(adapterLinear({ w, adapter, parameters, bias: 'c' }), (y: Jax) =>
      np.mean(np.square(y)),
    );
    const [value, grads] = jax.valueAndGrad(alone)(tree.ref(params), array('x', [M, K]));
    const found = await model.valueAndGrad(params, array('x', [M, K]));
    expect(await treeDistance(found.value, value)).toBeLessThan(kLoss);
    expect(await treeDistance(found.grads, grads)).toBeLessThan(kGradients);
  });
});

describe('dropout', () => {
  it('follows the seed, and is off without gradients', async () => {
    const [M, D] = [32, 32];
    const options = { w: array('w', [D, D]), loraA: 'a', loraB: 'b', loraAlpha: 2, dropout: 0.5 };
    const layer = loraLinear(options);
    const model = chain(layer, (y: Jax) => np.mean(np.square(y)));
    const params = { a: array('a', [2, D]), b: array('b', [D, 2]) };
    const x = array('x', [M, D]);
    const loss = async (seed: number) => {
      const found = await model.valueAndGrad(tree.ref(params), x.ref, { seed });
      for (const gradient of Object.values(found.grads)) gradient.dispose();
      return found.value.item();
    };
    expect(await loss(1)).toBe(await loss(1));
    expect(await loss(1)).not.toBe(await loss(2));
    const expected = lora(x.ref, array('w', [D, D]), params.a.ref, params.b.ref, 1);
    expect(await treeDistance(await chain(layer).apply(params, x), expected)).toBeLessThan(kLoss);
  });
});
