// LoRA adapters that GGUF cannot hold, and GGUF files that are no LoRA adapter.
import { describe, expect, it } from 'vitest';
import {
  adapterToGguf,
  encodeGguf,
  GgufFile,
  type GgufTensorSource,
  type GgufValue,
  ggufToAdapter,
  type PeftAdapter,
  type PeftAdapterParts,
  type RawTensor,
} from '../../../lib/index.js';
import {
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

describe('adapters that GGUF cannot hold', () => {
  const vector = (N: number): RawTensor => raw([N], 9);
  const q = { module: kQ, loraA: raw([4, 64], 1), loraB: raw([32, 4], 2) };
  const plain = { r: 4, loraAlpha: 8, targetModules: ['q_proj', 'up_proj', 'weights', 'norm'] };
  const merge = 'Merge the adapter into its model, and convert the model';

  it.each<[string, PeftAdapterParts, string]>([
    [
      'DoRA',
      { config: { ...plain, useDora: true }, modules: [{ ...q, magnitude: vector(32) }] },
      `got DoRA. ${merge}`,
    ],
    [
      'a bias of lora_b',
      { config: { ...plain, loraBias: true }, modules: [{ ...q, loraBias: vector(32) }] },
      `got lora_bias. ${merge}`,
    ],
    [
      'biases',
      { config: { ...plain, bias: 'all' }, modules: [q], biases: new Map([[kQ, vector(32)]]) },
      `got trained biases (bias: all). ${merge}`,
    ],
    [
      'a module saved in full',
      {
        config: { ...plain, modulesToSave: ['lm_head'] },
        modules: [q],
        savedParameters: new Map([['lm_head.weight', raw([50, 64], 3)]]),
      },
      `got parameter "lm_head.weight" saved in full. ${merge}`,
    ],
    [
      'two alphas',
      {
        config: { ...plain, alphaPattern: new Map([['up_proj', 16]]) },
        modules: [q, { ...q, module: kUp }],
      },
      `got 16 for "${kUp}" and 8 for "${kQ}". ${merge}`,
    ],
    [
      'rsLoRA of two ranks',
      {
        config: { ...plain, useRslora: true, rankPattern: new Map([['up_proj', 2]]) },
        modules: [q, { module: kUp, loraA: raw([2, 64], 1), loraB: raw([96, 2], 2) }],
      },
      'scaling · rank must be the same for all modules',
    ],
    [
      'a module of no name',
      { config: plain, modules: [{ ...q, module: 'model.weights' }] },
      'a module must be a linear layer or the embedding of llama',
    ],
    ['a norm', { config: plain, modules: [{ ...q, module: 'model.norm' }] }, 'got "model.norm"'],
  ])('%s', (_, parts, text) => {
    const error = errorOf(() => adapterToGguf(throughPeft(parts), kLlama));
    expect(error.message).toContain(text);
    expect(error).toMatchObject({ code: 'ERR_UNSUPPORTED', op: 'adapterToGguf' });
  });

  it('but the frozen weight of an embedding, which PEFT saves, is left out', () => {
    const parts = {
      ...made(),
      savedParameters: new Map([[`${kEmbed}.base_layer.weight`, vector(3)]]),
    };
    expect(encodeGguf(adapterToGguf(throughPeft(parts), kLlama))).toEqual(
      encodeGguf(adapterToGguf(throughPeft(made()), kLlama)),
    );
  });

  it('a head that is the embedding', () => {
    const head = { ...q, module: 'lm_head' };
    const adapter = throughPeft({
      config: { ...plain, targetModules: ['lm_head'] },
      modules: [head],
    });
    expect(errorOf(() => adapterToGguf(adapter, { ...kLlama, tied: true })).message).toContain(
      'got "lm_head", a tied embedding',
    );
    expect([...adapterToGguf(adapter, kLlama).tensors.keys()]).toEqual([
      'output.weight.lora_a',
      'output.weight.lora_b',
    ]);
  });

  const adapter = throughPeft({ config: plain, modules: [q] });
  const changed = (change: object): PeftAdapter => ({
    ...adapter,
    modules: [{ ...(adapter.modules[0] as PeftAdapter['modules'][number]), ...change }],
  });
  it.each<[string, () => unknown, string, string]>([
    ['no adapter', () => adapterToGguf(null as never, kLlama), 'ERR_TYPE', 'adapter must be'],
    [
      'no modules',
      () => adapterToGguf({ ...adapter, modules: 1 as never }, kLlama),
      'ERR_TYPE',
      'modules',
    ],
    ['none', () => adapterToGguf({ ...adapter, modules: [] }, kLlama), 'ERR_VALUE', 'at least one'],
    [
      'no biases',
      () => adapterToGguf({ ...adapter, biases: {} as never }, kLlama),
      'ERR_TYPE',
      'a Map',
    ],
    ['no base', () => adapterToGguf(adapter, undefined as never), 'ERR_TYPE', 'base must be'],
    ['no architecture', () => adapterToGguf(adapter, {} as never), 'ERR_TYPE', 'base.architecture'],
    [
      'another architecture',
      () => adapterToGguf(adapter, { architecture: 'mamba' }),
      'ERR_UNSUPPORTED',
      'got "mamba"',
    ],
    [
      'no heads',
      () => adapterToGguf(adapter, { architecture: 'llama' }),
      'ERR_VALUE',
      `base.heads must be given, because the rows of "${kQ}" have another order in GGUF, got none`,
    ],
    [
      'half a head',
      () => adapterToGguf(adapter, { ...kLlama, heads: 2.5 }),
      'ERR_VALUE',
      'base.heads must be a positive integer, got 2.5',
    ],
    [
      'heads as text',
      () => adapterToGguf(adapter, { ...kLlama, heads: '4' as never }),
      'ERR_TYPE',
      'base.heads must be a number',
    ],
    [
      'heads that do not divide the rows',
      () => adapterToGguf(adapter, { ...kLlama, heads: 3 }),
      'ERR_SHAPE',
      `base.heads must be heads of an even number of the 32 rows of "${kQ}", got 3`,
    ],
    [
      'a type of weights',
      () => adapterToGguf(adapter, kLlama, { type: 'Q4_0' as never }),
      'ERR_DTYPE',
      'type must be one of F32, F16, BF16, Q8_0, got "Q4_0"',
    ],
    [
      'a name',
      () => adapterToGguf(adapter, kLlama, { name: 3 as never }),
      'ERR_TYPE',
      'name must be',
    ],
    [
      'a number beyond F16',
      () =>
        adapterToGguf(
          changed({
            loraA: { dtype: 'F32', shape: [4, 64], data: new Float32Array(256).fill(1e5) },
          }),
          kLlama,
          { type: 'F16' },
        ),
      'ERR_VALUE',
      'factors must be numbers that F16 holds, got 100000',
    ],
    [
      'another rank',
      () => adapterToGguf(changed({ r: 3 }), kLlama),
      'ERR_SHAPE',
      'adapter.modules[0].loraA must be [3, K], got [4, 64]',
    ],
    [
      'an alpha of 0',
      () => adapterToGguf(changed({ loraAlpha: 1e-50 }), kLlama),
      'ERR_VALUE',
      'alpha',
    ],
    [
      'factors of an embedding',
      () => adapterToGguf(changed({ embedding: true }), kLlama),
      'ERR_UNSUPPORTED',
      `factors must be of the kind of layer that "${kQ}" is, got those of an embedding`,
    ],
  ])('%s', (_, body, code, text) => {
    const error = errorOf(body);
    expect(error.message).toContain(text);
    expect(error.code).toBe(code);
  });
});

describe('GGUF files that are no LoRA adapter', () => {
  const good = adapterToGguf(throughPeft(made()), kLlama);
  type Change = (metadata: Map<string, GgufValue>, tensors: Map<string, GgufTensorSource>) => void;
  const text = (value: string): GgufValue => ({ type: 'string', value });
  const f32 = (shape: number[]): GgufTensorSource => ({
    type: 'F32',
    shape,
    data: new Float32Array(shape.reduce((a, b) => a * b, 1)),
  });
  const kName = 'blk.0.ffn_up.weight';

  it.each<[string, string, string, Change]>([
    [
      'a model',
      'ERR_FILE',
      'must be an adapter, got general.type "model"',
      (m) => m.set('general.type', text('model')),
    ],
    [
      'no type',
      'ERR_FILE',
      'must have a text general.type, got none',
      (m) => m.delete('general.type'),
    ],
    [
      'a type as bytes',
      'ERR_FILE',
      'general.type',
      (m) => m.set('general.type', { type: 'string', value: Uint8Array.of(255) }),
    ],
    [
      'a control vector',
      'ERR_UNSUPPORTED',
      'must be a LoRA adapter, got "cvec"',
      (m) => m.set('adapter.type', text('cvec')),
    ],
    [
      'an activated adapter',
      'ERR_UNSUPPORTED',
      'invocation tokens',
      (m) =>
        m.set('adapter.alora.invocation_tokens', {
          type: 'array',
          of: 'u32',
          value: Uint32Array.of(1),
        }),
    ],
    [
      'another architecture',
      'ERR_UNSUPPORTED',
      'got "mamba"',
      (m) => m.set('general.architecture', text('mamba')),
    ],
    [
      'no architecture',
      'ERR_FILE',
      'must have a text general.architecture',
      (m) => m.delete('general.architecture'),
    ],
    [
      'an alpha of f64',
      'ERR_FILE',
      'of type f32, got a value of type f64',
      (m) => m.set('adapter.lora.alpha', { type: 'f64', value: 8 }),
    ],
    [
      'an alpha of NaN',
      'ERR_FILE',
      'got NaN',
      (m) => m.set('adapter.lora.alpha', { type: 'f32', value: Number.NaN }),
    ],
    ['nothing', 'ERR_FILE', 'must hold at least one pair of factors', (_, t) => t.clear()],
    [
      'a norm',
      'ERR_UNSUPPORTED',
      'got tensor "blk.0.attn_norm.weight"',
      (_, t) => t.set('blk.0.attn_norm.weight', f32([64])),
    ],
    [
      'one factor',
      'ERR_FILE',
      `must hold both factors of "${kName}", got one`,
      (_, t) => t.delete(`${kName}.lora_a`),
    ],
    [
      'a weight without a name',
      'ERR_UNSUPPORTED',
      'which has no name in PEFT',
      (_, t) => {
        t.set('blk.0.ssm_in.weight.lora_a', f32([4, 8]));
        t.set('blk.0.ssm_in.weight.lora_b', f32([8, 4]));
      },
    ],
    [
      'a bias',
      'ERR_UNSUPPORTED',
      'must adapt weights of llama',
      (_, t) => {
        t.set('blk.0.ffn_up.bias.lora_a', f32([4, 8]));
        t.set('blk.0.ffn_up.bias.lora_b', f32([8, 4]));
      },
    ],
    [
      'two ranks',
      'ERR_FILE',
      'must have one rank in both factors',
      (_, t) => t.set(`${kName}.lora_a`, f32([3, 64])),
    ],
    [
      'three dimensions',
      'ERR_FILE',
      'must have factors of 2 dimensions',
      (_, t) => t.set(`${kName}.lora_a`, f32([4, 2, 32])),
    ],
    [
      'factors of Q4_0',
      'ERR_UNSUPPORTED',
      'in F32, F16, BF16 or Q8_0',
      (_, t) =>
        t.set(`${kName}.lora_a`, { type: 'Q4_0', shape: [4, 64], data: new Uint8Array(144) }),
    ],
  ])('%s', (_, code, message, change) => {
    const [metadata, tensors] = [
      new Map(good.metadata),
      new Map<string, GgufTensorSource>(good.tensors),
    ];
    change(metadata, tensors);
    const error = errorOf(() => ggufToAdapter(fileOf({ metadata, tensors }), kLlama));
    expect(error.message).toContain(message);
    expect(error.code).toBe(code);
  });

  it('or come without heads, or not from openGguf', () => {
    const file = fileOf(good);
    expect(errorOf(() => ggufToAdapter(file)).message).toContain('base.heads must be given');
    expect(errorOf(() => ggufToAdapter(file, { heads: 5 })).code).toBe('ERR_SHAPE');
    expect(errorOf(() => ggufToAdapter(file, 4 as never)).code).toBe('ERR_TYPE');
    expect(errorOf(() => ggufToAdapter({} as never, kLlama)).code).toBe('ERR_TYPE');
    expect(file).toBeInstanceOf(GgufFile);
  });
});
