// A transformer block of jax-js that learns to continue a counter. Its linear layers are LoRA over NF4 weights.

import { init, jit, nn, numpy as np, random, tree } from '@jax-js/jax';
import { branches, chain, loraLinear } from 'lowrank/jax';

// jax-js reads the name of the browser, which Node has from version 21 on.
globalThis.navigator ??= { userAgent: 'node' };
await init('wasm');

const steps = Number(process.argv[2] ?? 60);
const [B, T, D, heads, vocabulary, r] = [4, 16, 64, 4, 32, 8];
let key = 0;
const normal = (shape, scale) => random.normal(random.key(key++), shape).mul(scale);

// The trained arrays live in one tree. A layer names its factors by their paths in it.
const params = { embed: normal([vocabulary, D], 0.1), gain: np.ones([2, D]), layers: {} };
const layer = (name, N, K) => {
  params.layers[name] = { a: normal([r, K], 1 / Math.sqrt(K)), b: np.zeros([N, r]) };
  const [loraA, loraB] = [`layers.${name}.a`, `layers.${name}.b`];
  return loraLinear({
    w: normal([N, K], 1 / Math.sqrt(K)),
    loraA,
    loraB,
    loraAlpha: 16,
    format: 'nf4',
  });
};
const [q, k, v, o] = ['q', 'k', 'v', 'o'].map((name) => layer(name, D, D));
const [up, down] = [layer('up', 4 * D, D), layer('down', D, 4 * D)];

const norm = (x, gain) => {
  const size = np.sqrt(np.mean(np.square(x.ref), -1, { keepdims: true }).add(1e-5));
  return x.div(size).mul(gain);
};
const split = (y) => np.transpose(y.reshape([B, T, heads, D / heads]), [0, 2, 1, 3]);
const future = np.triu(np.ones([T, T]), 1).mul(-1e9);

const attend = (s) => {
  const scores = np.matmul(split(s.q), np.transpose(split(s.k), [0, 1, 3, 2]));
  const weights = nn.softmax(scores.div(Math.sqrt(D / heads)).add(future.ref), -1);
  const mixed = np.transpose(np.matmul(weights, split(s.v)), [0, 2, 1, 3]);
  return { o: mixed.reshape([B, T, D]), x: s.x };
};
const crossEntropy = (h, embed, targets) => {
  const logits = np.matmul(h, np.transpose(embed));
  return np.mean(nn.logSoftmax(logits, -1).mul(nn.oneHot(targets, vocabulary))).mul(-vocabulary);
};

const model = chain(
  ({ tokens }, p) => {
    const x = np.take(p.embed, tokens, 0);
    return { n: norm(x.ref, p.gain.slice(0)), x };
  },
  branches({ q: ['n', q], k: ['n', k], v: ['n', v], x: 'x' }),
  attend,
  branches({ o: ['o', o], x: 'x' }),
  (s, p) => {
    const h = s.x.add(s.o);
    return { n: norm(h.ref, p.gain.slice(1)), h };
  },
  branches({ u: ['n', up], h: 'h' }),
  (s) => ({ u: nn.gelu(s.u), h: s.h }),
  branches({ d: ['u', down], h: 'h' }),
  (s, p, { targets }) => crossEntropy(s.h.add(s.d), p.embed, targets),
);

const update = jit((p, g) => tree.map((a, d) => a.sub(d.mul(0.1)), p, g));
let trained = params;
for (let step = 0; step < steps; step++) {
  const counter = (first) =>
    np.array(
      Int32Array.from(
        { length: B * T },
        (_, i) => (step + Math.floor(i / T) + (i % T) + first) % vocabulary,
      ),
      { shape: [B, T] },
    );
  const batch = { tokens: counter(0), targets: counter(1) };
  const { value, grads } = await model.valueAndGrad(tree.ref(trained), batch);
  trained = update(trained, grads);
  const loss = value.item();
  if (step % 10 === 0 || step === steps - 1) console.log(`step ${step} loss ${loss.toFixed(4)}`);
}
