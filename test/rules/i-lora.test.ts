// I-LoRA: the slow memory, and the gradient of the distance of features against differences of the loss.
import { expect, it } from 'vitest';
import { ModelTape } from '../../lib/autograd/model/model-tape.js';
import { scope, type Tensor } from '../../lib/index.js';
import { gradientOf, setValues, tinyTrainer, valuesOf } from '../finetune/setup.js';
import { norm, worst } from '../starts/setup.js';
import { named } from './setup.js';

const SIZES = { hiddenSize: 32, intermediateSize: 48, numKeyValueHeads: 2, headDim: 8 };

const make = (settings: object, accumulate = 1) =>
  tinyTrainer(
    SIZES,
    { format: 'none' },
    {
      ...{ steps: 6, accumulate },
      rules: [{ rule: named('i-lora'), settings: settings as never }],
    },
  );

const slowOf = ({ trainer }: ReturnType<typeof make>) =>
  trainer.trainer.parameters.flatMap(({ name }) => {
    const found = trainer.stored.find((own) => own.name === `rules/i-lora/${name}`);
    return Array.from(found?.read() as Float64Array);
  });

it('the slow memory follows the fast one, and is what is written', async () => {
  const made = make({ keep: 0.8, weight: 0.5 });
  let slow: number[] = Array.from(valuesOf(made.trainer));
  for (let i = 0; i < 4; i++) {
    await made.trainer.train();
    const fast = valuesOf(made.trainer);
    slow = slow.map((value, k) => 0.8 * value + 0.2 * (fast[k] as number));
    expect(worst(slowOf(made), slow)).toBeLessThan(1e-12);
  }
  expect(worst(valuesOf(made.trainer), slow)).toBeGreaterThan(1e-4);
  made.trainer.finish();
  expect(valuesOf(made.trainer)).toEqual(Float32Array.from(slow));
  made.dispose();
});

it.each([1, 2])(
  'the loss has the mean squared difference of the features (%i passes)',
  async (accumulate) => {
    const made = make({ keep: 0.9, weight: 40 }, accumulate);
    const { trainer, decoder } = made;
    for (let i = 0; i < 3; i++) await trainer.train();
    const fast = valuesOf(trainer).map((value, i) => value + 0.02 * Math.sin(i));
    const slow = Float32Array.from(slowOf(made));
    const { T } = trainer.data.train;
    const batches = trainer.nextBatches();
    const at = (values: Float32Array) => {
      setValues(trainer, values);
      return batches.map(({ ids, targets }) =>
        scope(() => {
          const tape = new ModelTape({ recording: false });
          const call = { adapters: trainer.adapters.byModule };
          const { features } = decoder.forward(tape, { ids, B: ids.length / T, T }, call);
          const scale = 1 / targets.length;
          const loss = decoder.loss(tape, features, targets, { scale }).loss.tensor as Tensor;
          return { entropy: loss.readSync()[0] as number, f: features.tensor.readSync() };
        }),
      );
    };
    const targets = at(slow).map(({ f }) => f);
    const lossAt = (values: Float32Array) =>
      at(values).reduce((sum, { entropy, f }, i) => {
        const distance =
          norm(f.map((value, k) => value - (targets[i]?.[k] as number))) ** 2 / f.length;
        return sum + (entropy + 40 * distance) / accumulate;
      }, 0);
    setValues(trainer, fast);
    const { loss, gradient } = gradientOf(trainer);
    expect(valuesOf(trainer)).toEqual(fast);
    expect(loss).toBeCloseTo(lossAt(fast), 4);
    const size = norm(gradient);
    const along = (h: number) =>
      lossAt(fast.map((value, i) => value + (h * (gradient[i] as number)) / size));
    const slope = (along(0.005) - along(-0.005)) / 0.01;
    expect(Math.abs(slope - size)).toBeLessThan(0.02 * size);
    // The distance is a part of it that counts.
    const plain = make({ keep: 0.9, weight: 0 }, accumulate);
    setValues(plain.trainer, fast);
    expect(worst(gradientOf(plain.trainer).gradient, gradient)).toBeGreaterThan(0.05 * size);
    plain.dispose();
    made.dispose();
  },
);
