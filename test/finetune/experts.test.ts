// lowrank finetune on tiny models with experts: adapters on attention, and on the experts.
import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import type { RawTensor } from '../../lib/checkpoint/raw-tensor.js';
import { readSafetensors, writeSafetensors } from '../../lib/index.js';
import { decoderPlaces, tensorShapes } from '../../lib/model/decoder-tensors.js';
import { parseDecoderConfig } from '../../lib/model/read-config.js';
import { requireBuilt, run } from './command.js';
import { temporaryFolder } from './setup.js';
import { noise, writeTinyCheckpoint } from './tiny-checkpoint.js';

const folder = temporaryFolder();
const text = path.join(folder, 'text.txt');
const kFields = {
  mixtral: { architectures: ['MixtralForCausalLM'], num_local_experts: 4 },
  gpt_oss: {
    architectures: ['GptOssForCausalLM'],
    num_local_experts: 4,
    sliding_window: 8,
  },
} as const;
type Name = keyof typeof kFields;

/** A model of that type with random weights, and the tokenizer of bytes. */
function writeModel(name: Name): string {
  const model = path.join(folder, name);
  writeTinyCheckpoint(model, {
    hiddenSize: 32,
    headDim: 8,
    intermediateSize: 32,
    config: { ...kFields[name], model_type: name, num_experts_per_tok: 2 },
  });
  const file = path.join(model, 'config.json');
  const config = JSON.parse(fs.readFileSync(file, 'utf8'));
  const random = noise(3);
  const tensors = new Map<string, RawTensor>();
  const places = decoderPlaces(parseDecoderConfig('test', file, config));
  for (const [tensor, shape] of tensorShapes(places)) {
    const bias = shape.length === 1 && !tensor.endsWith('norm.weight');
    const center = shape.length === 1 && !bias ? 1 : 0;
    const bound = shape.length === 1 ? 0.2 : Math.sqrt(3 / (shape.at(-1) as number));
    const size = shape.reduce((a, b) => a * b, 1);
    const data = Float32Array.from({ length: size }, () => center + bound * random());
    tensors.set(tensor, { dtype: 'F32', shape, data });
  }
  writeSafetensors(path.join(model, 'model.safetensors'), tensors, { format: 'pt' });
  return model;
}

beforeAll(() => {
  requireBuilt();
  const line = (i: number) => `Document ${i} says that ${i} times ${i} is ${i * i}.`;
  fs.writeFileSync(text, Array.from({ length: 40 }, (_, i) => line(i)).join('\n\n'));
});

describe.each(['mixtral', 'gpt_oss'] as const)('%s', (name) => {
  const all = 'q_proj,v_proj,experts.gate_up_proj,experts.down_proj';
  it.each([
    ['all-linear', 'nf4'],
    [all, 'none'],
  ] as const)('%s over %s lowers the loss, and the adapter generates', async (targets, format) => {
    const model = writeModel(name);
    const out = path.join(folder, `${name}-${format}`);
    const made = await run([
      ...['finetune', '--model', model, '--data', text, '--out', out, '--steps', '30'],
      ...['--seq-len', '32', '--batch', '2', '--rank', '4', '--sample-tokens', '4', '--no-compare'],
      ...['--lr', '0.02', '--targets', targets, '--format', format, '--device', 'cpu', '--json'],
    ]);
    expect(made.code).toBe(0);
    const report = JSON.parse(made.stdout) as { lossBefore: number; lossAfter: number };
    expect(report.lossAfter).toBeLessThan(0.85 * report.lossBefore);
    const files = readSafetensors(path.join(out, 'adapter_model.safetensors')).tensors;
    const experts = [...files.keys()].filter((key) => key.includes('mlp.experts'));
    expect(experts.length).toBe(targets === all ? 8 : 0);
    const generated = await run([
      ...['generate', '--model', model, '--adapter', out, '--prompt', 'Document 3'],
      ...['--tokens', '5', '--format', format, '--device', 'cpu', '--json'],
    ]);
    expect(generated.code).toBe(0);
  });
});
