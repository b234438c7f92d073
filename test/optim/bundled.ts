/** Short trainings of the bundled model on the bundled text. */
import { bundledModel, bundledText } from '../../lib/environment/package-folder.js';
import { adapters, Decoder, DecoderWeights, openHfModel } from '../../lib/index.js';
import type { TrainingData } from '../../lib/text/sequences.js';
import { packText, readText } from '../../lib/text/text-data.js';
import { openTokenizer } from '../../lib/text/tokenizer.js';
import { AdapterSet, type Targets, type TrainedMethod } from '../../lib/train/adapter-set.js';
import { ModelTrainer, type TrainOptions } from '../../lib/train/model-trainer.js';

export interface Bundled {
  readonly decoder: Decoder;
  readonly data: TrainingData;
}

/** The bundled model in NF4, and its text in sequences of T tokens. */
export async function loadBundled(T: number): Promise<Bundled> {
  const model = openHfModel(bundledModel());
  const tokenizer = await openTokenizer('test', model, async () => {});
  const data = await packText('test', readText('test', [bundledText()], '\n\n'), tokenizer, T);
  await tokenizer.close();
  const weights = DecoderWeights.load(model, { format: { format: 'nf4' }, device: 'cpu' });
  return { decoder: new Decoder(model.decoder, weights), data };
}

/** A trainer of new adapters, with the learning rate that the command takes by default. */
export function trainerOf(
  { decoder, data }: Bundled,
  options: Partial<TrainOptions>,
  method: TrainedMethod = adapters.lora as unknown as TrainedMethod,
  targets: Targets = 'all-linear',
): ModelTrainer {
  const set = new AdapterSet(decoder, { method, settings: { r: 8 }, targets }, 1);
  return new ModelTrainer(decoder, set, data, {
    ...{ steps: 100, batch: 1, accumulate: 1, lr: 3e-3 * (options.optimizer?.rate ?? 1) },
    ...{ warmup: 0, weightDecay: 0, clip: 1, seed: 1, dtype: 'f32', recompute: false },
    ...options,
  });
}
