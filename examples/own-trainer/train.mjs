// A trainer of one's own: node examples/own-trainer/train.mjs [MODEL] [STEPS]
import { AdapterSet, adapters, Decoder, DecoderWeights, openHfModel, Trainer } from 'lowrank';

const [folder = 'examples/base-model/model', steps = '20'] = process.argv.slice(2);
const model = openHfModel(folder);
const weights = DecoderWeights.load(model, { format: { format: 'nf4' } });
const decoder = new Decoder(model.decoder, weights);
const lora = { method: adapters.lora, settings: { r: 8, dropout: 0.05 }, targets: 'all-linear' };
const set = new AdapterSet(decoder, lora, 1);
const trainer = new Trainer(set.parameters, { lr: 3e-3, clip: 1, weightDecay: 0.01 });

// Any ids and targets: here a row that counts upwards, one step further each time.
const [B, T] = [2, 32];
const batchOf = (step) => {
  const at = (i) => (step + i) % model.decoder.vocabSize;
  const ids = Int32Array.from({ length: B * T }, (_, i) => at(i));
  return { B, T, ids, targets: Int32Array.from(ids, (_, i) => at(i + 1)) };
};

for (let step = 0; step < Number(steps); step++) {
  const queued = trainer.step((tape, { seed }) => {
    const { targets, ...tokens } = batchOf(step);
    const call = { adapters: set.byModule, dtype: 'f32', seed };
    const { features } = decoder.forward(tape, tokens, call);
    return decoder.loss(tape, features, targets, { ...call, scale: 1 / (B * T) }).loss;
  });
  const { loss, gradientNorm } = await queued.read();
  console.log(`step ${step + 1}: loss ${loss.toFixed(4)}, gradient ${gradientNorm.toFixed(3)}`);
}
