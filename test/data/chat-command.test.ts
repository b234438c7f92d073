/** `lowrank chat`: what the model is asked follows from the template and the conversation, and answers end where turns end. */

import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { Decoder } from '../../lib/model/decoder.js';
import { DecoderWeights } from '../../lib/model/decoder-weights.js';
import { generate } from '../../lib/model/generate.js';
import { openHfModel } from '../../lib/model/hf-model.js';
import { loadAdapters } from '../../lib/model/load-adapters.js';
import { requireBuilt, run } from '../finetune/command.js';
import { temporaryFolder } from '../finetune/setup.js';
import { chatModel, ids } from './setup.js';

const folder = temporaryFolder();
const inFolder = (name: string) => path.join(folder, name);
const words = ['apple', 'bread', 'cloud', 'drum'];
const turn = (role: string, content: string) => ({ role, content });
/** Each word is answered with its first letter, the second time with its last. */
const chats = Array.from({ length: 32 }, (_, i) => {
  const [a, b] = [words[i % 4], words[(i + (i >> 2)) % 4]] as [string, string];
  return {
    messages: [
      turn('user', a),
      turn('assistant', `${a[0]}!`),
      turn('user', b),
      turn('assistant', `${b.at(-1)}?`),
    ],
  };
});
const plainTemplate =
  "{% for m in messages %}{{ m.role + ': ' + m.content + '\n--\n' }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";

const tune = (out: string, ...more: string[]) =>
  run([
    ...['finetune', '--model', inFolder('model'), '--data', inFolder('chat.jsonl')],
    ...['--out', inFolder(out), '--seq-len', '160', '--batch', '4', '--rank', '8', '--lr', '0.03'],
    ...['--steps', '90', '--no-compare', '--no-report', '--sample-tokens', '0', ...more],
  ]);

/** Runs the command with lines on stdin. */
const chat = (input: readonly string[], ...more: string[]) => {
  fs.writeFileSync(inFolder('input'), input.map((line) => `${line}\n`).join(''));
  const args = ['chat', '--model', inFolder('model'), '--temperature', '0', '--tokens', '8'];
  return run([...args, ...more], { wrap: `"$@" < ${inFolder('input')}` });
};
const tuned = ['--adapter', inFolder('adapter')];

beforeAll(async () => {
  requireBuilt();
  chatModel(inFolder('model'), { hiddenSize: 48, intermediateSize: 96, headDim: 12 });
  fs.writeFileSync(inFolder('chat.jsonl'), chats.map((each) => JSON.stringify(each)).join('\n'));
  fs.writeFileSync(inFolder('plain.jinja'), plainTemplate);
  expect((await tune('adapter')).code).toBe(0);
  expect((await tune('plain', '--chat-template', inFolder('plain.jinja'))).code).toBe(0);
});

/** Tokens of a text in which `<b>` and `<e>` are marks. */
const tokens = (text: string): number[] =>
  text
    .split(/(<b>|<e>)/)
    .flatMap((part) =>
      part === '<b>' ? [ids.begin] : part === '<e>' ? [ids.stop] : [...Buffer.from(part)],
    );

/** The most likely answer to a prompt, by the library alone. */
async function answerTo(prompt: string): Promise<string> {
  const model = openHfModel(inFolder('model'));
  const decoder = new Decoder(model.decoder, DecoderWeights.load(model));
  const adapters = loadAdapters(decoder, inFolder('adapter'));
  const found: number[] = [];
  const options = { adapters, temperature: 0, maxTokens: 8, eosIds: [ids.end, ids.stop] };
  for await (const id of generate(decoder, tokens(prompt), options)) found.push(id);
  for (const adapter of adapters.values()) adapter.dispose();
  decoder.dispose();
  return Buffer.from(found).toString();
}

describe('chat', () => {
  it('asks in the template with all turns before, and ends answers at the end of a turn', async () => {
    const { code, stdout } = await chat(['apple', 'drum', '', '/new', 'drum'], ...tuned);
    expect(code).toBe(0);
    const first = await answerTo('<b>user:apple<e><b>assistant:');
    const second = await answerTo(
      `<b>user:apple<e><b>assistant:${first}<e><b>user:drum<e><b>assistant:`,
    );
    const anew = await answerTo('<b>user:drum<e><b>assistant:');
    expect(stdout).toBe(`${first}\n${second}\n${anew}\n`);
    // The same message is answered in another way where it is the first.
    expect([first, anew]).toEqual(['a!', 'd!']);
    expect(second).not.toBe(anew);
  });

  it('has a message of the system', async () => {
    const { stdout } = await chat(['bread'], '--system', 'Be kind.', ...tuned);
    expect(stdout).toBe(
      `${await answerTo('<b>system:Be kind.<e><b>user:bread<e><b>assistant:')}\n`,
    );
  });

  it('ends answers at a mark of plain text, which it does not show', async () => {
    const plain = ['--adapter', inFolder('plain'), '--chat-template', inFolder('plain.jinja')];
    const { stdout } = await chat(['cloud', 'bread'], ...plain);
    expect(stdout).toBe('c!\nd?\n');
  });

  it('goes on after a message that is too long, and says so at the end', async () => {
    const { code, stdout, stderr } = await chat(['x'.repeat(300), 'apple'], ...tuned);
    expect(stderr).toMatch(
      /chat: the conversation must have at most 255 tokens, got 318\. \/new begins another one/,
    );
    expect(stdout).toBe('a!\n');
    expect(code).toBe(2);
  });

  it('without input, a template, or an adapter that is there', async () => {
    expect(await chat([])).toMatchObject({ code: 0, stdout: '' });
    const bare = await run(['chat'], { wrap: `"$@" < ${inFolder('input')}` });
    expect(bare.stderr).toMatch(/must have a chat template for messages/);
    expect(bare.code).toBe(3);
    const none = await chat(['apple'], '--adapter', inFolder('nothing'));
    expect(none.code).toBe(3);
    fs.writeFileSync(
      inFolder('strict.jinja'),
      "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.content }}{% endfor %}",
    );
    const strict = ['--chat-template', inFolder('strict.jinja'), '--system', 'x'];
    const { stderr, code } = await chat(['apple'], ...strict);
    expect(stderr).toMatch(/the conversation must be messages that .* got: "no system"/);
    expect(code).toBe(2);
  });
});
