// LoRA adapters in GGUF: the files that llama.cpp's converter wrote, byte for byte, and back to PEFT.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  adapterToGguf,
  encodeGguf,
  type GgufFile,
  type GgufTensor,
  ggufToAdapter,
  openGguf,
  type PeftAdapterParts,
  type RawTensor,
  rawToFloat32,
  readPeftAdapter,
  readSafetensors,
  writePeftAdapter,
  writeSafetensors,
} from '../../../lib/index.js';
import { decodeGguf } from '../../oracle/formats/gguf.js';
import { tempFolder } from '../raw-file.js';
import {
  converted,
  errorOf,
  fileOf,
  kEmbed,
  kLlama,
  kQ,
  kUp,
  made,
  raw,
  throughPeft,
} from './made-adapter.js';

const kFolder = join(import.meta.dirname, '..', '..', 'golden', 'formats', 'gguf_file');
const kRecorded = [
  ['adapter_f32', 'F32', 4, 8],
  ['adapter_f16', 'F16', 2, 16],
] as const;

function recordedParts(name: string, r: number, loraAlpha: number): PeftAdapterParts {
  const { tensors } = readSafetensors(join(kFolder, name, 'adapter_model.safetensors'));
  const kSuffix = '.lora_A.weight';
  const keys = [...tensors.keys()].filter((key) => key.endsWith(kSuffix));
  const modules = keys.map((key) => {
    const stem = key.slice(0, -kSuffix.length);
    return {
      module: stem.replace('base_model.model.', ''),
      loraA: tensors.get(key) as RawTensor,
      loraB: tensors.get(`${stem}.lora_B.weight`) as RawTensor,
    };
  });
  const targetModules = [...new Set(modules.map(({ module }) => module.split('.').at(-1) ?? ''))];
  return { config: { r, loraAlpha, targetModules }, modules };
}

describe.each(kRecorded)('%s', (name, type, r, alpha) => {
  const recorded = Uint8Array.from(readFileSync(join(kFolder, name, 'adapter.gguf')));
  const parts = recordedParts(name, r, alpha);

  it('has the bytes of llama.cpp’s converter', () => {
    const content = adapterToGguf(throughPeft(parts), kLlama, { type, name: 'Tiny Lora' });
    expect(Buffer.compare(encodeGguf(content), recorded)).toBe(0);
  });

  it('comes back to PEFT', () => {
    const back = ggufToAdapter(openGguf(recorded), kLlama);
    expect(back.config).toMatchObject({ r, loraAlpha: alpha, rankPattern: new Map() });
    const adapter = throughPeft(back);
    expect(adapter.warnings).toEqual([]);
    const wanted = throughPeft(parts);
    expect(adapter.modules.map(({ module }) => module)).toEqual(
      wanted.modules.map(({ module }) => module),
    );
    for (const [i, { loraA, loraB, scaling }] of adapter.modules.entries()) {
      const own = wanted.modules[i] as (typeof wanted.modules)[number];
      expect(scaling).toBe(own.scaling);
      for (const [mine, original] of [
        [loraA, own.loraA],
        [loraB, own.loraB],
      ] as const) {
        expect(mine.dtype).toBe(type);
        if (type === 'F32') expect(mine).toEqual(original);
        else {
          const values = rawToFloat32(original);
          const off = rawToFloat32(mine).map((v, j) => Math.abs(v / (values[j] as number) - 1));
          expect(Math.max(...off)).toBeLessThanOrEqual(2 ** -11);
        }
      }
    }
    const again = adapterToGguf(adapter, kLlama, { name: 'Tiny Lora' });
    expect(Buffer.compare(encodeGguf(again), recorded)).toBe(0);
  });
});

describe('what an adapter computes', () => {
  /** llama.cpp's factor: alpha / rank, and 1 without an alpha. */
  const factorOf = (file: GgufFile, name: string): number => {
    const alpha = file.metadata.get('adapter.lora.alpha')?.value as number | undefined;
    const r = file.info(`${name}.lora_b`)?.shape[1] as number;
    return alpha === undefined || alpha === 0 ? 1 : alpha / r;
  };

  it.each([
    ['plain', {}, [4, 4]],
    ['with rsLoRA', { useRslora: true }, [4, 4]],
    ['with two ranks', { rankPattern: new Map([['up_proj', 2]]) }, [4, 2]],
    [
      'with alphas that rsLoRA makes one',
      {
        useRslora: true,
        rankPattern: new Map([['up_proj', 16]]),
        alphaPattern: new Map([['up_proj', 4]]),
      },
      [4, 16],
    ],
  ] as const)('%s, has the scaling of PEFT', (_, config, ranks) => {
    const parts = made(config, [...ranks]);
    const adapter = throughPeft(parts);
    const file = converted(parts);
    const names: Readonly<Record<string, string>> = {
      [kQ]: 'blk.0.attn_q',
      [kUp]: 'blk.0.ffn_up',
      [kEmbed]: 'token_embd',
    };
    for (const { module, scaling } of adapter.modules) {
      expect(factorOf(file, `${names[module]}.weight`), module).toBeCloseTo(scaling, 6);
    }
    const back = throughPeft(ggufToAdapter(file, kLlama));
    expect(back.modules.map(({ loraA, loraB }) => [loraA, loraB])).toEqual(
      adapter.modules.map(({ loraA, loraB }) => [loraA, loraB]),
    );
    back.modules.forEach(({ scaling }, i) => {
      expect(scaling).toBeCloseTo(adapter.modules[i]?.scaling as number, 6);
    });
    expect(encodeGguf(adapterToGguf(back, kLlama))).toEqual(
      encodeGguf({ metadata: file.metadata, tensors: file.tensors() }),
    );
  });

  it('does not depend on an alpha that is absent or 0', () => {
    const { metadata, tensors } = adapterToGguf(throughPeft(made({}, [4, 4])), kLlama);
    const two = adapterToGguf(
      throughPeft(made({ rankPattern: new Map([['q_proj', 2]]) }, [2, 4])),
      kLlama,
    );
    for (const alpha of [undefined, 0]) {
      for (const content of [tensors, two.tensors]) {
        const own = new Map(metadata);
        if (alpha === undefined) own.delete('adapter.lora.alpha');
        else own.set('adapter.lora.alpha', { type: 'f32', value: alpha });
        const back = throughPeft(
          ggufToAdapter(fileOf({ metadata: own, tensors: content }), kLlama),
        );
        expect(back.modules.map(({ scaling }) => scaling)).toEqual([1, 1, 1]);
      }
    }
  });

  it('on an embedding, has the rows that llama.cpp looks up', () => {
    const file = converted(made());
    expect(file.info('token_embd.weight.lora_a')?.shape).toEqual([50, 4]);
    expect(file.info('token_embd.weight.lora_b')?.shape).toEqual([64, 4]);
    const a = rawToFloat32(raw([4, 50], 5));
    const rows = new Float32Array(file.read('token_embd.weight.lora_a').data.buffer);
    rows.forEach((value, i) => {
      expect(value).toBe(a[(i % 4) * 50 + Math.floor(i / 4)]);
    });
    const folder = join(tempFolder(), 'adapter');
    writePeftAdapter(folder, ggufToAdapter(file, kLlama));
    const { tensors } = readSafetensors(join(folder, 'adapter_model.safetensors'));
    expect([...tensors.keys()].filter((key) => key.includes('embed')).sort()).toEqual([
      `base_model.model.${kEmbed}.lora_embedding_A`,
      `base_model.model.${kEmbed}.lora_embedding_B`,
    ]);
    // Linear layers alone are read by default.
    expect(errorOf(() => readPeftAdapter(folder)).code).toBe('ERR_UNSUPPORTED');
    const read = (base?: number[]) =>
      readPeftAdapter(folder, {
        embeddings: true,
        ...(base && { baseShape: (module: string) => shapes[module] ?? base }),
      });
    const shapes: Readonly<Record<string, number[]>> = { [kQ]: [32, 64], [kUp]: [96, 64] };
    expect(read([50, 64]).modules.find(({ embedding }) => embedding)?.module).toBe(kEmbed);
    expect(errorOf(() => read([64, 50])).message).toContain(
      'a base weight of [50, 64], got [64, 50]',
    );
    expect(errorOf(() => readPeftAdapter(folder, { embeddings: 1 as never })).code).toBe(
      'ERR_TYPE',
    );
    const both = new Map(tensors);
    both.set(`base_model.model.${kUp}.lora_embedding_B`, raw([96, 4], 4));
    both.delete(`base_model.model.${kUp}.lora_B.weight`);
    writeSafetensors(join(folder, 'adapter_model.safetensors'), both);
    expect(errorOf(() => read()).message).toContain(
      `"${kUp}" must be a linear layer or an embedding, got both`,
    );
  });

  it('permutes the rows of q and k of llama alone', () => {
    const adapter = throughPeft(made());
    const b = new Map<string, string>();
    for (const architecture of ['llama', 'qwen2']) {
      const { tensors } = adapterToGguf(adapter, { ...kLlama, architecture });
      for (const [name, { data }] of tensors) {
        b.set(`${architecture} ${name}`, Buffer.from(data).toString('hex'));
      }
    }
    const same = (name: string) => b.get(`llama ${name}`) === b.get(`qwen2 ${name}`);
    expect(same('blk.0.attn_q.weight.lora_b')).toBe(false);
    expect(same('blk.0.attn_q.weight.lora_a')).toBe(true);
    expect(same('blk.0.ffn_up.weight.lora_b')).toBe(true);
    // Four heads of eight rows: row 2 i + j of the file is row 4 j + i.
    const q = rawToFloat32(raw([32, 4], 2));
    const [first] = [adapterToGguf(adapter, kLlama).tensors.get('blk.0.attn_q.weight.lora_b')];
    const rows = new Float32Array((first as GgufTensor).data.buffer);
    expect([...rows.subarray(4, 8)]).toEqual([...q.subarray(16, 20)]);
    expect([...rows.subarray(8, 12)]).toEqual([...q.subarray(4, 8)]);
  });
});

describe('types of factors', () => {
  const [loraA, loraB] = [raw([32, 64], 1), raw([96, 32], 2)];
  const parts = (a = loraA, b = loraB): PeftAdapterParts => ({
    config: { r: a.shape[0] as number, loraAlpha: 8, targetModules: [kUp] },
    modules: [{ module: kUp, loraA: a, loraB: b }],
  });
  const name = 'blk.0.ffn_up.weight';

  it.each(['F32', 'BF16', 'F16', 'F64'] as const)('%s as stored', (dtype) => {
    const stored = parts(raw([32, 64], 1, dtype), raw([96, 32], 2, dtype));
    const file = converted(stored);
    const type = dtype === 'F64' ? 'F32' : dtype;
    expect(file.info(`${name}.lora_a`)?.type).toBe(type);
    const values = rawToFloat32(stored.modules[0]?.loraA as RawTensor);
    const back = ggufToAdapter(file).modules[0]?.loraA as RawTensor;
    expect(back.dtype).toBe(type);
    expect(rawToFloat32(back)).toEqual(values);
  });

  it('BF16 and F16 round to nearest even', () => {
    const values = Float32Array.of(
      1 + 2 ** -8,
      1 + 3 * 2 ** -8,
      1 + 2 ** -11,
      1 + 3 * 2 ** -11,
      -0,
    );
    const shape = [1, 5];
    const rounded = (type: 'BF16' | 'F16'): number[] => {
      const a: RawTensor = { dtype: 'F32', shape, data: values };
      const file = converted(parts(a, raw([96, 1], 2)), { type });
      return [...rawToFloat32(ggufToAdapter(file).modules[0]?.loraA as RawTensor)];
    };
    expect(rounded('BF16')).toEqual([1, 1 + 2 ** -6, 1, 1, -0]);
    expect(rounded('F16')).toEqual([1 + 2 ** -8, 1 + 3 * 2 ** -8, 1, 1 + 2 ** -9, -0]);
  });

  it('Q8_0, and F16 where a row is no whole block', () => {
    const file = converted(parts(), { type: 'Q8_0' });
    expect(file.info(`${name}.lora_a`)?.type).toBe('Q8_0');
    expect(file.info(`${name}.lora_b`)?.type).toBe('Q8_0');
    const [module] = ggufToAdapter(file).modules;
    const a = decodeGguf('Q8_0', file.read(`${name}.lora_a`).data);
    expect(rawToFloat32(module?.loraA as RawTensor)).toEqual(a);
    const small = converted(parts(raw([4, 64], 1), raw([96, 4], 2)), { type: 'Q8_0' });
    expect(small.info(`${name}.lora_a`)?.type).toBe('Q8_0');
    expect(small.info(`${name}.lora_b`)?.type).toBe('F16');
    const [both] = ggufToAdapter(small).modules;
    expect([both?.loraA.dtype, both?.loraB.dtype]).toEqual(['F32', 'F32']);
    const b = rawToFloat32(both?.loraB as RawTensor);
    rawToFloat32(raw([96, 4], 2)).forEach((value, i) => {
      expect(Math.abs((b[i] as number) - value)).toBeLessThan(2 ** -11);
    });
  });
});
