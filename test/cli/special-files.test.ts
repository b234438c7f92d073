/** What is no regular file, at every option that takes one: refused at once, never waited for. */

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { requireBuilt, run } from '../finetune/command.js';
import { temporaryFolder } from '../finetune/setup.js';
import { writeTinyCheckpoint } from '../finetune/tiny-checkpoint.js';

const folder = temporaryFolder();
const inFolder = (name: string) => path.join(folder, name);
const [fifo, socket] = [inFolder('fifo.mjs'), inFolder('socket.mjs')];
const server = net.createServer();

beforeAll(async () => {
  requireBuilt();
  execFileSync('mkfifo', [fifo]);
  await new Promise<void>((resolve) => server.listen(socket, resolve));
});
afterAll(() => server.close());

/** A model folder with one of its files replaced by a FIFO. */
function modelWithFifo(file: string): string {
  const model = inFolder(`model-${file}`);
  writeTinyCheckpoint(model);
  fs.rmSync(path.join(model, file));
  execFileSync('mkfifo', [path.join(model, file)]);
  return model;
}

const kernel = ['emulate', '--name', 'k', '--kernel'];
const cases: [string, () => string[]][] = [
  ['finetune --adapter', () => ['finetune', '--adapter', fifo]],
  ['finetune --adapter, the second', () => ['finetune', '--adapter', `lora,${fifo}`]],
  ['finetune --data', () => ['finetune', '--data', fifo]],
  ['config.json', () => ['finetune', '--model', modelWithFifo('config.json')]],
  ['model.safetensors', () => ['finetune', '--model', modelWithFifo('model.safetensors')]],
  ['tokenizer.json', () => ['finetune', '--model', modelWithFifo('tokenizer.json')]],
  ['quantize IN', () => ['quantize', fifo, inFolder('out')]],
  ['bench --from', () => ['bench', '--from', fifo]],
  ['bench --compare', () => ['bench', '--compare', fifo, fifo]],
  ['bench --case', () => ['bench', '--case', fifo]],
  ['emulate --kernel', () => [...kernel, fifo]],
  ['emulate --params', () => [...kernel, fifo, '--params', fifo]],
];

describe('a FIFO', () => {
  it.each(cases)('as %s', async (_, args) => {
    const own = args();
    const more = own[0] === 'finetune' ? ['--out', inFolder('out'), '--seq-len', '16'] : [];
    const result = await run([...own, ...more], { wrap: 'exec timeout 20 "$@"' });
    expect(result.stderr).toMatch(/^lowrank: \w+: ".*" must be a regular file, got a FIFO\n$/);
    expect(result.code).toBe(3);
    expect(fs.existsSync(inFolder('out'))).toBe(false);
  });
});

describe('as --adapter', () => {
  it.each([
    ['a socket', () => socket, /must be a regular file, got a socket/],
    ['a device', () => '/dev/zero', /must be a regular file, got a device/],
    ['a folder', () => folder, /must be a file, got a folder/],
  ])('%s', async (_, file, message) => {
    const args = ['finetune', '--adapter', file(), '--out', inFolder('out')];
    const { code, stderr } = await run(args, { wrap: 'exec timeout 20 "$@"' });
    expect(stderr).toMatch(message);
    expect(code).toBe(3);
  });
});
