/** The programs in examples/, run as their pages say, with less work. */

import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { requireBuilt, run } from '../finetune/command.js';
import { temporaryFolder } from '../finetune/setup.js';

const root = path.join(import.meta.dirname, '..', '..');
const folder = temporaryFolder();
const adapters = path.join(folder, 'adapters');
const node = (...args: string[]): string =>
  execFileSync(process.execPath, args, { cwd: root, encoding: 'utf8' });

async function lowrank(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(args);
  expect(code, stderr).toBe(0);
  return stdout;
}

beforeAll(requireBuilt);

it('each folder has a page, and a test that runs it', () => {
  const examples = fs
    .readdirSync(path.join(root, 'examples'))
    .filter((name) => name !== 'README.md');
  expect(examples.length).toBeGreaterThan(10);
  const index = fs.readFileSync(path.join(root, 'examples', 'README.md'), 'utf8');
  const tests = fs
    .readdirSync(path.join(root, 'test'), { recursive: true, encoding: 'utf8' })
    .filter((name) => /\.(ts|py)$/.test(name))
    .map((name) => fs.readFileSync(path.join(root, 'test', name), 'utf8'))
    .join('\n');
  for (const name of examples) {
    expect(fs.existsSync(path.join(root, 'examples', name, 'README.md')), name).toBe(true);
    expect(index, name).toContain(`](${name}/README.md)`);
    expect(tests, name).toMatch(new RegExp(`['"/]${name}['"/]`));
  }
});

describe('notes, and adapters that are served', () => {
  const data = path.join(folder, 'notes.jsonl');
  const notes = path.join(adapters, 'notes');
  let server: ChildProcess | undefined;
  afterAll(() => server?.kill());

  it('examples/own-notes: sections become examples, and the fine-tune learns them', async () => {
    const collect = ['examples/own-notes/collect.mjs', 'examples/own-notes/notes', data];
    expect(node(...collect)).toBe('3 sections of 3 notes\n');
    const texts = fs.readFileSync(data, 'utf8').trim().split('\n');
    expect(JSON.parse(texts[0] as string).text).toMatch(/^# Bread\n[\s\S]*Saturday morning\.$/);

    fs.mkdirSync(adapters);
    const quick = ['--seq-len', '48', '--steps', '12', '--sample-tokens', '0', '--no-compare'];
    const printed = await lowrank('finetune', '--data', data, '--out', notes, ...quick);
    const of = (when: string) =>
      Number(new RegExp(`held-out loss ${when}\\s+([\\d.]+)`).exec(printed)?.[1]);
    expect(of('after')).toBeLessThan(of('before'));
  });

  it('examples/many-adapters: rows of a batch have the text of their own adapter', async () => {
    const serve = ['examples/many-adapters/serve.mjs', '--adapters', adapters, '--port', '0'];
    server = spawn(process.execPath, serve, { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] });
    const address = await new Promise<string>((resolve, reject) => {
      let said = '';
      server?.stdout?.on('data', (part: Buffer) => {
        said += part.toString();
        const [found] = /http:\S+/.exec(said) ?? [];
        if (found !== undefined) resolve(found);
      });
      server?.on('exit', (code) => reject(new Error(`the server ended with ${code}: ${said}`)));
    });
    const ask = async (body: unknown) => {
      const response = await fetch(address, { method: 'POST', body: JSON.stringify(body) });
      const answer = (await response.json()) as { text?: string; error?: string; batch?: number };
      return { status: response.status, ...answer };
    };
    const request = { prompt: '# Tomatoes', tokens: 8 };
    const ask3 = () => [ask(request), ask({ ...request, adapter: 'notes' }), ask(request)];
    const answers = await Promise.all([...ask3(), ...ask3()]);
    expect(answers.some(({ batch = 0 }) => batch > 1)).toBe(true);

    const greedy = [
      '--tokens',
      '8',
      '--temperature',
      '0',
      '--format',
      'nf4',
      '--dtype',
      'f32',
      '--json',
    ];
    const alone = async (...more: string[]) =>
      JSON.parse(await lowrank('generate', '--prompt', request.prompt, ...greedy, ...more)).text;
    const [base, own] = [await alone(), await alone('--adapter', notes)];
    expect(own).not.toBe(base);
    const expected = [base, own, base].map((text) => ({ status: 200, text }));
    expect(answers).toMatchObject([...expected, ...expected]);

    const wrong = await ask({ ...request, adapter: 'note' });
    expect(wrong).toMatchObject({ status: 400, error: expect.stringContaining('one of notes') });
  });
});

it('examples/tfjs-classifier: LoRA in the body beats the head alone, and reads back', () => {
  const printed = node('examples/tfjs-classifier/train.mjs', '--epochs', '3');
  const percent = (line: string) => Number(new RegExp(`${line}: ([\\d.]+) %`).exec(printed)?.[1]);
  expect(percent('head and LoRA')).toBeGreaterThan(percent('head alone') + 20);
  expect(percent('read back')).toBe(percent('head and LoRA'));
});

it('examples/own-trainer: the loss falls', () => {
  const printed = node('examples/own-trainer/train.mjs', 'examples/base-model/model', '8');
  const losses = [...printed.matchAll(/loss ([\d.]+)/g)].map(([, loss]) => Number(loss));
  expect(losses.length).toBe(8);
  expect(losses.at(-1)).toBeLessThan(losses[0] as number);
});
