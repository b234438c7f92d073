/** What the tests of rules share: trainers of the bundled model with rules, each with a base of its own. */
import { bundledModel, bundledText } from '../../lib/environment/package-folder.js';
import {
  type AnyRule,
  type BaseWeight,
  Decoder,
  DecoderWeights,
  type HfModel,
  openHfModel,
  ruleList,
  type TrainedParameter,
} from '../../lib/index.js';
import { linearsOf } from '../../lib/model/decoder-weights.js';
import { LinearSource } from '../../lib/model/linear-source.js';
import type { TrainingData } from '../../lib/text/sequences.js';
import { packText, readText } from '../../lib/text/text-data.js';
import { openTokenizer } from '../../lib/text/tokenizer.js';
import { AdapterSet, methodNamed, type Targets } from '../../lib/train/adapter-set.js';
import { ModelTrainer, type TrainOptions } from '../../lib/train/model-trainer.js';
import { valuesOf } from '../starts/setup.js';

export interface Text {
  readonly model: HfModel;
  readonly data: TrainingData;
}

/** The bundled text in sequences of T tokens. */
export async function loadText(T: number): Promise<Text> {
  const model = openHfModel(bundledModel());
  const tokenizer = await openTokenizer('test', model, async () => {});
  const data = await packText('test', readText('test', [bundledText()], '\n\n'), tokenizer, T);
  await tokenizer.close();
  return { model, data };
}

export interface RuledOptions {
  readonly method?: string;
  readonly settings?: Readonly<Record<string, unknown>>;
  readonly targets?: Targets;
  readonly train?: Partial<TrainOptions>;
}

/** A rule of the library. */
export function named(name: string): AnyRule {
  const found = ruleList.find(({ rule }) => rule === name);
  if (found === undefined) throw new Error(`no rule ${name}`);
  return found;
}

/** A trainer over an NF4 base of its own, which ends with it. */
export function ruledTrainer({ model, data }: Text, options: RuledOptions): ModelTrainer {
  const {
    method = 'lora',
    settings = { r: 4 },
    targets = ['q_proj', 'v_proj', 'down_proj'],
  } = options;
  const format = { format: 'nf4' } as const;
  const weights = DecoderWeights.load(model, { format, device: 'cpu' });
  const decoder = new Decoder(model.decoder, weights);
  const set = new AdapterSet(
    decoder,
    { method: methodNamed('test', method), settings, targets },
    1,
  );
  const train: TrainOptions = {
    ...{ steps: 100, batch: 1, accumulate: 1, lr: 3e-3, warmup: 0, weightDecay: 0, clip: 1 },
    ...{ seed: 1, dtype: 'f32', recompute: false, ...options.train },
  };
  return new ModelTrainer(decoder, set, data, train, new LinearSource(model, format, 'cpu'));
}

export function free(trainer: ModelTrainer): void {
  trainer.dispose();
  trainer.adapters.dispose();
  trainer.decoder.dispose();
}

/** Everything that a checkpoint has, and the bits of the base. */
export const contents = (trainer: ModelTrainer) =>
  trainer.stored.map(({ name, read }) => [name, read().slice()] as const);

/** Mean loss of the sequences of the run's first steps. */
export async function lossOf(trainer: ModelTrainer, steps: number): Promise<number> {
  const { train } = trainer.data;
  const seen = Array.from({ length: steps }, (_, step) => trainer.sequencesOfStep(step)).flat();
  const of = (indices: number[]) => train.batch(indices.map((i) => seen[i] as number));
  const { length: count } = seen;
  const { T } = train;
  return trainer.evaluate({ count, T, learned: count * T, whole: true, batch: of });
}

/** The base of an adapted layer as the run has it, [N, K] in float64. */
export function baseOf(trainer: ModelTrainer, module: string): Float64Array {
  const found = trainer.decoder.weights.layers
    .flatMap(linearsOf)
    .find(({ place }) => place.module === module);
  return valuesOf((found as { w: BaseWeight }).w);
}

/** Values of a trained tensor. */
export const tensorOf = (trainer: ModelTrainer, name: string): Float32Array =>
  (
    trainer.trainer.parameters.find((own) => own.name === name) as TrainedParameter
  ).tensor.readSync();
