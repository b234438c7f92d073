/**
 * Trains `@genai-fi/nanogpt`, a trainer of somebody else, with and without lowrank:
 *
 *   node examples/nanogpt/train.mjs --backend wasm --lowrank lora --steps 12
 *
 * `--lowrank`: none, products (`register()`), all (other kernels of the cpu backend too), or lora (all of that, and the
 * fused LoRA layer). Prints the losses, the time of a step, and a digest of the weights as JSON.
 */

import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { seedRandom } from './environment.mjs';

const { values: given } = parseArgs({
  options: {
    backend: { type: 'string', default: 'cpu' },
    lowrank: { type: 'string', default: 'products' },
    format: { type: 'string' },
    steps: { type: 'string', default: '12' },
    width: { type: 'string', default: '128' },
    layers: { type: 'string', default: '2' },
    batch: { type: 'string', default: '8' },
    block: { type: 'string', default: '64' },
    rank: { type: 'string', default: '8' },
    weights: { type: 'boolean', default: false },
  },
});
const number = (name) => Number(given[name]);
const [batch, block, steps] = [number('batch'), number('block'), number('steps')];
seedRandom(12345);

const print = console.log;
console.log = () => {};
const tf = await import('@tensorflow/tfjs');
await import('@tensorflow/tfjs-backend-wasm');
const { TeachableLLM, data } = await import('@genai-fi/nanogpt');
const { correctMatMul16 } = await import('./matmul16.mjs');
const { register, registerMissing } = await import('lowrank/tfjs');
const { useLora } = await import('./use-lora.mjs');

correctMatMul16();
await TeachableLLM.selectBackend('cpu');
if (given.backend !== 'cpu') {
  registerMissing('cpu', given.backend);
  await tf.setBackend(given.backend);
}
if (given.lowrank !== 'none') {
  register({ kernels: given.lowrank === 'products' ? 'products' : 'all' });
}

const llm = TeachableLLM.create('char', {
  modelType: 'GenAI_NanoGPT_v1',
  vocabSize: 96,
  blockSize: block,
  nLayer: number('layers'),
  nHead: 4,
  nEmbed: number('width'),
  mlpFactor: 4,
  useRope: true,
});
const text = readFileSync(new URL('../data/finetune.txt', import.meta.url), 'utf8');
const conversations = [];
for (let at = 0; at < Math.min(text.length, 20 * batch * block); at += 200) {
  conversations.push([{ role: 'text', content: text.slice(at, at + 200) }]);
}
const stream = new data.MemoryConversationStream(conversations);
await llm.trainTokeniser([stream]);

const options = {
  method: { type: 'supervised', supervised: 'lora' },
  batchSize: batch,
  maxEpochs: 50,
  logInterval: 1,
  learningRate: 1e-3,
  weightDecay: 0,
  warmupSteps: 1,
  loraConfig: { rank: number('rank'), alpha: 16, variables: ['block_*'] },
  loraName: 'l',
};
if (given.lowrank === 'lora') {
  const { format } = given;
  useLora(llm.model, { name: 'l', alpha: 16, ...(format === undefined ? {} : { format }) });
}

const [losses, times] = [[], []];
const finished = new Promise((resolve, reject) => {
  for (const event of ['completed', 'cancelled']) llm.training.on(event, resolve);
  llm.training.on('error', (_, error) => reject(error));
});
const job = await llm.training.job(
  options,
  [stream],
  [{ id: 'a', name: 'a', conversational: false }],
);
let last = performance.now();
llm.training.on('progress', ({ history }) => {
  losses.push(history.at(-1).trainingMetrics.loss);
  times.push(performance.now() - last);
  last = performance.now();
  if (losses.length >= steps) llm.training.cancel(job.id);
});
await finished;

const trained = llm.model.weightStore.trainableVariables.map((variable) => variable.dataSync());
const sorted = times.slice(2).sort((a, b) => a - b);
print(
  JSON.stringify({
    backend: given.backend,
    lowrank: given.lowrank,
    losses: losses.slice(0, steps),
    medianMs: sorted[sorted.length >> 1],
    minMs: sorted[0],
    trained: trained.length,
    ...(given.weights ? { weights: trained.map((values) => [...values]) } : {}),
  }),
);
process.exit(0);
