/** jax-js: two linear layers with LoRA and relu, by `valueAndGrad` alone and by a chain of `lowrank/jax`. */

import { createRequire } from 'node:module';
import path from 'node:path';
import type * as jaxJs from '@jax-js/jax';
import { uniform } from '../../core/random.js';
import { dequantize, memoryUsage, quantize, scope, synchronize, Tensor } from '../../index.js';
import { chain, loraLinear, useJax } from '../../jax/index.js';
import { resolvePackage } from '../find-package.js';
import { alternate } from './alternate.js';
import type { Trainer, TrainerCase, TrainerPlan } from './trainer.js';

type Jax = typeof jaxJs;
type JaxArray = jaxJs.Array;
type Factors = { a: JaxArray; b: JaxArray };
type Params = { first: Factors; second: Factors };
type Batch = { x: JaxArray; target: JaxArray };

const kPackage = '@jax-js/jax';
const kRank = 8;
const kAlpha = 16;
const kRate = 0.01;

/** The import, the two layers, the chain, and the call. */
const kLines = 5;

export const jaxTrainer: Trainer = {
  name: 'jax',
  find: () => resolvePackage(kPackage) ?? { missing: `npm install ${kPackage}` },
  cases: (tiny) => {
    const sizes: readonly (readonly [M: number, D: number])[] = tiny
      ? [[8, 64]]
      : [
          [512, 1024],
          [256, 512],
        ];
    return sizes.flatMap(([M, D]) => [caseOf(M, D, undefined), caseOf(M, D, 'nf4')]);
  },
};

function caseOf(M: number, D: number, format: 'nf4' | undefined): TrainerCase {
  const name = `LoRA r=${kRank} on two layers ${D} x ${D}, ${M} rows, ${format ?? 'dense'} base`;
  return { name, lines: kLines, run: (plan) => run(M, D, format, plan) };
}

/** The copy that the user's programs find, by its CommonJS build. */
function load(): Jax {
  const { folder } = resolvePackage(kPackage) as { folder: string };
  // It reads the name of the browser, which Node has from version 21 on.
  if (!('navigator' in globalThis)) Object.assign(globalThis, { navigator: { userAgent: 'node' } });
  return createRequire(path.join(folder, 'package.json'))(kPackage) as Jax;
}

async function run(M: number, D: number, format: 'nf4' | undefined, plan: TrainerPlan) {
  const jax = load();
  useJax(jax);
  const { numpy: np, nn, tree } = jax;
  const array = (name: string, shape: number[], scale: number): JaxArray => {
    const next = uniform(1, name);
    const count = shape.reduce((product, dim) => product * dim, 1);
    const values = Float32Array.from({ length: count }, () => scale * (2 * next() - 1));
    return np.array(values, { shape });
  };
  const meanSquare = (y: JaxArray, target: JaxArray) => np.mean(np.square(np.subtract(y, target)));

  // Both sides have the same values: those that the format can store.
  const weights = ['first', 'second'].map((name) => array(name, [D, D], 1 / Math.sqrt(D)));
  const alone = format === undefined ? weights.map((w) => w.ref) : weights.map(roundTrip(np));
  const before = memoryUsage('cpu').liveBytes;
  const layers = (['first', 'second'] as const).map((name, at) =>
    loraLinear({
      w: weights[at] as JaxArray,
      loraA: `${name}.a`,
      loraB: `${name}.b`,
      loraAlpha: kAlpha,
      ...(format === undefined ? {} : { format }),
    }),
  );
  // The queue holds what it has not quantised yet.
  await synchronize('cpu');
  const baseBytes = { without: 2 * 4 * D * D, with: memoryUsage('cpu').liveBytes - before };
  const [first, second] = layers as [(typeof layers)[0], (typeof layers)[0]];
  const model = chain(
    (b: Batch) => b.x,
    first,
    (h: JaxArray) => nn.relu(h),
    second,
    (y: JaxArray, _: Params, b: Batch) => meanSquare(y, b.target),
  );
  const linear = (x: JaxArray, w: JaxArray, { a, b }: Factors): JaxArray => {
    const update = np.matmul(np.matmul(x.ref, np.transpose(a)), np.transpose(b));
    return np.matmul(x, np.transpose(w)).add(update.mul(kAlpha / kRank));
  };
  const loss = (p: Params, w: JaxArray[], { x, target }: Batch): JaxArray => {
    const h = nn.relu(linear(x, w[0] as JaxArray, p.first));
    return meanSquare(linear(h, w[1] as JaxArray, p.second), target);
  };
  const gradients = jax.jit(jax.valueAndGrad(loss));
  const update = jax.jit((p: Params, g: Params) =>
    tree.map((a: JaxArray, d: JaxArray) => a.sub(d.mul(kRate)), p, g),
  );
  const factors = (name: string): Factors => ({
    a: array(`${name} a`, [kRank, D], 1 / Math.sqrt(D)),
    b: array(`${name} b`, [D, kRank], 0.1),
  });
  const start = (): Params => ({ first: factors('first'), second: factors('second') });
  const batch: Batch = { x: array('x', [M, D], 1), target: array('target', [M, D], 1) };
  const params = { without: start(), with: start() };
  const finish = async (side: 'without' | 'with', value: JaxArray, grads: Params) => {
    params[side] = update(params[side], grads) as Params;
    await jax.blockUntilReady(params[side]);
    return value.item();
  };
  try {
    return await alternate(
      plan,
      {
        without: async () => {
          const [value, grads] = gradients(
            tree.ref(params.without),
            tree.ref(alone),
            tree.ref(batch),
          );
          return finish('without', value, grads as Params);
        },
        with: async () => {
          const { value, grads } = await model.valueAndGrad(tree.ref(params.with), tree.ref(batch));
          return finish('with', value as JaxArray, grads);
        },
      },
      baseBytes,
    );
  } finally {
    model.dispose();
    gradients.dispose();
    update.dispose();
    for (const layer of layers) layer.dispose();
    tree.dispose([params, alone, batch] as never);
  }
}

/** What an array becomes in nf4. Its own reference stays. */
function roundTrip(np: Jax['numpy']): (w: JaxArray) => JaxArray {
  return (w) => {
    const { shape } = w;
    const values = scope(() => {
      const tensor = Tensor.from(w.ref.dataSync() as Float32Array, shape);
      return dequantize(quantize(tensor, { format: 'nf4' })).readSync();
    });
    return np.array(values, { shape });
  };
}
