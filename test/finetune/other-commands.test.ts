/** `lowrank` itself, and the subcommands beside the fine-tune. */

import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { splitBitsandbytes } from '../../lib/checkpoint/bitsandbytes/bitsandbytes.js';
import type { RawTensor } from '../../lib/checkpoint/raw-tensor.js';
import { readSafetensors, writeSafetensors } from '../../lib/checkpoint/safetensors.js';
import { dequantize, QuantizedWeight } from '../../lib/index.js';
import { requireBuilt, run } from './command.js';
import { temporaryFolder } from './setup.js';
import { writeTinyCheckpoint } from './tiny-checkpoint.js';

const folder = temporaryFolder();
const inFolder = (name: string) => path.join(folder, name);

beforeAll(() => {
  requireBuilt();
  writeTinyCheckpoint(inFolder('single'), { dtype: 'BF16' });
  writeTinyCheckpoint(inFolder('sharded'), { shards: 3 });
});

describe('the command', () => {
  it('helps, versions itself, and suggests', async () => {
    const help = await run(['--help']);
    expect(help.code).toBe(0);
    for (const word of [
      'finetune',
      'generate',
      'chat',
      'merge',
      'quantize',
      'convert',
      'info',
      'bench',
      'emulate',
      'build',
      'Exit codes',
      '130',
    ]) {
      expect(help.stdout).toContain(word);
    }
    expect((await run([])).code).toBe(2);
    expect((await run(['--version'])).stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
    const wrong = await run(['finetun']);
    expect(wrong.code).toBe(2);
    expect(wrong.stderr).toContain('did you mean finetune?');
    expect(await run(['help', 'finetun'])).toEqual(wrong);
    for (const [typed, meant] of [
      ['--hlep', '--help'],
      ['--verison', '--version'],
    ] as const) {
      const { code, stderr } = await run([typed]);
      expect(code).toBe(2);
      expect(stderr).toContain(`"${typed}" is not an option (did you mean ${meant}?)`);
    }
    for (const name of [
      'finetune',
      'generate',
      'chat',
      'merge',
      'quantize',
      'convert',
      'info',
      'bench',
      'emulate',
      'build',
    ]) {
      const own = await run([name, '--help']);
      expect(own.code).toBe(0);
      expect(own.stdout).toContain(`lowrank ${name}`);
      expect(await run(['help', name])).toEqual(own);
    }
  });

  it('does not mind a reader that goes away', async () => {
    const { code, stderr } = await run(['info'], {
      wrap: 'set -o pipefail; "$@" | head -c 1 >/dev/null',
    });
    expect(code, stderr).toBe(0);
    // Nor one of its messages: the exit code is what it was to say.
    const unread = await run(['nope'], { wrap: 'set -o pipefail; "$@" 2>&1 | true' });
    expect(unread.code).toBe(2);
  });
});

describe('info', () => {
  it('lists the devices, in words and in JSON', async () => {
    const plain = await run(['info']);
    expect(plain.code).toBe(0);
    expect(plain.stdout).toMatch(/^cpu: available$/m);
    const facts = JSON.parse((await run(['info', '--json'])).stdout);
    expect(facts.threads).toBeGreaterThan(0);
    const names = facts.devices.map(({ device }: { device: string }) => device);
    expect(names).toContain('cpu');
    expect(names).toContain('reference');
  });

  const noDevice = {
    variable: 'LOWRANK_DEVICE',
    kernels: /^kernels +\d+ threads, default device none$/m,
    fields: ['defaultDevice', 'deviceProblem'],
  };
  const noThreads = {
    variable: 'LOWRANK_NUM_THREADS',
    kernels: /^kernels +\? threads, default device \S+$/m,
    fields: ['threads', 'threadsProblem'],
  };
  const noNumber = (value: string) =>
    `LOWRANK_NUM_THREADS: the number of threads must be a positive integer, got "${value}". Set`;
  it.each([
    {
      ...noDevice,
      value: 'foo',
      problem: /LOWRANK_DEVICE: device must be one of cpu.*got "foo"\. Set LOWRANK_DEVICE to/,
    },
    {
      ...noDevice,
      value: 'cuda:63',
      problem: /LOWRANK_DEVICE: device must be .*got "cuda:63".*or unset it/,
    },
    ...['abc', '-1', '0', '1.5', '4x', '1e2'].map((value) => ({
      ...noThreads,
      value,
      problem: noNumber(value),
    })),
  ])('prints everything where $variable is $value, with the problem', async (row) => {
    const wrap = `${row.variable}=${row.value} exec "$@"`;
    const plain = await run(['info'], { wrap });
    expect(plain.code, plain.stderr).toBe(0);
    expect(plain.stdout).toMatch(row.kernels);
    expect(plain.stdout.match(/^problem +(.*)$/m)?.[1]).toMatch(row.problem);
    expect(plain.stdout).toMatch(/^cpu: available$/m);
    const { code, stdout } = await run(['info', '--json'], { wrap });
    expect(code).toBe(0);
    const facts = JSON.parse(stdout);
    const [setting, told] = row.fields as [string, string];
    expect(facts[setting]).toBeNull();
    expect(facts[told]).toMatch(row.problem);
    expect(facts.devices.map(({ device }: { device: string }) => device)).toContain('cpu');
  });

  it('says why the addon is missing', async () => {
    const { code, stdout, stderr } = await run(['info'], {
      wrap: `LOWRANK_BINDING=${inFolder('no.node')} exec "$@"`,
    });
    expect(code).toBe(8);
    expect(stdout).toContain('Node.js');
    expect(stderr).toContain('no.node');
    expect(stderr).toContain('LOWRANK_BINDING');
  });
});

describe('quantize', () => {
  const load = (file: string) => splitBitsandbytes(readSafetensors(file).tensors);

  it.each([
    ['nf4', ['--double-quant']],
    ['fp4', ['--blocksize', '128']],
  ])('a folder to %s: what comes out dequantises to what went in', async (format, more) => {
    const out = inFolder(`out-${format}`);
    const { code, stderr, stdout } = await run([
      'quantize',
      inFolder('single'),
      out,
      '--format',
      format,
      ...more,
    ]);
    expect(code, stderr).toBe(0);
    expect(stdout).toContain('14');
    const source = readSafetensors(path.join(inFolder('single'), 'model.safetensors')).tensors;
    const { layers, rest } = load(path.join(out, 'model.safetensors'));
    expect(layers.size).toBe(14);
    expect([...rest.keys()].sort()).toEqual(
      [...source.keys()].filter((name) => /norm|embed|lm_head/.test(name)).sort(),
    );
    for (const [name, state] of layers) {
      const weight = QuantizedWeight.fromBitsandbytes(state);
      const original = source.get(`${name}.weight`);
      const values = new Float32Array(
        Uint32Array.from(original?.data as Uint16Array, (bits) => bits << 16).buffer,
      );
      const restored = dequantize(weight, { dtype: 'f32' }).readSync();
      const largest = Math.max(...values.map(Math.abs));
      const worst = Math.max(
        ...values.map((value, i) => Math.abs(value - (restored[i] as number))),
      );
      // Half the widest step of the codebooks, times the largest scale.
      expect(worst / largest, name).toBeLessThan(0.2);
      expect(worst).toBeGreaterThan(0);
      weight.dispose();
    }
    const config = JSON.parse(fs.readFileSync(path.join(out, 'config.json'), 'utf8'));
    expect(config.quantization_config.bnb_4bit_quant_type).toBe(format);
    expect(fs.existsSync(path.join(out, 'tokenizer.json'))).toBe(true);
    expect(fs.existsSync(`${out}.partial`)).toBe(false);
  });

  it('shards stay shards, and the index names the new tensors', async () => {
    const out = inFolder('out-sharded');
    const { code, stderr } = await run(['quantize', inFolder('sharded'), out, '--json']);
    expect(code, stderr).toBe(0);
    const index = JSON.parse(
      fs.readFileSync(path.join(out, 'model.safetensors.index.json'), 'utf8'),
    );
    const names = new Set(Object.values<string>(index.weight_map));
    expect(names.size).toBe(3);
    for (const name of names) {
      for (const key of readSafetensors(path.join(out, name)).tensors.keys()) {
        expect(index.weight_map[key]).toBe(name);
      }
    }
  });

  it('goes on with a folder that was interrupted, if nothing changed', async () => {
    const out = inFolder('out-again');
    const full = await run(['quantize', inFolder('sharded'), out]);
    expect(full.code).toBe(0);
    const shard = 'model-00001-of-00003.safetensors';
    const limited = await run(['quantize', inFolder('sharded'), inFolder('out-cut')], {
      wrap: `trap '' XFSZ; ulimit -f 2; exec "$@"`,
    });
    expect(limited.code, limited.stderr).toBe(6);
    expect(fs.existsSync(inFolder('out-cut'))).toBe(false);
    fs.copyFileSync(path.join(out, shard), path.join(inFolder('out-cut.partial'), shard));
    const before = fs.statSync(path.join(inFolder('out-cut.partial'), shard)).mtimeMs;
    const resumed = await run(['quantize', inFolder('sharded'), inFolder('out-cut')]);
    expect(resumed.code, resumed.stderr).toBe(0);
    expect(fs.statSync(path.join(inFolder('out-cut'), shard)).mtimeMs).toBe(before);
    for (const name of fs.readdirSync(out)) {
      const [a, b] = [path.join(out, name), path.join(inFolder('out-cut'), name)];
      expect(fs.readFileSync(b).equals(fs.readFileSync(a)), name).toBe(true);
    }
  });

  it('a single file to int8', async () => {
    const source = path.join(inFolder('single'), 'model.safetensors');
    const out = inFolder('int8.safetensors');
    const { code, stderr } = await run(['quantize', source, out, '--format', 'int8']);
    expect(code, stderr).toBe(0);
    expect(load(out).layers.size).toBe(14);
  });

  it('a folder to int8-rowwise: the layers of LLM.int8, and the section that says so', async () => {
    const [source, out] = [inFolder('wide'), inFolder('out-rowwise')];
    fs.mkdirSync(source);
    const values = Float32Array.from({ length: 5 * 96 }, (_, i) => Math.sin(i * i));
    const file = path.join(source, 'model.safetensors');
    const tensor = (shape: number[]): RawTensor => ({ dtype: 'F32', shape, data: values });
    const tensors = { 'a.q_proj.weight': tensor([5, 96]), 'lm_head.weight': tensor([6, 80]) };
    writeSafetensors(file, new Map(Object.entries(tensors)));
    fs.writeFileSync(path.join(source, 'config.json'), '{"model_type":"llama"}');
    const { code, stderr } = await run(['quantize', source, out, '--format', 'int8-rowwise']);
    expect(code, stderr).toBe(0);
    const { layers, rest } = load(path.join(out, 'model.safetensors'));
    expect([[...layers.keys()], [...rest.keys()]]).toEqual([['a.q_proj'], ['lm_head.weight']]);
    const state = layers.get('a.q_proj') ?? {};
    expect(Object.keys(state).sort()).toEqual(['SCB', 'weight', 'weight_format']);
    const stored = QuantizedWeight.fromBitsandbytes(state);
    dequantize(stored, { dtype: 'f32' })
      .readSync()
      .forEach((value, i) => {
        // Half a step of 127, of rows whose largest is about 1, and f16.
        expect(Math.abs(value - (values[i] as number))).toBeLessThan(0.5 / 127 + 2 ** -11);
      });
    stored.dispose();
    const config = JSON.parse(fs.readFileSync(path.join(out, 'config.json'), 'utf8'));
    expect(config).toMatchObject({
      model_type: 'llama',
      quantization_config: {
        quant_method: 'bitsandbytes',
        load_in_8bit: true,
        load_in_4bit: false,
      },
    });
    const all = await run([
      'quantize',
      source,
      inFolder('y'),
      '--format',
      'int8-rowwise',
      '--skip',
      'q_proj',
    ]);
    expect(all.code).not.toBe(0);
    expect(all.stderr).toMatch(/lm_head.*multiple of 32.*K = 80/);
  });

  it('says so and why where no layer is quantised, and leaves the config as it was', async () => {
    const first = inFolder('once');
    expect((await run(['quantize', inFolder('single'), first])).code).toBe(0);
    const twice = inFolder('twice');
    const again = await run(['quantize', first, twice, '--format', 'fp4', '--json']);
    expect(again.stderr).toContain(
      'quantize: no layer was quantised: 14 are quantised already, 2 are left out by --skip "lm_head,embed,norm". ',
    );
    expect([again.code, JSON.parse(again.stdout).layers]).toEqual([0, 0]);
    const config = (name: string) =>
      JSON.parse(fs.readFileSync(path.join(name, 'config.json'), 'utf8'));
    expect(config(twice)).toEqual(config(first));
    const none = await run(['quantize', inFolder('single'), inFolder('none'), '--skip', 'weight']);
    expect(none.stderr).toContain('16 are left out by --skip "weight"');
    expect(config(inFolder('none'))).toEqual(config(inFolder('single')));
    fs.rmSync(inFolder('none'), { recursive: true });
  });

  it('overwrites no file, IN least of all', async () => {
    const source = path.join(inFolder('single'), 'model.safetensors');
    const before = fs.readFileSync(source);
    const other = inFolder('other.safetensors');
    fs.writeFileSync(other, 'of somebody');
    fs.symlinkSync(source, inFolder('link.safetensors'));
    for (const [out, got] of [
      [source, /must be a new file .*got IN itself\. Choose another name/],
      [inFolder('link.safetensors'), /got IN itself/],
      [other, /other\.safetensors" must be a new file .*got a file that exists\. Choose another/],
      [folder, /must be a new file .*got a folder/],
    ] as const) {
      const { code, stderr } = await run(['quantize', source, out]);
      expect(stderr).toMatch(got);
      expect(code).toBe(3);
    }
    expect(fs.readFileSync(source).equals(before)).toBe(true);
    expect(fs.readFileSync(other, 'utf8')).toBe('of somebody');
  });

  it.each<[string, () => string[], number, RegExp]>([
    ['a missing source', () => [inFolder('none'), inFolder('x')], 3, /none" must exist/],
    ['a folder without weights', () => [folder, inFolder('x')], 3, /must hold model\.safetensors/],
    ['a used target', () => [inFolder('single'), inFolder('sharded')], 3, /new or empty folder/],
    ['a shard outside', () => [escaping(), inFolder('x')], 3, /plain \.safetensors files/],
    ['one argument', () => [inFolder('single')], 2, /takes IN and OUT/],
    [
      'a wrong blocksize',
      () => [inFolder('single'), inFolder('x'), '--blocksize', '48'],
      2,
      /--blocksize must be a power of two from 32 to 4096, got "48"/,
    ],
    [
      'a blocksize where rows have the scales',
      () => [inFolder('single'), inFolder('x'), '--format', 'int8-rowwise', '--blocksize', '64'],
      2,
      /--blocksize must be left out with --format int8-rowwise, which has a scale a row, got "64"/,
    ],
    [
      'an unknown device',
      () => [inFolder('single'), inFolder('x'), '--device', 'foo'],
      2,
      /--device must be one of cpu, reference, cuda, .*got "foo"/,
    ],
    [
      'a device that is not here',
      () => [inFolder('single'), inFolder('x'), '--device', 'cuda:63'],
      4,
      /--device must be one that is here, cpu or .*got "cuda:63" \(there is no such GPU\)/,
    ],
  ])('refuses %s', async (_, args, code, message) => {
    const result = await run(['quantize', ...args()]);
    expect(result.stderr).toMatch(message);
    expect(result.code).toBe(code);
    expect(fs.existsSync(inFolder('x'))).toBe(false);
  });

  function escaping(): string {
    const dir = inFolder('escaping');
    fs.mkdirSync(dir, { recursive: true });
    const index = { weight_map: { a: '../single/model.safetensors' } };
    fs.writeFileSync(path.join(dir, 'model.safetensors.index.json'), JSON.stringify(index));
    return dir;
  }
});
