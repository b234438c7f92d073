// lowrank finetune on tiny models with experts: adapters on attention, and on the experts.
import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { readSafetensors } from '../../lib/index.js';
import { requireBuilt, run } from './command.js';
import { temporaryFolder } from './setup.js';
import { writeTinyArchitecture } from './tiny-architecture.js';

const folder = temporaryFolder();
const text = path.join(folder, 'text.txt');
type Name = 'mixtral' | 'gpt_oss';

function writeModel(name: Name): string {
  const model = path.join(folder, name);
  writeTinyArchitecture(model, name);
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
