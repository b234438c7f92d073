/** `lowrank finetune` on data as people have it: each kind lowers its loss, goes on with the same bits, and shows what it learns. */

import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { shownData } from '../../lib/cli/finetune/finetune-data.js';
import { requireBuilt, run, start } from '../finetune/command.js';
import { temporaryFolder } from '../finetune/setup.js';
import { chatModel } from './setup.js';

const folder = temporaryFolder();
const inFolder = (name: string) => path.join(folder, name);
const file = (name: string, content: string): string => {
  fs.writeFileSync(inFolder(name), content);
  return inFolder(name);
};
const lines = (objects: readonly object[]) =>
  objects.map((each) => JSON.stringify(each)).join('\n');

const numbers = Array.from({ length: 40 }, (_, i) => i);
const turn = (role: string, content: string) => ({ role, content });
const chats = numbers.map((i) => ({
  messages: [
    turn('user', `${i} + 1?`),
    turn('assistant', `${i + 1}.`),
    turn('user', 'Sure?'),
    turn('assistant', 'Yes.'),
  ],
}));
const pairs = numbers.map((i) => ({ prompt: `${i}: `, chosen: 'up', rejected: 'down' }));

/** Data of each kind, with the options that it needs. */
const kinds: Record<string, () => string[]> = {
  text: () => [
    '--data',
    file('text.jsonl', lines(numbers.map((i) => ({ text: `The number ${i}.` })))),
  ],
  completion: () => [
    '--data',
    file(
      'table.csv',
      `prompt,completion\n${numbers.map((i) => `${i} + 1 = ,${i + 1}`).join('\n')}\n`,
    ),
  ],
  messages: () => ['--data', file('chat.jsonl', lines(chats))],
  preference: () => ['--data', file('pairs.jsonl', lines(pairs)), '--loss', 'dpo', '--lr', '0.01'],
};

beforeAll(() => {
  requireBuilt();
  chatModel(inFolder('model'), { hiddenSize: 48, intermediateSize: 96, headDim: 12 });
});

const args = (out: string, ...more: string[]) => [
  ...['finetune', '--model', inFolder('model'), '--out', inFolder(out), '--seq-len', '96'],
  ...['--batch', '2', '--rank', '4', '--lr', '0.02', '--no-compare', '--no-report'],
  ...['--sample-tokens', '4', ...more],
];
const lastLoss = (text: string) => Number(/held-out loss after\s+([\d.]+)/.exec(text)?.[1]);
const firstLoss = (text: string) => Number(/held-out loss before\s+([\d.]+)/.exec(text)?.[1]);

describe.each(Object.keys(kinds))('%s', (kind) => {
  const data = () => (kinds[kind] as () => string[])();

  it('lowers the held-out loss, and its adapter generates', async () => {
    const { code, stdout, stderr } = await run(args(`${kind}-whole`, '--steps', '30', ...data()));
    expect(stderr).not.toMatch(/bug/);
    expect(code).toBe(0);
    expect(lastLoss(stdout)).toBeLessThan(0.7 * firstLoss(stdout));
    if (kind === 'preference') {
      expect(firstLoss(stdout)).toBeCloseTo(Math.LN2, 4);
      expect(stdout).toMatch(/nats per pair/);
      expect(stdout).toMatch(/held-out pairs ranked right\s+100\.0 %/);
    } else expect(stdout).toMatch(/nats per token/);
    const generated = await run([
      ...['generate', '--model', inFolder('model'), '--adapter', inFolder(`${kind}-whole`)],
      ...['--prompt', '3', '--tokens', '4', '--json'],
    ]);
    expect(generated.code).toBe(0);
  });

  it('goes on after an interruption with the bits of a run that never stopped', async () => {
    const more = ['--steps', '12', '--eval-every', '4', '--save-every', '1', ...data()];
    const running = start(args(`${kind}-halves`, ...more));
    await running.until('step 4: held-out');
    running.child.kill('SIGINT');
    expect((await running.finished).code).toBe(130);
    expect((await run(args(`${kind}-halves`, '--resume', ...more))).code).toBe(0);
    expect((await run(args(`${kind}-one`, ...more))).code).toBe(0);
    const bytes = (out: string) =>
      fs.readFileSync(path.join(inFolder(out), 'adapter_model.safetensors'));
    expect(bytes(`${kind}-halves`).equals(bytes(`${kind}-one`))).toBe(true);
  });
});

describe('a run that goes on', () => {
  it('refuses other data, another template, loss, or way of packing', async () => {
    const more = ['--steps', '100000', '--eval-every', '2', '--save-every', '1'];
    const chat = (kinds.messages as () => string[])();
    const running = start(args('refused', ...more, ...chat));
    await running.until('step 2: held-out');
    running.child.kill('SIGINT');
    await running.finished;
    const again = async (...changed: string[]) => {
      const { code, stderr } = await run(args('refused', '--resume', ...more, ...changed));
      expect(code).toBe(5);
      return stderr;
    };
    const other = file('other.jsonl', lines(chats.slice(1)));
    expect(await again('--data', other)).toMatch(/text \(SHA-256\)/);
    expect(await again(...chat, '--no-packing')).toMatch(/no-packing false instead of true/);
    expect(await again(...chat, '--skip-long')).toMatch(/skip-long false instead of true/);
    expect(await again(...chat, '--eval-data', other)).toMatch(/eval-data \(SHA-256\)/);
    const template = file(
      'template.jinja',
      '{% for m in messages %}{{ m.content }}<e>{% endfor %}',
    );
    expect(await again(...chat, '--chat-template', template)).toMatch(/chat template \(SHA-256\)/);
  });
});

describe('samples', () => {
  it('are asked in the template, and end with the turn', async () => {
    const agreed = numbers.map((i) => ({
      messages: [turn('user', `${i}?`), turn('assistant', 'Ok.')],
    }));
    const data = ['--data', file('agreed.jsonl', lines(agreed))];
    const sampled = ['--sample-tokens', '12', '--prompt', '5?'];
    const { stdout, code } = await run(
      args('samples', '--steps', '150', '--rank', '8', '--json', ...sampled, ...data),
    );
    expect(code).toBe(0);
    const { samples } = JSON.parse(stdout) as { samples: object[] };
    expect(samples).toMatchObject([{ prompt: '5?', after: 'Ok.' }]);
  });

  it('begin as held-out examples do', async () => {
    const table = (kinds.completion as () => string[])();
    const { stdout } = await run(args('samples2', '--steps', '2', '--json', ...table));
    const { samples } = JSON.parse(stdout) as { samples: { prompt: string }[] };
    expect(samples.map(({ prompt }) => prompt)).toEqual(['38 + 1 =', '39 + 1 =']);
  });
});

describe('--eval-data', () => {
  it('is evaluated on instead of the last tenth, several files of each', async () => {
    const text = numbers.map((i) => `Document ${i} says ${i * i} and no more than that.`);
    const [a, b, c] = [0, 1, 2].map((part) =>
      file(`part${part}.txt`, text.filter((_, i) => i % 3 === part).join('\n\n')),
    ) as [string, string, string];
    const files = ['--data', a, '--data', b, '--eval-data', c];
    const { code, stdout } = await run(args('parts', '--steps', '20', ...files));
    expect(code).toBe(0);
    expect(lastLoss(stdout)).toBeLessThan(0.8 * firstLoss(stdout));
    // The base's loss of the file does not depend on what is trained on.
    const other = await run(args('parts2', '--steps', '1', '--data', a, '--eval-data', c));
    expect(firstLoss(other.stdout)).toBe(firstLoss(stdout));
    const lineFiles = [0, 1].map((part) =>
      file(`part${part}.jsonl`, lines(chats.filter((_, i) => i % 2 === part))),
    ) as [string, string];
    const chat = await run(
      args('parts3', '--steps', '5', '--data', lineFiles[0], '--eval-data', lineFiles[1]),
    );
    expect(chat.code).toBe(0);
    const whole = (kinds.messages as () => string[])();
    const same = await run(args('parts4', '--steps', '1', ...whole, '--eval-data', lineFiles[1]));
    expect(firstLoss(same.stdout)).toBe(firstLoss(chat.stdout));
    const tenth = await run(args('parts5', '--steps', '1', ...whole));
    expect(firstLoss(tenth.stdout)).not.toBe(firstLoss(chat.stdout));
  });
});

describe('--show-data', () => {
  const shown = async (...more: string[]) => {
    const { code, stdout } = await run(args('shown', '--show-data', '1', ...more));
    expect(code).toBe(0);
    expect(fs.existsSync(inFolder('shown'))).toBe(false);
    return stdout;
  };

  it('shows what is learned, and writes nothing', async () => {
    const chat = (kinds.messages as () => string[])();
    expect(await shown(...chat)).toBe(
      `── ${chat[1]}:1: 55 tokens, 8 learned\n` +
        '<b>user:0 + 1?<e><b>assistant:⟦1.<e>⟧<b>user:Sure?<e><b>assistant:⟦Yes.<e>⟧\n\n' +
        '36 sequences of 96 tokens to train on, 4 to evaluate on; 351 tokens are learned\n',
    );
    const both = await shown(...(kinds.preference as () => string[])());
    expect(both).toMatch(/, chosen: 7 tokens, 3 learned\n<\|endoftext\|>0: ⟦up<\|endoftext\|>⟧\n/);
    expect(both).toMatch(/, rejected: 9 tokens, 5 learned\n/);
    expect(await shown('--data', file('t.txt', 'Once upon. '.repeat(60)))).toMatch(/⟦Once upon\. /);
  });

  it('dims what is not learned on a terminal, and lets no text steer one', () => {
    const part = (text: string, learned: boolean) => ({ text, learned });
    const text = { file: 'a.jsonl', line: 3, tokens: 5, learned: 2 };
    const preview = {
      texts: [{ ...text, parts: [part('ask\u001b[2J\n', false), part('answer', true)] }],
      ...{ notes: [], sequences: [2, 1] as const, seqLen: 8, learned: 2 },
    };
    const counts = '2 sequences of 8 tokens to train on, 1 to evaluate on; 2 tokens are learned\n';
    expect(shownData(preview, true)).toBe(
      `── a.jsonl:3: 5 tokens, 2 learned\n\u001b[2mask\ufffd[2J\n\u001b[22manswer\n\n${counts}`,
    );
    expect(shownData(preview, false)).toBe(
      `── a.jsonl:3: 5 tokens, 2 learned\nask\ufffd[2J\n⟦answer⟧\n\n${counts}`,
    );
  });

  it('has the parts in JSON', async () => {
    const table = (kinds.completion as () => string[])();
    const found = JSON.parse(await shown('--json', ...table)) as { texts: object[] };
    expect(found.texts).toEqual([
      {
        ...{ file: table[1], line: 2, tokens: 11, learned: 2 },
        parts: [
          { text: '<|endoftext|>0 + 1 = ', learned: false },
          { text: '1<|endoftext|>', learned: true },
        ],
      },
    ]);
  });
});

describe('before anything is trained', () => {
  const good = lines(chats);
  it.each<[string, () => string[], number, RegExp]>([
    [
      'JSON lines as text',
      () => ['--data', file('chat.txt', good)],
      3,
      /chat\.txt" must be plain text, got JSON\. Name it \.jsonl/,
    ],
    [
      'a line that is no JSON',
      () => ['--data', file('bad.jsonl', `${good}\n{"messages":`)],
      3,
      /bad\.jsonl" line 41 must be a JSON object/,
    ],
    [
      'a field that is missing',
      () => ['--data', file('bad.jsonl', `${good}\n{"message":[]}`)],
      3,
      /bad\.jsonl" line 41 must be of the fields messages alone/,
    ],
    [
      'pairs without dpo',
      () => ['--data', file('pairs.jsonl', lines(pairs))],
      2,
      /--loss must be dpo/,
    ],
    ['another loss', () => ['--loss', 'kto'], 2, /--loss must be one of lm, dpo, got "kto"/],
    [
      'a beta without dpo',
      () => ['--dpo-beta', '1'],
      2,
      /--dpo-beta must be left out without --loss dpo/,
    ],
    [
      'an example that is too long',
      () => [
        '--data',
        file(
          'long.jsonl',
          lines(
            [{ text: 'a' }, { prompt: 'a', completion: 'b' }]
              .slice(1)
              .concat({ prompt: 'p'.repeat(200), completion: 'c' }),
          ),
        ),
      ],
      3,
      /long\.jsonl" line 2 must be of at most 96 tokens/,
    ],
    [
      'a template that is missing',
      () => ['--data', file('chat.jsonl', good), '--chat-template', inFolder('no.jinja')],
      3,
      /no\.jinja" must exist/,
    ],
    [
      'one example',
      () => ['--data', file('one.jsonl', lines(chats.slice(0, 1)))],
      2,
      /at least 2 examples/,
    ],
  ])('%s is rejected', async (_, more, code, message) => {
    const result = await run(args('nothing', '--steps', '5', ...more()));
    expect(result.stderr).toMatch(message);
    expect(result.code).toBe(code);
    expect(fs.existsSync(inFolder('nothing'))).toBe(false);
    expect(fs.existsSync(`${inFolder('nothing')}.checkpoint`)).toBe(false);
  });
});
