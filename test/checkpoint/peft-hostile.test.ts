import fs from 'node:fs';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { readPeftAdapter } from '../../lib/checkpoint/peft/peft.js';
import type { RawTensor } from '../../lib/checkpoint/raw-tensor.js';
import { writeSafetensors } from '../../lib/checkpoint/safetensors.js';
import { codeOf, tempFolder } from './raw-file.js';

type Tensors = Record<string, RawTensor>;
type Config = Record<string, unknown>;

const f32 = (...shape: number[]): RawTensor => ({
  dtype: 'F32',
  shape,
  data: new Float32Array(shape.reduce((a, b) => a * b, 1)),
});
const kKey = 'base_model.model.m.q_proj';
const kTensors: Tensors = {
  [`${kKey}.lora_A.weight`]: f32(8, 3),
  [`${kKey}.lora_B.weight`]: f32(5, 8),
};
const kConfig: Config = { peft_type: 'LORA', r: 8, lora_alpha: 16, target_modules: ['q_proj'] };

/** A folder of this config (an object, or the file's text) and these tensors. */
function folderOf(config: Config | string = {}, tensors: Tensors = {}): string {
  const folder = tempFolder();
  const merged: Record<string, unknown> =
    typeof config === 'string' ? {} : { ...kConfig, ...config };
  fs.writeFileSync(
    path.join(folder, 'adapter_config.json'),
    typeof config === 'string' ? config : JSON.stringify(merged),
  );
  const all = Object.entries({ ...kTensors, ...tensors }).filter(([, t]) => t !== undefined);
  writeSafetensors(path.join(folder, 'adapter_model.safetensors'), new Map(all));
  return folder;
}

const without = (key: string): Tensors => ({ [key]: undefined as never });
const text = (change: string) => JSON.stringify(kConfig).replace('}', `,${change}}`);
const kBomb = '(a+)+'.repeat(40);

/** Class -> expected code, config and tensors. */
const classes: Record<string, [string, (Config | string)?, Tensors?]> = {
  'config an array': ['ERR_FILE', '[]'],
  'config null': ['ERR_FILE', 'null'],
  'config with a BOM': ['ERR_FILE', `\ufeff${JSON.stringify(kConfig)}`],
  'config with NaN': ['ERR_FILE', text('"lora_dropout": NaN')],
  'config cut': ['ERR_FILE', JSON.stringify(kConfig).slice(0, -5)],
  'config empty': ['ERR_FILE', ''],
  'peft_type unknown': ['ERR_UNSUPPORTED', { peft_type: 'IA3' }],
  'peft_type missing': ['ERR_FILE', { peft_type: undefined }],
  'peft_type a number': ['ERR_FILE', { peft_type: 5 }],
  'r 0': ['ERR_FILE', { r: 0 }],
  'r -1': ['ERR_FILE', { r: -1 }],
  'r 1.5': ['ERR_FILE', { r: 1.5 }],
  'r "8"': ['ERR_FILE', { r: '8' }],
  'r 2^31': ['ERR_FILE', { r: 2 ** 31 }],
  'r missing': ['ERR_FILE', { r: undefined }],
  'r is not that of the tensors': ['ERR_FILE', { r: 4 }],
  'lora_alpha 0': ['ERR_FILE', { lora_alpha: 0 }],
  'lora_alpha text': ['ERR_FILE', { lora_alpha: '16' }],
  'lora_alpha 1e400': ['ERR_FILE', JSON.stringify(kConfig).replace('16', '1e400')],
  'lora_alpha missing': ['ERR_FILE', { lora_alpha: undefined }],
  'dropout 1': ['ERR_FILE', { lora_dropout: 1 }],
  'dropout negative': ['ERR_FILE', { lora_dropout: -0.1 }],
  'use_rslora text': ['ERR_FILE', { use_rslora: 'yes' }],
  'A without B': ['ERR_FILE', {}, without(`${kKey}.lora_B.weight`)],
  'B without A': ['ERR_FILE', {}, without(`${kKey}.lora_A.weight`)],
  'rank of A is not that of B': ['ERR_FILE', {}, { [`${kKey}.lora_B.weight`]: f32(5, 7) }],
  'no LoRA tensors at all': [
    'ERR_FILE',
    {},
    { ...without(`${kKey}.lora_A.weight`), ...without(`${kKey}.lora_B.weight`) },
  ],
  'a convolution': [
    'ERR_UNSUPPORTED',
    {},
    { [`${kKey}.lora_A.weight`]: f32(8, 3, 3, 3), [`${kKey}.lora_B.weight`]: f32(5, 8, 1, 1) },
  ],
  'an embedding': ['ERR_UNSUPPORTED', {}, { 'base_model.model.e.lora_embedding_A': f32(8, 3) }],
  'dtypes mixed in a module': [
    'ERR_FILE',
    {},
    {
      [`${kKey}.lora_B.weight`]: { dtype: 'BF16', shape: [5, 8], data: new Uint16Array(40) },
    },
  ],
  'integer tensors': [
    'ERR_FILE',
    {},
    {
      [`${kKey}.lora_A.weight`]: { dtype: 'I8', shape: [8, 3], data: new Int8Array(24) },
      [`${kKey}.lora_B.weight`]: { dtype: 'I8', shape: [5, 8], data: new Int8Array(40) },
    },
  ],
  'bias unknown': ['ERR_FILE', { bias: 'some' }],
  'target_modules empty': ['ERR_FILE', { target_modules: [] }],
  'target_modules an empty text': ['ERR_FILE', { target_modules: '' }],
  'target_modules of 10,001 names': ['ERR_FILE', { target_modules: new Array(10_001).fill('q') }],
  'target_modules of numbers': ['ERR_FILE', { target_modules: [1] }],
  'target_modules an object': ['ERR_FILE', { target_modules: {} }],
  'target_modules an invalid pattern': ['ERR_FILE', { target_modules: '(' }],
  'target_modules with lookahead': ['ERR_UNSUPPORTED', { target_modules: '(?=a).*' }],
  'target_modules too large': ['ERR_UNSUPPORTED', { target_modules: '(a{900}){900}' }],
  'target_modules matches nothing': ['ERR_FILE', { target_modules: ['k_proj'] }],
  'a pattern that blocks a backtracking matcher': ['ERR_FILE', { target_modules: `${kBomb}!` }],
  'rank_pattern a list': ['ERR_FILE', { rank_pattern: [1] }],
  'rank_pattern of text': ['ERR_FILE', { rank_pattern: { q_proj: '4' } }],
  'rank_pattern 0': ['ERR_FILE', { rank_pattern: { q_proj: 0 } }],
  'rank_pattern invalid': ['ERR_FILE', { rank_pattern: { 'q(': 8 } }],
  'rank_pattern out of its parentheses': ['ERR_FILE', { rank_pattern: { 'a)|(b': 8 } }],
  'rank_pattern with a backreference': ['ERR_UNSUPPORTED', { rank_pattern: { '(a)\\1': 8 } }],
  'rank_pattern says another rank than the tensors': ['ERR_FILE', { rank_pattern: { q_proj: 4 } }],
  'rank_pattern of 10,001 entries': [
    'ERR_FILE',
    { rank_pattern: Object.fromEntries(Array.from({ length: 10_001 }, (_, i) => [`a${i}`, 8])) },
  ],
  'rank_pattern of many large patterns': [
    'ERR_UNSUPPORTED',
    {
      rank_pattern: Object.fromEntries(
        Array.from({ length: 2000 }, (_, i) => [`(a{100}){100}b${i}`, 8]),
      ),
    },
  ],
  'alpha_pattern 0': ['ERR_FILE', { alpha_pattern: { q_proj: 0 } }],
  'a key named like an escape': ['ERR_FILE', { rank_pattern: { '\u001b[2J': 'x' } }],
  'duplicate keys behind the adapter name': [
    'ERR_FILE',
    {},
    { [`${kKey}.lora_A.default.weight`]: f32(8, 3) },
  ],
  'keys without the prefix': ['ERR_FILE', {}, { 'm.k_proj.lora_A.weight': f32(8, 3) }],
  'an unknown LoRA part': ['ERR_FILE', {}, { [`${kKey}.lora_C.weight`]: f32(8, 3) }],
  'a name of 100 segments': [
    'ERR_FILE',
    {},
    { [`base_model.model.${'a.'.repeat(100)}lora_A.weight`]: f32(8, 3) },
  ],
  'modules_to_save path-like': ['ERR_FILE', { modules_to_save: ['../../etc/passwd'] }],
  'modules_to_save absolute': ['ERR_FILE', { modules_to_save: ['/etc/passwd'] }],
  'modules_to_save with a pattern': ['ERR_FILE', { modules_to_save: ['(a+)+'] }],
  'base model path that climbs': ['ERR_FILE', { base_model_name_or_path: '../../secret' }],
  'base model path with NUL': ['ERR_FILE', { base_model_name_or_path: 'a\0b' }],
  'base model path a number': ['ERR_FILE', { base_model_name_or_path: 5 }],
  'layers_to_transform negative': ['ERR_FILE', { layers_to_transform: [-1] }],
  'layers_to_transform text': ['ERR_FILE', { layers_to_transform: ['1'] }],
  'DoRA without a magnitude': ['ERR_FILE', { use_dora: true }],
  'a magnitude without DoRA': ['ERR_FILE', {}, { [`${kKey}.lora_magnitude_vector`]: f32(5) }],
  'a magnitude of another length': [
    'ERR_FILE',
    { use_dora: true },
    { [`${kKey}.lora_magnitude_vector`]: f32(4) },
  ],
  'lora_bias without a bias': ['ERR_FILE', { lora_bias: true }],
  'a bias without lora_bias': ['ERR_FILE', {}, { [`${kKey}.lora_B.bias`]: f32(5) }],
  aLoRA: ['ERR_UNSUPPORTED', { alora_invocation_tokens: [1, 2] }],
  QALoRA: ['ERR_UNSUPPORTED', { use_qalora: true }],
  'layer replication': ['ERR_UNSUPPORTED', { layer_replication: [[0, 4]] }],
  'target parameters': ['ERR_UNSUPPORTED', { target_parameters: ['experts.w'] }],
};

describe('hostile adapter folders', () => {
  it('accepts the folder that the others are made from', () => {
    const { modules, warnings } = readPeftAdapter(folderOf());
    expect(modules).toMatchObject([{ module: 'm.q_proj', r: 8, loraAlpha: 16, scaling: 2 }]);
    expect(warnings).toEqual([]);
  });

  it.each(Object.keys(classes))('refuses: %s', (name) => {
    const [code, config, tensors] = classes[name] as [string, Config?, Tensors?];
    const folder = folderOf(config, tensors);
    const start = performance.now();
    expect(codeOf(() => readPeftAdapter(folder))).toBe(code);
    expect(performance.now() - start).toBeLessThan(2000);
  });

  it('says what is missing', () => {
    const gone = (file: string) => {
      const folder = folderOf();
      fs.rmSync(path.join(folder, file));
      return folder;
    };
    expect(codeOf(() => readPeftAdapter('/nowhere'))).toBe('ERR_FILE_NOT_FOUND');
    expect(codeOf(() => readPeftAdapter(gone('adapter_config.json')))).toBe('ERR_FILE_NOT_FOUND');
    const pickled = gone('adapter_model.safetensors');
    expect(codeOf(() => readPeftAdapter(pickled))).toBe('ERR_FILE_NOT_FOUND');
    fs.writeFileSync(path.join(pickled, 'adapter_model.bin'), 'PK\x03\x04');
    expect(codeOf(() => readPeftAdapter(pickled))).toBe('ERR_PICKLE_REFUSED');
    fs.renameSync(
      path.join(pickled, 'adapter_model.bin'),
      path.join(pickled, 'adapter_model.safetensors'),
    );
    expect(codeOf(() => readPeftAdapter(pickled))).toBe('ERR_PICKLE_REFUSED');
  });

  it('holds the adapter to the base model', () => {
    const folder = folderOf();
    const fits = (shape: readonly number[] | undefined) =>
      codeOf(() => readPeftAdapter(folder, { baseShape: () => shape }));
    expect(fits([5, 3])).toBe('no error');
    expect(fits([3, 5])).toBe('ERR_SHAPE');
    expect(fits([5, 4])).toBe('ERR_SHAPE');
    expect(fits(undefined)).toBe('ERR_SHAPE');
  });

  it('ignores and reports fields that carry code, and tensors that PEFT would drop', () => {
    const folder = folderOf(
      {
        auto_mapping: { parent_library: 'os', base_model_class: 'system' },
        megatron_core: 'os',
        megatron_config: { a: 1 },
        tokenizer_kwargs: { trust_remote_code: true },
        init_lora_weights: 'pissa_niter_4',
      },
      {
        'base_model.model.m.k_proj.lora_A.weight': f32(8, 3),
        'base_model.model.m.k_proj.lora_B.weight': f32(5, 8),
        'base_model.model.m.norm.weight': f32(3),
      },
    );
    const { modules, warnings } = readPeftAdapter(folder);
    expect(modules.map((m) => m.module)).toEqual(['m.q_proj']);
    for (const word of [
      'auto_mapping',
      'megatron_core',
      'megatron_config',
      'tokenizer_kwargs',
      'pissa',
      'k_proj',
      'm.norm',
    ]) {
      expect(warnings.filter((w) => w.includes(word))).toHaveLength(1);
    }
    expect(warnings).toHaveLength(7);
  });

  it('takes the adapter name that some tools leave in the keys', () => {
    const folder = folderOf(
      {},
      {
        ...without(`${kKey}.lora_A.weight`),
        ...without(`${kKey}.lora_B.weight`),
        [`${kKey}.lora_A.default.weight`]: f32(8, 3),
        [`${kKey}.lora_B.default.weight`]: f32(5, 8),
      },
    );
    expect(readPeftAdapter(folder).modules.map((m) => m.module)).toEqual(['m.q_proj']);
  });

  it('survives prototype names', () => {
    const config = JSON.stringify({ ...kConfig, rank_pattern: {} }).replace(
      '"rank_pattern":{}',
      '"rank_pattern":{"__proto__":4,"constructor":4},"__proto__":{"r":1}',
    );
    const { modules, config: parsed } = readPeftAdapter(folderOf(config));
    expect(modules[0]?.r).toBe(8);
    expect(parsed.rankPattern.get('__proto__')).toBe(4);
    expect(({} as { r?: number }).r).toBeUndefined();
  });
});
