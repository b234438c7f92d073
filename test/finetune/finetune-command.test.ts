/** `lowrank finetune` as a user runs it: results, interruption, and everything that can be wrong. */

import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { findTunedTorch } from '../../lib/bench/peers/torch.js';
import { readPeftAdapter } from '../../lib/checkpoint/peft/peft.js';
import { formatNames } from '../../lib/core/formats.js';
import { type Finished, requireBuilt, run, start } from './command.js';
import { temporaryFolder } from './setup.js';
import { type TinyCheckpointOptions, writeTinyCheckpoint } from './tiny-checkpoint.js';

const folder = temporaryFolder();
const model = path.join(folder, 'model');
const text = path.join(folder, 'text.txt');
const inFolder = (name: string) => path.join(folder, name);

/** A tiny run; later options win. */
const tiny = (out: string, ...more: string[]) => [
  ...['finetune', '--model', model, '--out', inFolder(out), '--steps', '6'],
  ...(more.includes('--data') ? [] : ['--data', text]),
  ...['--seq-len', '16', '--batch', '2', '--rank', '2', '--sample-tokens', '4', '--no-compare'],
  ...more,
];
const weights = (out: string) => fs.readFileSync(inFolder(`${out}/adapter_model.safetensors`));

beforeAll(() => {
  requireBuilt();
  writeTinyCheckpoint(model);
  const line = (i: number) => `Document ${i} says that ${i} times ${i} is ${i * i}.`;
  fs.writeFileSync(text, Array.from({ length: 40 }, (_, i) => line(i)).join('\n\n'));
});

describe('a run', () => {
  let plain: Finished;
  beforeAll(async () => {
    plain = await run(tiny('plain', '--dropout', '0.1'));
  });

  it('writes an adapter that PEFT’s layout describes, a report and a table', () => {
    expect(plain.stderr).toContain('adapter written to');
    expect(plain.code).toBe(0);
    const adapter = readPeftAdapter(inFolder('plain'));
    expect(adapter.modules).toHaveLength(14);
    expect(adapter.config.r).toBe(2);
    expect(adapter.config.loraAlpha).toBe(4);
    expect(adapter.config.taskType).toBe('CAUSAL_LM');
    for (const row of ['held-out loss before', 'tokens/s', 'in nf4', 'memory of the process']) {
      expect(plain.stdout).toContain(row);
    }
    expect(plain.stdout.match(/before:/g)).toHaveLength(2);
    expect(fs.existsSync(inFolder('plain.checkpoint'))).toBe(false);
    const html = fs.readFileSync(inFolder('plain/report.html'), 'utf8');
    expect(html).toContain('<polyline');
    expect(html).not.toMatch(/<script|src=|href=|url\(/);
  });

  it('is quiet: nothing of TensorFlow.js, no escapes where stderr is no terminal', () => {
    expect(plain.stderr).not.toMatch(/tensorflow/i);
    expect(plain.stderr).not.toContain('\u001b');
  });

  it('gives the same bytes again, and one JSON object with --json', async () => {
    const again = await run(tiny('again', '--dropout', '0.1', '--json'));
    expect(again.stderr).toBe('');
    const result = JSON.parse(again.stdout);
    expect(result.steps).toBe(6);
    expect(result.history.train).toHaveLength(6);
    expect(result.lossAfter).toBeLessThan(result.lossBefore);
    expect(result.maxRss).toBeLessThan(700 * 2 ** 20);
    expect(weights('again').equals(weights('plain'))).toBe(true);
    const other = await run(tiny('other', '--dropout', '0.1', '--seed', '2'));
    expect(other.code).toBe(0);
    expect(weights('other').equals(weights('plain'))).toBe(false);
  });

  it('compares with the same step in torch and TensorFlow.js, to the same loss', async () => {
    const args = tiny('compared', '--json', '--accumulate', '2', '--dtype', 'f32').filter(
      (arg) => arg !== '--no-compare',
    );
    const { comparison, table } = JSON.parse((await run(args)).stdout);
    const torch = findTunedTorch();
    if ('missing' in torch) console.warn(`not compared with torch: ${torch.missing}`);
    const theirs = 'missing' in torch ? [] : [`torch ${torch.versions[0]}, f32`];
    const names = [...theirs, 'TensorFlow.js (wasm)'];
    expect(comparison.others.map(({ name }: { name: string }) => name)).toEqual(names);
    for (const { name, ms, loss } of comparison.others) {
      expect(ms).toBeGreaterThan(0);
      expect(Math.abs(comparison.ownLoss - loss), name).toBeLessThan(1e-5);
      expect(table[`the same in ${name}`]).toMatch(/^\d+ ms$/);
    }
  });

  it('takes other sizes, formats, shards, targets and ways to accumulate', async () => {
    const wide = inFolder('wide');
    writeTinyCheckpoint(wide, {
      hiddenSize: 30,
      intermediateSize: 172,
      numAttentionHeads: 6,
      numKeyValueHeads: 3,
      headDim: 8,
      tieWordEmbeddings: true,
      shards: 2,
      dtype: 'BF16',
    });
    const variants = [
      ['--format', 'none', '--targets', 'q_proj,v_proj', '--rslora'],
      ['--format', 'fp4', '--double-quant', '--blocksize', '128', '--accumulate', '3'],
      ['--format', 'int8', '--weight-decay', '0.1', '--lora-alpha', '1', '--device', 'reference'],
    ];
    const runs = variants.map((variant, i) =>
      run(tiny(`variant${i}`, '--model', wide, '--steps', '2', ...variant)),
    );
    // Rows of whole blocks: int4 has zero-points.
    const even = inFolder('even');
    writeTinyCheckpoint(even, {
      hiddenSize: 64,
      intermediateSize: 128,
      numAttentionHeads: 4,
      numKeyValueHeads: 2,
      headDim: 16,
    });
    const affine = ['--format', 'int4', '--blocksize', '32', '--adapter', 'qalora'];
    runs.push(run(tiny('int4', '--model', even, '--steps', '2', ...affine)));
    for (const { code, stderr } of await Promise.all(runs)) expect(code, stderr).toBe(0);
    expect(readPeftAdapter(inFolder('variant0')).modules).toHaveLength(4);
  });
});

it('trains the bias of the up-projection, and writes it as PEFT does', async () => {
  const args = tiny('biased', '--set', 'loraBias=true', '--json');
  const compared = args.filter((arg) => arg !== '--no-compare');
  const { code, stderr, stdout } = await run(compared);
  expect(code, stderr).toBe(0);
  // Stock ops have no such bias: there is nothing to compare with.
  expect(JSON.parse(stdout).comparison).toBeUndefined();
  const { config, modules } = readPeftAdapter(inFolder('biased'));
  expect(config.loraBias).toBe(true);
  for (const { loraBias, loraB } of modules) {
    expect(loraBias?.shape).toEqual([loraB.shape[0]]);
    const values = loraBias?.data as Float32Array;
    expect(values.some((value) => value !== 0)).toBe(true);
  }
});

describe('interruption', () => {
  const long = (out: string, ...more: string[]) =>
    tiny(out, '--steps', '40', '--eval-every', '3', '--sample-tokens', '0', ...more);
  let whole: Buffer;

  beforeAll(async () => {
    const { code, stderr } = await run(long('whole'));
    expect(code, stderr).toBe(0);
    whole = weights('whole');
  });

  it.each(['SIGINT', 'SIGTERM'] as const)(
    '%s keeps the state; resuming gives the same bytes',
    async (signal) => {
      const out = `stopped-${signal}`;
      const running = start(long(out));
      await running.until('step 3: held-out');
      running.child.kill(signal);
      const { code, stderr } = await running.finished;
      expect(code, stderr).toBe(signal === 'SIGINT' ? 130 : 143);
      expect(stderr).toContain('--resume');
      expect(fs.existsSync(inFolder(out))).toBe(false);
      const other = await run(long(out, '--resume', '--rank', '3'));
      expect(other.code).toBe(5);
      expect(other.stderr).toContain('rank 2 instead of 3');
      const resumed = await run(long(out, '--resume'));
      expect(resumed.code, resumed.stderr).toBe(0);
      expect(weights(out).equals(whole)).toBe(true);
      expect(fs.existsSync(inFolder(`${out}.checkpoint`))).toBe(false);
    },
  );

  it('kill -9 between checkpoints loses only the steps since the last', async () => {
    const running = start(long('killed', '--save-every', '1'));
    await running.until('step 6: held-out');
    running.child.kill('SIGKILL');
    await running.finished;
    expect(fs.existsSync(inFolder('killed'))).toBe(false);
    const resumed = await run(long('killed', '--resume', '--save-every', '1'));
    expect(resumed.code, resumed.stderr).toBe(0);
    expect(weights('killed').equals(whole)).toBe(true);
  });

  /** A model whose samples never end by themselves, and which gives a warning when it is opened. */
  const endless = () => {
    const out = inFolder('endless');
    writeTinyCheckpoint(out, { shards: 2, config: { eos_token_id: [] } });
    const index = path.join(out, 'model.safetensors.index.json');
    const fields = JSON.parse(fs.readFileSync(index, 'utf8'));
    fs.writeFileSync(index, JSON.stringify({ ...fields, metadata: { total_size: 1 } }));
    return out;
  };

  it('before the first step nothing is written', async () => {
    const running = start(tiny('early', '--model', endless(), '--sample-tokens', '60000'));
    // The warning comes before the first sample, which takes minutes.
    await running.until('total_size');
    running.child.kill('SIGINT');
    const { code, stderr } = await running.finished;
    expect(code, stderr).toBe(130);
    expect(stderr).toContain('nothing was written');
    expect(fs.readdirSync(folder).filter((name) => name.includes('early'))).toEqual([]);
  });

  it('after the adapter was written it says that the adapter is complete', async () => {
    const args = long('late', '--sample-tokens', '400').filter((arg) => arg !== '--no-compare');
    const more = ['--model', endless(), '--prompt', 'a', '--steps', '1'];
    const running = start([...args, ...more]);
    await running.until('adapter written');
    running.child.kill('SIGINT');
    const { code, stderr } = await running.finished;
    expect(code, stderr).toBe(130);
    expect(stderr).toContain('is complete');
    expect(readPeftAdapter(inFolder('late')).modules).toHaveLength(14);
  });

  it('a new run keeps the old state aside', async () => {
    fs.writeFileSync(inFolder('anew.checkpoint'), 'state of an earlier run');
    const { code, stderr } = await run(tiny('anew'));
    expect(code).toBe(0);
    expect(stderr).toContain('unfinished run');
    expect(fs.readFileSync(inFolder('anew.checkpoint.old'), 'utf8')).toBe(
      'state of an earlier run',
    );
  });
});

describe('a full disk', () => {
  // The file size limit stands in for the disk: the same error path, and no root needed.
  const limited = (blocks: number) => `trap '' XFSZ; ulimit -f ${blocks}; exec "$@"`;

  it.each([
    ['adapter', ['--rank', '64'], 4],
    ['checkpoint', ['--rank', '64', '--save-every', '1'], 4],
  ])('says so and leaves what was there: %s', async (name, more, blocks) => {
    const out = `full-${name}`;
    const first = await run(tiny(out));
    expect(first.code, first.stderr).toBe(0);
    const before = weights(out);
    const { code, stderr } = await run(tiny(out, ...more), { wrap: limited(blocks) });
    expect(code, stderr).toBe(6);
    expect(stderr).toMatch(/lowrank: .*full disk or a file size limit/);
    expect(weights(out).equals(before)).toBe(true);
    const left = fs.readdirSync(folder).filter((entry) => entry.includes(out));
    expect(left).toEqual([out]);
  });
});

describe('wrong input', () => {
  const broken = (
    name: string,
    change: (dir: string) => void,
    options: TinyCheckpointOptions = {},
  ) => {
    const dir = inFolder(name);
    writeTinyCheckpoint(dir, options);
    change(dir);
    return ['--model', dir];
  };
  const file = (name: string, content: string | Uint8Array) => {
    fs.writeFileSync(inFolder(name), content);
    return inFolder(name);
  };
  const cases: [string, () => string[], number, RegExp][] = [
    ['a missing folder', () => ['--model', inFolder('nowhere')], 3, /nowhere" must/],
    [
      'another architecture',
      () =>
        broken('gpt', () => {}, {
          config: { architectures: ['GPT2LMHeadModel'], model_type: 'gpt2' },
        }),
      4,
      /supported architecture: LlamaForCausalLM.*GPT2LMHeadModel/,
    ],
    [
      'no tokenizer',
      () => broken('no-tokenizer', (dir) => fs.rmSync(path.join(dir, 'tokenizer.json'))),
      3,
      /tokenizer\.json/,
    ],
    [
      'a broken tokenizer',
      () =>
        broken('bad-tokenizer', (dir) =>
          fs.writeFileSync(path.join(dir, 'tokenizer.json'), '{"model":{"type":"No"}}'),
        ),
      3,
      /tokenizer/,
    ],
    [
      'another model’s tokenizer',
      () =>
        broken('small', () => {}, {
          vocabSize: 90,
          config: { eos_token_id: 1, bos_token_id: 1 },
        }),
      3,
      /do not belong together/,
    ],
    [
      'a truncated checkpoint',
      () => broken('cut', (dir) => fs.truncateSync(path.join(dir, 'model.safetensors'), 5000)),
      3,
      /model\.safetensors/,
    ],
    [
      'a pickle',
      () =>
        broken('pickle', (dir) =>
          fs.renameSync(path.join(dir, 'model.safetensors'), path.join(dir, 'pytorch_model.bin')),
        ),
      3,
      /pickle/i,
    ],
    ['a missing text', () => ['--data', inFolder('no.txt')], 3, /no\.txt" must exist/],
    [
      'an empty text',
      () => ['--data', file('empty.txt', ' \n\n ')],
      2,
      /must hold text to train on, got an empty one/,
    ],
    [
      'too short a text',
      () => ['--data', file('short.txt', 'Hello.')],
      2,
      /at least 33 tokens.*got 7/,
    ],
    [
      'bytes for a text',
      () => ['--data', file('bytes.txt', new Uint8Array([0x66, 0xff, 0xfe, 0x00]))],
      3,
      /must be UTF-8 text/,
    ],
    [
      'sequences longer than the model',
      () => ['--seq-len', '65'],
      2,
      /at most the model's 64 positions, got 65/,
    ],
    ['a file for --out', () => ['--out', text], 3, /--out .* must be a folder, got a file/],
    ['somebody’s folder for --out', () => ['--out', model], 3, /must be a new or empty folder/],
    [
      'a report in no folder',
      () => ['--report', inFolder('no/r.html')],
      2,
      /--report must be a file in/,
    ],
    ['nothing to resume', () => ['--resume'], 5, /got nothing there/],
    [
      'an unknown device',
      () => ['--device', 'gpu9'],
      2,
      /--device must be one of cpu, reference, cuda, .*got "gpu9"/,
    ],
    ['a device that is not here', () => ['--device', 'cuda:63'], 4, /--device must .*"cuda:63"/],
    ['a wrong blocksize', () => ['--blocksize', '48'], 2, /--blocksize must be a power of two/],
    [
      'a wrong number',
      () => ['--rank', '8.5'],
      2,
      /--rank must be an integer from 1 to 4096, got "8\.5"/,
    ],
    ['a number out of range', () => ['--dropout', '1'], 2, /--dropout must be in \[0, 1\)/],
    ...[
      ['alora', 'active'],
      ['sibo', 'initial'],
      ['x-lora', 'gates'],
      ['poly', 'tasks'],
      ['reslora-input', 'previous'],
      ['reslora-middle', 'middle'],
    ].map(([name = '', input]): (typeof cases)[number] => [
      `a method that needs an input beside x, ${name}`,
      () => ['--adapter', `lora,${name}`],
      2,
      new RegExp(`--adapter must be .*no input beside x .*${name} needs ${input}.*, got "${name}"`),
    ]),
    [
      'settings that do not fit the second of two methods',
      () => ['--adapter', 'lora,c3a', '--set', 'blockSize=5'],
      2,
      /c3a\.create: blockSize must be a divisor of K \(24\) and of N \(24\), got 5/,
    ],
    ['an unknown target', () => ['--targets', 'q_proj,nope'], 2, /all-linear or a list of q_proj/],
    [
      'a mistyped option',
      () => ['--stesp', '3'],
      2,
      /"--stesp" is not an option \(did you mean --steps\?\)/,
    ],
    ['an option without a value', () => ['--lr'], 2, /--lr needs a value/],
    [
      'an unknown format',
      () => ['--format', 'nf5'],
      2,
      new RegExp(`--format must be one of ${formatNames.join(', ')}, none`),
    ],
    ['a stray argument', () => ['extra'], 2, /takes no further arguments/],
    [
      'a hostile name',
      () => ['--model', inFolder('\u001b[2J\u202egnp')],
      3,
      /\\u001b\[2J\\u202egnp/,
    ],
  ];

  it.each(cases)('%s', async (name, args, code, message) => {
    const out = `wrong ${name.replace(/\W/g, '-')}`;
    const result = await run(tiny(out, ...args()));
    expect(result.stderr).toMatch(message);
    expect(result.code).toBe(code);
    expect(result.stderr, 'no stack').not.toMatch(/ at .*\.js:\d+/);
    expect(['\u001b', '\u202e'].filter((steering) => result.stderr.includes(steering))).toEqual([]);
    expect(result.stdout).toBe('');
    expect(fs.readdirSync(folder).filter((entry) => entry.includes(out))).toEqual([]);
  });
});
