/** Models of `tf.layers`, trained by `trainOnBatch`, without and with `register()` of `lowrank/tfjs`. */

import type * as tfjs from '@tensorflow/tfjs';
import { memoryUsage } from '../../index.js';
import { applyLora, register, unregister, useTensorflow } from '../../tfjs/index.js';
import { resolvePackage } from '../find-package.js';
import { alternate } from './alternate.js';
import type { Trainer, TrainerCase, TrainerPlan } from './trainer.js';

type Tf = typeof tfjs;

const kPackages = ['@tensorflow/tfjs', '@tensorflow/tfjs-backend-wasm'] as const;
const kRank = 8;
const kScaling = 2;

/** `import { register } from 'lowrank/tfjs'` and `register()`. */
const kLines = 2;

interface Size {
  readonly width: number;
  readonly rows: number;
}

export const tfjsLayersTrainer: Trainer = {
  name: 'tfjs-layers',
  find: () => {
    const [tf, wasm] = kPackages.map((name) => resolvePackage(name));
    if (tf === undefined || wasm === undefined) {
      return { missing: `npm install ${kPackages.join(' ')}` };
    }
    return { version: tf.version };
  },
  cases: (tiny) => {
    const size = tiny ? { width: 64, rows: 16 } : { width: 512, rows: 256 };
    return [
      caseOf('wasm', size, 'all weights'),
      caseOf('wasm', size, 'LoRA'),
      caseOf('cpu', size, 'all weights'),
      caseOf('cpu', size, 'LoRA'),
      adaptedCase('wasm', size, undefined),
      adaptedCase('wasm', size, 'nf4'),
    ];
  },
};

type Trained = 'all weights' | 'LoRA';

function caseOf(backend: 'wasm' | 'cpu', size: Size, trained: Trained): TrainerCase {
  const { width, rows } = size;
  const what = trained === 'LoRA' ? `LoRA r=${kRank} in tfjs ops` : trained;
  return {
    name: `MLP ${width}-${width}-${width}-10, ${rows} rows, ${backend}, ${what}`,
    lines: kLines,
    run: (plan) => run(backend, size, trained, plan),
  };
}

async function load(backend: 'wasm' | 'cpu'): Promise<Tf> {
  const [tf] = kPackages.map((name) => resolvePackage(name)?.load()) as [Tf, unknown];
  useTensorflow(tf);
  tf.enableProdMode();
  if (!(await tf.setBackend(backend))) throw new Error(`its ${backend} backend does not start`);
  return tf;
}

async function run(backend: 'wasm' | 'cpu', size: Size, trained: Trained, plan: TrainerPlan) {
  const tf = await load(backend);
  const models = { without: build(tf, size, trained), with: build(tf, size, trained) };
  const x = tf.randomNormal([size.rows, size.width], 0, 1, 'float32', 5);
  const y = tf.randomNormal([size.rows, 10], 0, 1, 'float32', 6);
  const step = async (side: 'without' | 'with'): Promise<number> =>
    (await models[side].trainOnBatch(x, y)) as number;
  const { width } = size;
  const frozen = trained === 'LoRA' ? 4 * (2 * width * width + 10 * width) : 0;
  const before = memoryUsage('cpu').liveBytes;
  try {
    const times = await alternate(
      plan,
      {
        without: () => step('without'),
        with: async () => {
          register();
          try {
            return await step('with');
          } finally {
            unregister();
          }
        },
      },
      // The weights stay in tensors of TensorFlow.js.
      { without: frozen, with: frozen },
    );
    const added = memoryUsage('cpu').liveBytes - before;
    return { ...times, with: { ...times.with, base_bytes: frozen + Math.max(0, added) } };
  } finally {
    for (const model of Object.values(models)) model.dispose();
    tf.dispose([x, y]);
  }
}

/** The import, `applyLora()`, and `compile()` again. */
const kAdaptedLines = 3;

function adaptedCase(backend: 'wasm' | 'cpu', size: Size, format: 'nf4' | undefined): TrainerCase {
  const { width, rows } = size;
  const base = `${format ?? 'dense'} base`;
  return {
    name: `MLP ${width}-${width}-${width}-10, ${rows} rows, ${backend}, applyLora r=${kRank}, ${base}`,
    lines: kAdaptedLines,
    run: (plan) => runAdapted(backend, size, format, plan),
  };
}

/** LoRA in tfjs ops against `applyLora` on a model of dense layers, with the same values. */
async function runAdapted(
  backend: 'wasm' | 'cpu',
  size: Size,
  format: 'nf4' | undefined,
  plan: TrainerPlan,
) {
  const tf = await load(backend);
  const models = { without: build(tf, size, 'LoRA'), with: build(tf, size, 'all weights') };
  const lora = applyLora(models.with, {
    r: kRank,
    loraAlpha: kScaling * kRank,
    seed: 4,
    ...(format === undefined ? {} : { format }),
  });
  models.with.compile({ optimizer: tf.train.adam(1e-3), loss: 'meanSquaredError' });
  for (const [at, layer] of models.with.layers.entries()) {
    // The trained factors come first, ours [r, K] and [N, r]; the kernel is what the format can store.
    tf.tidy(() => {
      const named = (part: string) => {
        const index = layer.weights.findIndex(({ name }) => name.includes(part));
        return layer.getWeights()[index] as tfjs.Tensor;
      };
      const [a, b] = ['lora_a', 'lora_b'].map((name) => tf.transpose(named(name)));
      models.without.layers[at]?.setWeights([a as tfjs.Tensor, b as tfjs.Tensor, named('kernel')]);
    });
  }
  const x = tf.randomNormal([size.rows, size.width], 0, 1, 'float32', 5);
  const y = tf.randomNormal([size.rows, 10], 0, 1, 'float32', 6);
  const step = (side: 'without' | 'with') => async (): Promise<number> =>
    (await models[side].trainOnBatch(x, y)) as number;
  const { baseBytes, denseBytes } = lora.memory();
  try {
    return await alternate(
      plan,
      { without: step('without'), with: step('with') },
      { without: denseBytes, with: baseBytes },
    );
  } finally {
    lora.dispose();
    models.without.dispose();
    tf.dispose([x, y]);
  }
}

function build(tf: Tf, { width }: Size, trained: Trained): tfjs.Sequential {
  const model = tf.sequential();
  for (const [at, units] of [width, width, 10].entries()) {
    const config = {
      units,
      ...(at === 0 ? { inputShape: [width] } : {}),
      ...(at < 2 ? { activation: 'relu' as const } : {}),
    };
    const kernelInitializer = tf.initializers.glorotUniform({ seed: at + 1 });
    model.add(
      trained === 'LoRA'
        ? loraLayer(tf, config, kernelInitializer)
        : tf.layers.dense({ ...config, kernelInitializer, useBias: false }),
    );
  }
  model.compile({ optimizer: tf.train.adam(1e-3), loss: 'meanSquaredError' });
  return model;
}

interface Config {
  readonly units: number;
  readonly inputShape?: number[];
  readonly activation?: 'relu';
}

type Initializer = ReturnType<Tf['initializers']['glorotUniform']>;

/** A dense layer with LoRA, as a user of TensorFlow.js writes it. */
function loraLayer(tf: Tf, config: Config, kernelInitializer: Initializer): tfjs.layers.Layer {
  type Variable = ReturnType<tfjs.layers.Layer['addWeight']>;
  class LoraInOps extends tf.layers.Layer {
    static className = 'LoraInOps';
    #weights: readonly Variable[] = [];

    override build(inputShape: tfjs.Shape | tfjs.Shape[]): void {
      const K = (inputShape as tfjs.Shape).at(-1) as number;
      const { units } = config;
      const reach = 1 / Math.sqrt(K);
      const uniform = tf.initializers.randomUniform({ minval: -reach, maxval: reach, seed: 4 });
      const zeros = tf.initializers.zeros();
      this.#weights = [
        this.addWeight('kernel', [K, units], 'float32', kernelInitializer, undefined, false),
        this.addWeight('lora_a', [K, kRank], 'float32', uniform),
        this.addWeight('lora_b', [kRank, units], 'float32', zeros),
      ];
      super.build(inputShape);
    }

    override computeOutputShape(inputShape: tfjs.Shape | tfjs.Shape[]): tfjs.Shape {
      return [...(inputShape as tfjs.Shape).slice(0, -1), config.units];
    }

    override call(inputs: tfjs.Tensor | tfjs.Tensor[]): tfjs.Tensor {
      return tf.tidy(() => {
        const x = (Array.isArray(inputs) ? inputs[0] : inputs) as tfjs.Tensor2D;
        const [w, a, b] = this.#weights.map((weight) => weight.read() as tfjs.Tensor2D) as [
          tfjs.Tensor2D,
          tfjs.Tensor2D,
          tfjs.Tensor2D,
        ];
        const update = tf.matMul(tf.matMul(x, a), b).mul(kScaling);
        const sum = tf.matMul(x, w).add(update);
        return config.activation === 'relu' ? tf.relu(sum) : sum;
      });
    }
  }
  return new LoraInOps(config.inputShape === undefined ? {} : { inputShape: config.inputShape });
}
