/** A fine-tune's step against a float64 oracle of Llama, and against the same step on TensorFlow.js. */

import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { TensorflowStep } from '../../lib/compare/tensorflow/llama.js';
import { flushSync, ModelTape, memoryUsage, scope } from '../../lib/index.js';
import { stepSnapshot } from '../../lib/train/snapshot.js';
import { oracleLogits, oracleLoss } from './llama-oracle.js';
import { adaptersOf, oracleWeights, shake } from './oracle-trainer.js';
import {
  gradientOf,
  offsetsOf,
  setValues,
  type TinyTrainer,
  tinyTrainer,
  useBackend,
  valuesOf,
} from './setup.js';
import type { TinyCheckpointOptions } from './tiny-checkpoint.js';

const open: TinyTrainer[] = [];

function make(...args: Parameters<typeof tinyTrainer>): TinyTrainer {
  const made = tinyTrainer(...args);
  open.push(made);
  return made;
}

afterEach(() => {
  for (const tiny of open.splice(0)) tiny.dispose();
});

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

describe('a step', () => {
  const logitsOf = ({ decoder }: TinyTrainer, ids: readonly number[]) =>
    scope(() => {
      const tape = new ModelTape({ recording: false });
      const tokens = { ids: Int32Array.from(ids), B: 1, T: ids.length };
      return decoder.logits(tape, decoder.forward(tape, tokens).features).tensor.readSync();
    });

  it.each(Object.entries(kShapes))('has the logits of the float64 forward: %s', (_, shape) => {
    const tiny = make(shape, { format: 'nf4' });
    const ids = [3, 200, 0, 256, 77, 77, 12, 9];
    const expected = oracleLogits(tiny.model.config, oracleWeights(tiny), ids).flat();
    const logits = logitsOf(tiny, ids);
    const scale = Math.max(...expected.map(Math.abs));
    const worst = Math.max(...expected.map((z, i) => Math.abs(z - (logits[i] as number))));
    expect(worst / scale).toBeLessThan(5e-6);
  });

  it('gives no earlier token another logit for a later token', () => {
    const tiny = make({}, { format: 'none' });
    const { vocabSize } = tiny.model.config;
    const a = logitsOf(tiny, [1, 2, 3, 4, 5]);
    const b = logitsOf(tiny, [1, 2, 3, 99, 5]);
    expect(a.slice(0, 3 * vocabSize)).toEqual(b.slice(0, 3 * vocabSize));
    expect(a.slice(3 * vocabSize)).not.toEqual(b.slice(3 * vocabSize));
  });

  it.each([
    ['all linear layers', 'all-linear' as const],
    ['two of them', ['v_proj', 'down_proj'] as const],
  ])('has the gradients of central differences of the float64 loss: %s', (_, targets) => {
    const tiny = make({}, { format: 'nf4' }, { adapter: { targets }, batch: 2, accumulate: 2 });
    shake(tiny);
    const { trainer, model } = tiny;
    const weights = oracleWeights(tiny);
    const order = sequencesOf(tiny, 4);
    const lossAt = () => oracleLoss(model.config, weights, order, adaptersOf(tiny));
    const { loss, gradient } = gradientOf(trainer);
    expect(Math.abs(loss - lossAt())).toBeLessThan(2e-6);
    const scale = Math.max(...gradient.map(Math.abs));
    expect(scale).toBeGreaterThan(1e-3);
    const start = valuesOf(trainer);
    for (const [name, begin] of offsetsOf(trainer)) {
      // f32 parameters: the step is what the two values really differ by.
      const sideAt = (by: number) => {
        const values = start.slice();
        values[begin] = (values[begin] as number) + by;
        setValues(trainer, values);
        return [values[begin] as number, lossAt()] as const;
      };
      const [[high, above], [low, below]] = [sideAt(1e-3), sideAt(-1e-3)];
      const difference = (above - below) / (high - low);
      const error = Math.abs(difference - (gradient[begin] as number)) / scale;
      expect(error, name).toBeLessThan(1e-4);
    }
  });

  it.each(['reference', 'cuda-emulated'] as const)(
    'has the losses of the CPU on %s',
    async (device) => {
      const losses = await Promise.all(
        (['cpu', device] as const).map(async (where) => {
          const { trainer } = make(
            {},
            { format: 'nf4' },
            { device: where, adapter: { dropout: 0.2 } },
          );
          const found: number[] = [];
          for (let i = 0; i < 4; i++) found.push((await trainer.train()).loss);
          return found;
        }),
      );
      const [here, there] = losses as [number[], number[]];
      expect(new Set(here).size).toBe(4);
      for (const [i, loss] of here.entries()) {
        expect(Math.abs(loss - (there[i] as number)), `step ${i}`).toBeLessThan(2e-5 * loss);
      }
    },
  );

  it('leaves nothing behind', async () => {
    const { trainer } = make({}, { format: 'nf4' }, { adapter: { dropout: 0.2 } });
    const live = () => {
      flushSync('cpu');
      return memoryUsage().liveTensors;
    };
    await trainer.train();
    const before = live();
    for (let i = 0; i < 3; i++) await trainer.train();
    await trainer.evaluate(trainer.data.heldOut);
    expect(live()).toBe(before);
  });
});

describe.each(['cpu', 'wasm'] as const)('the same step on TensorFlow.js (%s)', (backend) => {
  beforeAll(() => useBackend(backend));

  it.each(Object.entries(kShapes))('agrees to 1e-5: %s', async (_, shape) => {
    const tiny = make(shape, { format: 'nf4' }, { batch: 2, accumulate: 2 });
    shake(tiny);
    const { loss, gradient } = gradientOf(tiny.trainer);
    const peer = await TensorflowStep.start(stepSnapshot(tiny.trainer));
    const theirs = peer.run();
    peer.dispose();
    expect(Math.abs(loss - theirs.loss)).toBeLessThan(1e-5 * loss);
    const offsets = offsetsOf(tiny.trainer);
    const scale = Math.max(...gradient.map(Math.abs));
    for (const [name, values] of theirs.gradients) {
      const at = offsets.get(name.replace('.lora_', '.lora')) as number;
      for (const [i, value] of values.entries()) {
        const error = Math.abs(value - (gradient[at + i] as number)) / scale;
        expect(error, `${name} at ${i}`).toBeLessThan(1e-5);
      }
    }
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
