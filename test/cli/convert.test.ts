/** `lowrank convert`: adapters of PEFT to GGUF and back, its messages, and that nothing appears where it fails. */

import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { openGguf, readPeftAdapter, readSafetensors, writePeftAdapter } from '../../lib/index.js';
import { made, raw } from '../checkpoint/gguf/made-adapter.js';
import { tempFolder } from '../checkpoint/raw-file.js';
import { requireBuilt, run } from '../finetune/command.js';

beforeAll(requireBuilt);

const golden = path.join(import.meta.dirname, '..', 'golden', 'formats', 'gguf_file');
const recorded = path.join(golden, 'adapter_f32', 'adapter.gguf');
const model = path.join(golden, 'llama_q8_0');
const config = path.join(model, 'config.json');

/** A copy of the base's config with other fields. */
function configWith(fields: object): string {
  const file = path.join(tempFolder(), 'config.json');
  const own = JSON.parse(fs.readFileSync(config, 'utf8')) as object;
  fs.writeFileSync(file, JSON.stringify({ ...own, ...fields }));
  return file;
}

/** An adapter folder, and a path beside it. */
function places(parts = made()): { adapter: string; out: string } {
  const folder = tempFolder();
  const adapter = path.join(folder, 'adapter');
  writePeftAdapter(adapter, parts);
  return { adapter, out: path.join(folder, 'out.gguf') };
}

const leftovers = (file: string) =>
  fs.readdirSync(path.dirname(file)).filter((name) => name !== 'adapter');

describe('convert', () => {
  it('a recorded adapter to PEFT and back has the same bytes', async () => {
    const folder = tempFolder();
    const [peft, gguf] = [path.join(folder, 'peft'), path.join(folder, 'again.gguf')];
    const there = await run(['convert', recorded, peft, '--base', config, '--json']);
    expect([there.code, there.stderr]).toEqual([0, '']);
    expect(JSON.parse(there.stdout)).toEqual({
      in: recorded,
      out: peft,
      from: 'GGUF adapter',
      to: 'PEFT adapter',
      architecture: 'llama',
      modules: 14,
      ranks: [4],
      alpha: 8,
      warnings: [],
    });
    const { tensors } = readSafetensors(path.join(peft, 'adapter_model.safetensors'));
    const wanted = readSafetensors(path.join(golden, 'adapter_f32', 'adapter_model.safetensors'));
    expect(tensors).toEqual(wanted.tensors);
    const back = await run(['convert', peft, gguf, '--base', model, '--name', 'Tiny Lora']);
    expect([back.code, back.stderr]).toEqual([0, '']);
    expect(back.stdout).toBe(
      [
        'from          PEFT adapter',
        'to            GGUF adapter',
        'architecture  llama',
        'modules       14',
        'rank          4',
        'alpha         8',
        'size          0.03 MiB',
        `written to    "${gguf}"`,
        '',
      ].join('\n'),
    );
    expect(Buffer.compare(fs.readFileSync(gguf), fs.readFileSync(recorded))).toBe(0);
  });

  it('takes the base from a GGUF model, and any type', async () => {
    const { adapter, out } = places();
    const base = path.join(model, 'model.gguf');
    const json = await run(['convert', adapter, out, '--base', base, '--type', 'f16', '--json']);
    expect([json.code, json.stderr]).toEqual([0, '']);
    expect(JSON.parse(json.stdout)).toMatchObject({
      architecture: 'llama',
      modules: 3,
      ranks: [4],
    });
    expect(JSON.parse(json.stdout).bytes).toBe(fs.statSync(out).size);
    const file = openGguf(out);
    expect(file.names().map((name) => file.info(name)?.type)).toEqual(new Array(6).fill('F16'));
    expect(file.metadata.has('general.name')).toBe(false);
    // The same heads by another way.
    const other = out.replace('out', 'other');
    await run(['convert', adapter, other, '--base', config, '--type', 'f16']);
    expect(Buffer.compare(fs.readFileSync(out), fs.readFileSync(other))).toBe(0);
    // Back with the model of the file, into an empty folder.
    const again = path.join(tempFolder(), 'again');
    fs.mkdirSync(again);
    expect((await run(['convert', out, again, '--base', base])).code).toBe(0);
    expect(readPeftAdapter(again, { embeddings: true }).modules).toHaveLength(3);
  });

  it('knows Mistral as llama, and an architecture without heads of its own order', async () => {
    const { adapter, out } = places();
    const mistral = configWith({ architectures: ['MistralForCausalLM'], model_type: 'mistral' });
    expect((await run(['convert', adapter, out, '--base', mistral])).code).toBe(0);
    expect(openGguf(out).metadata.get('general.architecture')?.value).toBe('llama');
    const qwen = configWith({ architectures: ['Qwen2ForCausalLM'], model_type: 'qwen2' });
    const second = out.replace('out', 'qwen');
    expect((await run(['convert', adapter, second, '--base', qwen])).stderr).toBe('');
    expect(openGguf(second).metadata.get('general.architecture')?.value).toBe('qwen2');
    const back = `${out}.peft`;
    const { code, stderr } = await run(['convert', second, back]);
    expect([code, stderr]).toEqual([0, '']);
    const [first] = readPeftAdapter(back, { embeddings: true }).modules;
    expect(first?.loraA).toEqual(readPeftAdapter(adapter, { embeddings: true }).modules[0]?.loraA);
  });

  it('does not mind how the base stores its weights', async () => {
    const { adapter, out } = places();
    const base = configWith({ quantization_config: { quant_method: 'gptq', bits: 4 } });
    expect((await run(['convert', adapter, out, '--base', base])).code).toBe(0);
  });

  it('tells on stderr what it ignores', async () => {
    const { adapter, out } = places();
    const file = path.join(adapter, 'adapter_config.json');
    const own = JSON.parse(fs.readFileSync(file, 'utf8')) as object;
    fs.writeFileSync(file, JSON.stringify({ ...own, auto_mapping: { a: 'b' } }));
    const { code, stderr } = await run(['convert', adapter, out, '--base', config]);
    expect(code).toBe(0);
    expect(stderr).toBe('lowrank: convert: auto_mapping names code to import and was ignored\n');
  });
});

describe('convert refuses', () => {
  const refused = async (args: string[], code: number, text: string): Promise<void> => {
    const done = await run(['convert', ...args]);
    expect(done.stderr).toContain(text);
    expect(done.stderr).not.toContain('this is a bug');
    expect(done.stderr.trimEnd().split('\n')).toHaveLength(1);
    expect([done.code, done.stdout]).toEqual([code, '']);
  };

  it('wrong options', async () => {
    const { adapter, out } = places();
    await refused([adapter], 2, 'convert: takes IN and OUT');
    await refused([adapter, out], 2, 'convert: --base must be given, because a GGUF adapter names');
    const noEnding = out.replace('.gguf', '');
    const ending = `OUT must be a file with the ending .gguf, got "${noEnding}"`;
    await refused([adapter, noEnding, '--base', config], 2, ending);
    await refused([recorded, out], 2, 'because rows of q and k have another order in GGUF');
    await refused([adapter, out, '--base', config, '--type', 'q4_0'], 2, '--type must be one of');
    await refused(
      [recorded, out, '--base', config, '--type', 'f16'],
      2,
      '--type must be left out for a GGUF adapter, which becomes a PEFT adapter, got "f16"',
    );
    expect(leftovers(out)).toEqual([]);
  });

  it('what IN is not', async () => {
    const { out } = places();
    const nothing = path.join(path.dirname(out), 'nothing');
    await refused([nothing, out, '--base', config], 3, 'nothing');
    await refused(
      [path.dirname(out), out, '--base', config],
      4,
      'got a folder without config.json and adapter_config.json',
    );
    await refused([model, out], 3, 'must hold model.safetensors');
    await refused([config, out, '--base', config], 4, 'got another file');
    await refused([path.join(model, 'model.gguf'), out], 2, '--requantize must be given');
    expect(leftovers(out)).toEqual([]);
  });

  it('an OUT that is there', async () => {
    const { adapter, out } = places();
    fs.writeFileSync(out, 'mine');
    await refused(
      [adapter, out, '--base', config],
      3,
      'must be a new file, got a file that exists',
    );
    await refused(
      [recorded, out, '--base', config],
      3,
      'must be a new or empty folder, got a file',
    );
    await refused([recorded, adapter, '--base', config], 3, 'got a folder with files in it');
    fs.rmSync(`${adapter}.gguf`, { force: true });
    fs.symlinkSync(adapter, `${adapter}.gguf`);
    await refused(
      [adapter, `${adapter}.gguf`, '--base', config],
      3,
      'must be a new file, got IN itself',
    );
    expect(fs.readFileSync(out, 'utf8')).toBe('mine');
  });

  it('a base that does not fit', async () => {
    const { adapter, out } = places();
    const base = (file: string) => [adapter, out, '--base', file];
    await refused(base(path.join(path.dirname(out), 'none')), 3, 'none');
    await refused(base(recorded), 3, 'must be a model, got an adapter');
    await refused(
      base(configWith({ num_attention_heads: 64, num_key_value_heads: 64, head_dim: 2 })),
      3,
      'base.heads must be',
    );
    await refused(base(configWith({ architectures: ['GPT2LMHeadModel'] })), 4, 'GPT2LMHeadModel');
    const qwen = configWith({ architectures: ['Qwen2ForCausalLM'], model_type: 'qwen2' });
    await refused(
      [recorded, out, '--base', qwen],
      3,
      'must be a model of the adapter\'s architecture, "llama", got qwen2',
    );
    expect(leftovers(out)).toEqual([]);
  });

  it('an adapter that GGUF cannot hold, and says what to do', async () => {
    const merge = 'Merge the adapter into its model, and convert the model';
    const q = {
      module: 'model.layers.0.self_attn.q_proj',
      loraA: raw([4, 64], 1),
      loraB: raw([32, 4], 2),
    };
    const dora = places({
      config: { r: 4, loraAlpha: 8, targetModules: ['q_proj'], useDora: true },
      modules: [{ ...q, magnitude: raw([32], 3) }],
    });
    await refused([dora.adapter, dora.out, '--base', config], 4, `got DoRA. ${merge}`);
    const file = path.join(dora.adapter, 'adapter_config.json');
    fs.writeFileSync(file, JSON.stringify({ peft_type: 'LOHA', r: 4 }));
    await refused(
      [dora.adapter, dora.out, '--base', config],
      4,
      `"LORA", the supported type, got "LOHA". ${merge}`,
    );
    expect(leftovers(dora.out)).toEqual([]);
  });

  it('a disk without space, and leaves nothing', async () => {
    const { adapter, out } = places();
    const wrap = 'ulimit -f 1; trap "" XFSZ; exec "$@"';
    const done = await run(['convert', adapter, out, '--base', config], { wrap });
    expect(done.stderr).toContain('lowrank: writeGguf');
    expect(done.code).toBe(6);
    expect(leftovers(out)).toEqual([]);
  });
});
