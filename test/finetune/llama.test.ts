/** The trainer's model against the float64 oracle: logits, loss and gradients. */

import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { type AlphaConfig, scalingOf } from '../../lib/adapters/parts/scaling.js';
import { dequantize, memoryUsage, Tensor } from '../../lib/index.js';
import { valuesOf } from '../../lib/tfjs/backend-memory.js';
import { tensorflow } from '../../lib/tfjs/tensorflow.js';
import type { AdapterParameter } from '../../lib/train/adapter-set.js';
import { linearNames } from '../../lib/train/base-model.js';
import { FusedKernels, UnfusedKernels } from '../../lib/train/kernels.js';
import { llamaFeatures, llamaLogits } from '../../lib/train/llama.js';
import {
  type OracleAdapter,
  type OracleWeights,
  oracleLogits,
  oracleLoss,
} from './llama-oracle.js';
import { backends, randomValues, type TinyTrainer, tinyTrainer, useBackend } from './setup.js';
import type { TinyCheckpointOptions } from './tiny-checkpoint.js';

const open: TinyTrainer[] = [];

async function make(...args: Parameters<typeof tinyTrainer>): Promise<TinyTrainer> {
  const made = await tinyTrainer(...args);
  open.push(made);
  return made;
}

afterEach(() => {
  for (const { base } of open.splice(0)) base.dispose();
});

/** Weights as the trainer sees them: linear layers after quantisation. */
function weightsOf({ model, base }: TinyTrainer): OracleWeights {
  const known = new Map<string, Float32Array>();
  for (const layer of base.layers) {
    for (const name of linearNames) {
      const { w, name: full } = layer.linear[name];
      const dense = w instanceof Tensor ? w : dequantize(w);
      known.set(`${full}.weight`, dense.readSync());
      if (dense !== w) dense.dispose();
    }
  }
  return (name) => {
    if (!known.has(name)) known.set(name, model.readFloat32(name));
    return known.get(name) as Float32Array;
  };
}

function adaptersOf({ trainer }: TinyTrainer): (layer: string) => OracleAdapter | undefined {
  const { adapters } = trainer;
  const parts = adapters.slots.map(({ layer, adapter, parameters }) => {
    const valuesOf = (wanted: string) =>
      Float64Array.from(parameters.find(({ name }) => name === wanted)?.values ?? []);
    const config = adapter.config as AlphaConfig;
    const values = { loraA: valuesOf('loraA'), loraB: valuesOf('loraB') };
    return [layer.name, { ...values, r: config.r, scaling: scalingOf(config) }] as const;
  });
  const byName = new Map<string, OracleAdapter>(parts);
  return (layer) => byName.get(layer);
}

/** lora_b is zero at the start, which would hide the low-rank branch. */
function shake({ trainer }: TinyTrainer): void {
  for (const { parameters } of trainer.adapters.slots) {
    const loraB = parameters.find(({ name }) => name === 'loraB');
    loraB?.values.set(randomValues(loraB.values.length, 77).map((value) => 0.3 * value));
  }
}

const kShapes: Record<string, TinyCheckpointOptions> = {
  'grouped-query, untied, K not a multiple of a block': {},
  'as many key heads as query heads, tied': {
    numKeyValueHeads: 4,
    tieWordEmbeddings: true,
    hiddenSize: 32,
    headDim: 8,
  },
  'one key head, K = 172': {
    numKeyValueHeads: 1,
    hiddenSize: 20,
    intermediateSize: 172,
    headDim: 10,
  },
  'bf16 shards': { shards: 3, dtype: 'BF16' },
};

describe.each(backends)('on the %s backend', (backend) => {
  beforeAll(() => useBackend(backend));

  it.each(Object.entries(kShapes))('logits equal the float64 forward: %s', async (_, shape) => {
    const tiny = await make(shape, { format: 'nf4' });
    const ids = [3, 200, 0, 256, 77, 77, 12, 9];
    const expected = oracleLogits(tiny.model.config, weightsOf(tiny), ids).flat();
    const tf = tensorflow();
    for (const kernels of [new FusedKernels(), new UnfusedKernels()]) {
      const logits = tf.tidy(() => {
        const batch = { ids: Int32Array.from(ids), B: 1, T: ids.length };
        const features = llamaFeatures(tiny.base, batch, kernels);
        return valuesOf(llamaLogits(tiny.base, features, kernels)).slice();
      });
      const scale = Math.max(...expected.map(Math.abs));
      const worst = Math.max(...expected.map((z, i) => Math.abs(z - (logits[i] as number))));
      expect(worst / scale, kernels.name).toBeLessThan(5e-6);
      kernels.dispose();
    }
  });

  it('a later token changes no earlier logit', async () => {
    const tiny = await make({}, { format: 'none' });
    const kernels = new FusedKernels();
    const run = (ids: number[]) =>
      tensorflow().tidy(() => {
        const batch = { ids: Int32Array.from(ids), B: 1, T: ids.length };
        return valuesOf(
          llamaLogits(tiny.base, llamaFeatures(tiny.base, batch, kernels), kernels),
        ).slice();
      });
    const { vocabSize } = tiny.model.config;
    const a = run([1, 2, 3, 4, 5]);
    const b = run([1, 2, 3, 99, 5]);
    expect(a.slice(0, 3 * vocabSize)).toEqual(b.slice(0, 3 * vocabSize));
    expect(a.slice(3 * vocabSize)).not.toEqual(b.slice(3 * vocabSize));
  });

  it.each([
    ['all linear layers', linearNames],
    ['two of them', ['v_proj', 'down_proj'] as const],
  ])('gradients equal central differences of the float64 loss: %s', async (_, targets) => {
    const tiny = await make(
      {},
      { format: 'nf4' },
      { adapter: { targets }, batch: 2, accumulate: 2 },
    );
    shake(tiny);
    const { trainer, model } = tiny;
    const weights = weightsOf(tiny);
    const order = sequencesOf(tiny, 4);
    const lossAt = () => oracleLoss(model.config, weights, order, adaptersOf(tiny));
    for (const kernels of [new FusedKernels(), new UnfusedKernels()]) {
      const loss = trainer.rehearse(kernels);
      expect(Math.abs(loss - lossAt())).toBeLessThan(2e-6);
      const gradient = trainer.lastGradient.slice();
      const scale = Math.max(...gradient.map(Math.abs));
      expect(scale).toBeGreaterThan(1e-3);
      const { values, slots } = trainer.adapters;
      for (const slot of slots) {
        const [a, b] = slot.parameters as [AdapterParameter, AdapterParameter];
        for (const at of [a.at_elems, b.at_elems + b.values.length - 1]) {
          // f32 parameters: the step is what the two values really differ by.
          const kept = values[at] as number;
          values[at] = kept + 1e-3;
          const [high, above] = [values[at] as number, lossAt()];
          values[at] = kept - 1e-3;
          const [low, below] = [values[at] as number, lossAt()];
          values[at] = kept;
          const difference = (above - below) / (high - low);
          const error = Math.abs(difference - (gradient[at] as number)) / scale;
          expect(error, `${kernels.name} ${slot.layer.name} at ${at}`).toBeLessThan(1e-4);
        }
      }
      kernels.dispose();
    }
  });

  it('leaves nothing behind: neither tensors of TensorFlow.js nor of the library', async () => {
    const tiny = await make({}, { format: 'nf4' }, { adapter: { dropout: 0.2 } });
    const kernels = new FusedKernels();
    tiny.trainer.train(kernels);
    const before = { ours: memoryUsage().liveTensors, theirs: tensorflow().memory().numTensors };
    for (let i = 0; i < 3; i++) tiny.trainer.train(kernels);
    await tiny.trainer.evaluate(kernels, tiny.trainer.data.heldOut);
    const after = { ours: memoryUsage().liveTensors, theirs: tensorflow().memory().numTensors };
    expect(after).toEqual(before);
  });
});

/** The first sequences of the trainer's first step, read back through its own batches. */
function sequencesOf({ trainer }: TinyTrainer, count: number) {
  const { ids, targets } = trainer.data.train.batch(trainer.sequencesOfStep(0));
  const { T } = trainer.data.train;
  return Array.from({ length: count }, (_, row) => ({
    ids: Array.from(ids.subarray(row * T, (row + 1) * T)),
    targets: Array.from(targets.subarray(row * T, (row + 1) * T)),
  }));
}
