import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it, vi } from 'vitest';
import {
  type PeftAdapterParts,
  readPeftAdapter,
  writePeftAdapter,
} from '../../lib/checkpoint/peft/peft.js';
import { parsePeftConfig } from '../../lib/checkpoint/peft/peft-config.js';
import { PeftTargets } from '../../lib/checkpoint/peft/peft-targets.js';
import { type RawTensor, rawToFloat32 } from '../../lib/checkpoint/raw-tensor.js';
import { readSafetensors } from '../../lib/checkpoint/safetensors.js';
import { isOtherLayer } from '../golden/case-file.js';
import { codeOf, tempFolder } from './raw-file.js';

const kGolden = fileURLToPath(new URL('../golden/checkpoint/', import.meta.url));

interface GoldenCase {
  readonly id: string;
  readonly params: { readonly scaling?: Record<string, number> };
  readonly compare: { tensor: string; reference?: string; atol: number }[];
}

const manifest = JSON.parse(fs.readFileSync(path.join(kGolden, 'manifest.json'), 'utf8')) as {
  cases: GoldenCase[];
};
const adapters = manifest.cases.filter((c) => c.params.scaling !== undefined);
const nameOf = (c: GoldenCase) => c.id.replace('checkpoint/', '');

/** y = x · wᵀ (+ bias), float64; x [M, K], w [N, K]. */
function linear(x: Float64Array, w: ArrayLike<number>, K: number, bias?: ArrayLike<number>) {
  const [M, N] = [x.length / K, w.length / K];
  const y = new Float64Array(M * N);
  for (let m = 0; m < M; m++) {
    for (let n = 0; n < N; n++) {
      let sum = bias?.[n] ?? 0;
      for (let k = 0; k < K; k++) sum += (x[m * K + k] as number) * (w[n * K + k] as number);
      y[m * N + n] = sum;
    }
  }
  return y;
}

describe('adapter folders that PEFT wrote', () => {
  it('has cases to test', () => {
    expect(adapters.map(nameOf).sort()).toEqual([
      'layers_to_transform',
      'lora',
      'modules_to_save',
      'regex_bias',
      'rslora_patterns',
    ]);
  });

  it.each(adapters.map(nameOf))('%s: the modules and their scaling are PEFT’s', (name) => {
    const { params } = adapters.find((c) => nameOf(c) === name) as GoldenCase;
    const adapter = readPeftAdapter(path.join(kGolden, name));
    const scaling = Object.fromEntries(adapter.modules.map((m) => [m.module, m.scaling]));
    expect(scaling).toEqual(params.scaling);
    expect(adapter.warnings).toEqual(['auto_mapping names code to import and was ignored']);
    const { tensors } = readSafetensors(path.join(kGolden, name, 'adapter_model.safetensors'));
    const used = 2 * adapter.modules.length + adapter.biases.size + adapter.savedParameters.size;
    expect(used).toBe(tensors.size);
  });

  it.each(adapters.map(nameOf))('%s: what PEFT computed with it comes out', (name) => {
    const golden = adapters.find((c) => nameOf(c) === name) as GoldenCase;
    const base = readSafetensors(path.join(kGolden, 'toy_base_model.safetensors')).tensors;
    const data = readSafetensors(path.join(kGolden, `${name}.safetensors`)).tensors;
    const values = (map: ReadonlyMap<string, RawTensor>, key: string) =>
      rawToFloat32(map.get(key) as RawTensor);
    const adapter = readPeftAdapter(path.join(kGolden, name));
    const modules = new Map(adapter.modules.map((m) => [m.module, m]));
    const layer = (module: string, x: Float64Array): Float64Array => {
      const own = adapter.savedParameters;
      const weight = own.get(`${module}.weight`) ?? (base.get(`${module}.weight`) as RawTensor);
      const bias =
        adapter.biases.get(module) ?? own.get(`${module}.bias`) ?? base.get(`${module}.bias`);
      const K = weight.shape[1] as number;
      const y = linear(x, rawToFloat32(weight), K, bias && rawToFloat32(bias));
      const lora = modules.get(module);
      if (lora === undefined) return y;
      const h = linear(x, rawToFloat32(lora.loraA), K);
      const delta = linear(h, rawToFloat32(lora.loraB), lora.r);
      return y.map((value, i) => value + lora.scaling * (delta[i] as number));
    };
    let h = Float64Array.from(values(data, 'in.x'));
    for (const prefix of ['model.layers.0.', 'model.layers.1.']) {
      const [q, k, v] = ['q', 'k', 'v'].map((p) => layer(`${prefix}self_attn.${p}_proj`, h));
      const mixed = (q as Float64Array).map(
        (value, i) => Math.tanh(value) * (k?.[i] as number) + (v?.[i] as number),
      );
      const o = layer(`${prefix}self_attn.o_proj`, mixed);
      h = h.map((value, i) => value + (o[i] as number));
      const [gate, up] = ['gate', 'up'].map((p) => layer(`${prefix}mlp.${p}_proj`, h));
      const inner = (gate as Float64Array).map(
        (value, i) => (value / (1 + Math.exp(-value))) * (up?.[i] as number),
      );
      const down = layer(`${prefix}mlp.down_proj`, inner);
      h = h.map((value, i) => value + (down[i] as number));
    }
    const y = layer('lm_head', h);
    const rule = golden.compare.find((c) => c.tensor === 'out.y');
    const reference = (data.get(rule?.reference ?? 'out.y') as RawTensor).data as Float64Array;
    const errors = y.map((value, i) => Math.abs(value - (reference[i] as number)));
    expect(Math.max(...errors)).toBeLessThan(rule?.atol as number);
    // The adapter must matter, or this would pass without it.
    const plain = values(data, 'out.y_base');
    const change = y.map((value, i) => Math.abs(value - (plain[i] as number)));
    expect(Math.max(...change)).toBeGreaterThan(10 * (rule?.atol as number));
  });

  it.each(adapters.map(nameOf))(
    '%s: is written back: same bytes of weights, same config',
    (name) => {
      const source = path.join(kGolden, name);
      const adapter = readPeftAdapter(source);
      const folder = path.join(tempFolder(), 'out', 'adapter');
      writePeftAdapter(folder, adapter);
      const bytes = (of: string) => fs.readFileSync(path.join(of, 'adapter_model.safetensors'));
      expect(bytes(folder).equals(bytes(source))).toBe(true);
      const configOf = (of: string) => {
        const text = fs.readFileSync(path.join(of, 'adapter_config.json'), 'utf8');
        const object = JSON.parse(text) as Record<string, unknown>;
        if (Array.isArray(object.target_modules)) object.target_modules.sort();
        return { keys: Object.keys(object), object, text };
      };
      const [ours, theirs] = [configOf(folder), configOf(source)];
      expect(ours.keys).toEqual(theirs.keys);
      const differing = { auto_mapping: null, peft_version: null };
      expect({ ...ours.object, ...differing }).toEqual({ ...theirs.object, ...differing });
      expect(ours.text).toContain('"lora_dropout": 0.0,');
      const again = readPeftAdapter(folder);
      expect(again.warnings).toEqual([]);
      // The list of targets is a set to PEFT; it is written sorted.
      const { targetModules } = adapter.config;
      const sorted = Array.isArray(targetModules) ? [...targetModules].sort() : targetModules;
      const config = { ...adapter.config, targetModules: sorted };
      expect(again).toEqual({ ...adapter, config, warnings: [] });
      expect(fs.readdirSync(path.dirname(folder))).toEqual(['adapter']);
    },
  );
});

describe('one-layer adapters that PEFT wrote', () => {
  const root = fileURLToPath(new URL('../golden/', import.meta.url));
  const all = JSON.parse(fs.readFileSync(path.join(root, 'manifest.json'), 'utf8')) as {
    cases: GoldenCase[];
  };
  const folders = all.cases.filter(
    (c) => c.id.startsWith('lora/') && fs.existsSync(path.join(root, c.id, 'adapter_config.json')),
  );
  // The reader takes linear layers; embeddings and convolutions are refused by name or shape.
  const cases = folders.filter(({ id }) => !isOtherLayer(id));
  const others = folders.filter(({ id }) => isOtherLayer(id));

  it.each(others.map((c) => c.id))('%s: refused, since it is no linear layer', (id) => {
    expect(() => readPeftAdapter(path.join(root, id))).toThrow(
      expect.objectContaining({ code: 'ERR_UNSUPPORTED' }),
    );
  });

  it('has cases with trained biases, lora biases and rank patterns', () => {
    const ids = cases.map((c) => c.id);
    for (const name of ['r8_bias_all', 'r8_bias_lora_only', 'r8_lora_bias', 'two_layer_rank']) {
      expect(ids.some((id) => id.includes(name))).toBe(true);
    }
  });

  it.each(cases.map((c) => c.id))('%s: same scaling, and the same bytes written back', (id) => {
    const golden = cases.find((c) => c.id === id) as GoldenCase;
    const adapter = readPeftAdapter(path.join(root, id));
    const scaling = Object.fromEntries(adapter.modules.map((m) => [m.module, m.scaling]));
    expect(scaling).toEqual(golden.params.scaling);
    const folder = path.join(tempFolder(), 'a');
    writePeftAdapter(folder, adapter);
    const bytes = (of: string) => fs.readFileSync(path.join(of, 'adapter_model.safetensors'));
    expect(bytes(folder).equals(bytes(path.join(root, id)))).toBe(true);
  });
});

describe('module matching', () => {
  const targets = (changes: Record<string, unknown>) =>
    new PeftTargets(
      'test',
      parsePeftConfig(
        'test',
        'config',
        { peft_type: 'LORA', r: 8, lora_alpha: 16, target_modules: ['q_proj'], ...changes },
        [],
      ),
    );

  it('matches lists by name endings from a dot on', () => {
    const t = targets({ target_modules: ['q_proj', 'mlp.up', 'head'] });
    const names = [
      'q_proj',
      'a.q_proj',
      'a.xq_proj',
      'q_proj.a',
      'x.mlp.up',
      'up',
      'head',
      'a.head',
    ];
    expect(names.filter((name) => t.adapts(name))).toEqual([
      'q_proj',
      'a.q_proj',
      'x.mlp.up',
      'head',
      'a.head',
    ]);
  });

  it('matches a string as a pattern over the whole name', () => {
    const t = targets({ target_modules: '.*\\.(q|v)_proj' });
    expect(t.adapts('layers.0.q_proj')).toBe(true);
    expect(t.adapts('q_proj')).toBe(false);
    expect(t.adapts('layers.0.q_proj.x')).toBe(false);
    expect(targets({ target_modules: 'all-linear' }).adapts('anything')).toBe(true);
    expect(targets({ target_modules: null }).adapts('anything')).toBe(true);
  });

  it('honours exclusions and modules saved in full', () => {
    const t = targets({
      target_modules: 'all-linear',
      exclude_modules: ['k_proj'],
      modules_to_save: ['score', 'out.head'],
    });
    const names = [
      'a.k_proj',
      'a.kk_proj',
      'score',
      'a.score',
      'a.score.b',
      'ascore',
      'out.head.x',
      'head',
    ];
    expect(names.filter((name) => t.adapts(name))).toEqual(['a.kk_proj', 'ascore', 'head']);
    const p = targets({ target_modules: 'all-linear', exclude_modules: '.*\\.1\\..*' });
    expect([p.adapts('l.1.q'), p.adapts('l.2.q')]).toEqual([false, true]);
  });

  it('picks layers by index', () => {
    const any = targets({ layers_to_transform: [1, 3] });
    const at = (t: PeftTargets, names: string[]) => names.map((name) => t.adapts(name));
    expect(at(any, ['m.layers.1.q_proj', 'm.layers.2.q_proj', 'm.h.3.x.q_proj', 'q_proj'])).toEqual(
      [
        true,
        false,
        true,
        // A full name in the list is taken whatever its index.
        true,
      ],
    );
    // PEFT's pattern needs something before the layers' own name.
    expect(any.adapts('layers.1.q_proj')).toBe(false);
    const one = targets({ layers_to_transform: 1, layers_pattern: 'blocks' });
    expect(
      at(one, ['m.blocks.1.q_proj', 'm.layers.1.q_proj', 'm.blocks.2.layers.1.q_proj']),
    ).toEqual([true, false, false]);
    const two = targets({ layers_to_transform: [2], layers_pattern: ['h', 'bl.*'] });
    expect(at(two, ['m.h.2.q_proj', 'm.blocks.2.q_proj', 'm.x.2.q_proj'])).toEqual([
      true,
      true,
      false,
    ]);
  });

  it('looks up rank and alpha by the first pattern that covers the end of the name', () => {
    const t = targets({
      use_rslora: true,
      rank_pattern: { 'layers\\.[0-4]\\..*': 4, q_proj: 16, '^head$': 2, 'a+b': 32 },
      alpha_pattern: { 'v|q_proj': 64 },
    });
    expect(t.scalingOf('m.layers.3.q_proj')).toEqual({ r: 4, loraAlpha: 64, scaling: 32 });
    expect(t.scalingOf('m.layers.5.q_proj')).toEqual({ r: 16, loraAlpha: 64, scaling: 16 });
    expect(t.scalingOf('head')).toMatchObject({ r: 2 });
    expect(t.scalingOf('m.head')).toMatchObject({ r: 8 });
    expect(t.scalingOf('xq_proj')).toMatchObject({ r: 8, loraAlpha: 16 });
    expect(t.scalingOf('m.v')).toMatchObject({ loraAlpha: 64 });
    expect(t.scalingOf('mv')).toMatchObject({ loraAlpha: 16 });
    // No pattern matches, but a key is the very name.
    expect(t.scalingOf('a+b')).toMatchObject({ r: 32 });
    expect(t.scalingOf('x.aab')).toMatchObject({ r: 32 });
  });
});

describe('writing adapters', () => {
  const f32 = (...shape: number[]): RawTensor => ({
    dtype: 'F32',
    shape,
    data: new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(0.5),
  });
  const adapter = (changes: Partial<PeftAdapterParts> = {}): PeftAdapterParts => ({
    config: { r: 2, loraAlpha: 4, targetModules: ['q'] },
    modules: [{ module: 'm.q', loraA: f32(2, 3), loraB: f32(5, 2) }],
    ...changes,
  });

  it('refuses factors of a dtype that could not be read again', () => {
    const folder = path.join(tempFolder(), 'a');
    const i32: RawTensor = { dtype: 'I32', shape: [2, 3], data: new Int32Array(6) };
    const bf16: RawTensor = { dtype: 'BF16', shape: [5, 2], data: new Uint16Array(10) };
    for (const [factors, words] of [
      [{ loraA: i32, loraB: f32(5, 2) }, 'loraA of "m.q" must be of F32, BF16, F16, F64, got I32'],
      [{ loraA: f32(2, 3), loraB: bf16 }, 'loraB of "m.q" must be F32, as loraA, got BF16'],
    ] as const) {
      const write = () =>
        writePeftAdapter(folder, adapter({ modules: [{ module: 'm.q', ...factors }] }));
      expect(write).toThrow(expect.objectContaining({ code: 'ERR_DTYPE' }));
      expect(write).toThrow(words);
    }
    expect(fs.existsSync(folder)).toBe(false);
  });

  it('writes DoRA magnitudes, biases and saved parameters under PEFT’s names', () => {
    const folder = path.join(tempFolder(), 'a');
    const config = {
      r: 2,
      loraAlpha: 4,
      targetModules: ['q'],
      useDora: true,
      loraBias: true,
      bias: 'all',
      modulesToSave: ['head'],
      taskType: 'CAUSAL_LM',
      baseModelNameOrPath: 'org/model',
      loraDropout: 0.05,
    } as const;
    const parts = { module: 'm.q', loraA: f32(2, 3), loraB: f32(5, 2) };
    writePeftAdapter(folder, {
      config,
      modules: [{ ...parts, magnitude: f32(5), loraBias: f32(5) }],
      biases: new Map([
        ['m.q', f32(5)],
        ['m.norm', f32(3)],
      ]),
      savedParameters: new Map([['head.weight', f32(7, 3)]]),
      extraFiles: new Map([['README.md', new TextEncoder().encode('hello')]]),
    });
    const { tensors, metadata } = readSafetensors(path.join(folder, 'adapter_model.safetensors'));
    expect([...tensors.keys()]).toEqual([
      'base_model.model.head.weight',
      'base_model.model.m.norm.bias',
      'base_model.model.m.q.base_layer.bias',
      'base_model.model.m.q.lora_A.weight',
      'base_model.model.m.q.lora_B.bias',
      'base_model.model.m.q.lora_B.weight',
      'base_model.model.m.q.lora_magnitude_vector',
    ]);
    expect(metadata).toEqual(new Map([['format', 'pt']]));
    const read = readPeftAdapter(folder);
    expect(read.config).toMatchObject(config);
    expect(read.modules[0]).toMatchObject({ module: 'm.q', r: 2, scaling: 2 });
    expect([...read.biases.keys()].sort()).toEqual(['m.norm', 'm.q']);
    expect([...read.savedParameters.keys()]).toEqual(['head.weight']);
    expect(fs.readFileSync(path.join(folder, 'README.md'), 'utf8')).toBe('hello');
  });

  it.each<[string, string, Partial<PeftAdapterParts>]>([
    ['no modules', 'ERR_VALUE', { modules: [] }],
    ['r NaN', 'ERR_VALUE', { config: { r: Number.NaN, loraAlpha: 4, targetModules: ['q'] } }],
    ['r 0', 'ERR_VALUE', { config: { r: 0, loraAlpha: 4, targetModules: ['q'] } }],
    [
      'alpha infinite',
      'ERR_VALUE',
      {
        config: { r: 2, loraAlpha: Number.POSITIVE_INFINITY, targetModules: ['q'] },
      },
    ],
    ['no target modules', 'ERR_VALUE', { config: { r: 2, loraAlpha: 4, targetModules: [] } }],
    [
      'an untargeted module',
      'ERR_VALUE',
      {
        modules: [{ module: 'm.k', loraA: f32(2, 3), loraB: f32(5, 2) }],
      },
    ],
    ['a module twice', 'ERR_VALUE', { modules: [...adapter().modules, ...adapter().modules] }],
    [
      'another rank',
      'ERR_SHAPE',
      {
        modules: [{ module: 'm.q', loraA: f32(3, 3), loraB: f32(5, 3) }],
      },
    ],
    [
      'ranks that differ',
      'ERR_SHAPE',
      {
        modules: [{ module: 'm.q', loraA: f32(2, 3), loraB: f32(5, 3) }],
      },
    ],
    [
      'an unexpected magnitude',
      'ERR_VALUE',
      {
        modules: [{ module: 'm.q', loraA: f32(2, 3), loraB: f32(5, 2), magnitude: f32(5) }],
      },
    ],
    [
      'a missing magnitude',
      'ERR_VALUE',
      {
        config: { r: 2, loraAlpha: 4, targetModules: ['q'], useDora: true },
      },
    ],
    [
      'a magnitude of another length',
      'ERR_SHAPE',
      {
        config: { r: 2, loraAlpha: 4, targetModules: ['q'], useDora: true },
        modules: [{ module: 'm.q', loraA: f32(2, 3), loraB: f32(5, 2), magnitude: f32(4) }],
      },
    ],
    ['biases without bias', 'ERR_VALUE', { biases: new Map([['m.q', f32(5)]]) }],
    [
      'data that does not fit',
      'ERR_SHAPE',
      {
        modules: [
          {
            module: 'm.q',
            loraA: { ...f32(2, 3), data: new Float32Array(5) },
            loraB: f32(5, 2),
          },
        ],
      },
    ],
    ['an extra file outside', 'ERR_VALUE', { extraFiles: new Map([['../x', new Uint8Array(1)]]) }],
  ])('refuses before it writes: %s', (_, code, changes) => {
    const outer = tempFolder();
    expect(codeOf(() => writePeftAdapter(path.join(outer, 'a'), adapter(changes)))).toBe(code);
    expect(fs.readdirSync(outer)).toEqual([]);
  });

  it('replaces an adapter folder whole and keeps other files in it', () => {
    const outer = tempFolder();
    const folder = path.join(outer, 'a');
    writePeftAdapter(folder, adapter());
    fs.writeFileSync(path.join(folder, 'notes.txt'), 'mine');
    const config = { r: 2, loraAlpha: 8, targetModules: ['q'] };
    writePeftAdapter(folder, adapter({ config }));
    expect(readPeftAdapter(folder).config.loraAlpha).toBe(8);
    expect(fs.readFileSync(path.join(folder, 'notes.txt'), 'utf8')).toBe('mine');
    expect(fs.readdirSync(outer)).toEqual(['a']);
    fs.mkdirSync(path.join(outer, 'empty'));
    writePeftAdapter(path.join(outer, 'empty'), adapter());
    expect(readPeftAdapter(path.join(outer, 'empty')).modules).toHaveLength(1);
  });

  it('refuses to replace what is no adapter folder', () => {
    const outer = tempFolder();
    const folder = path.join(outer, 'home');
    fs.mkdirSync(folder);
    fs.writeFileSync(path.join(folder, 'thesis.txt'), 'years of work');
    expect(codeOf(() => writePeftAdapter(folder, adapter()))).toBe('ERR_PATH');
    const file = path.join(folder, 'thesis.txt');
    expect(codeOf(() => writePeftAdapter(file, adapter()))).toBe('ERR_PATH');
    expect(fs.readdirSync(outer)).toEqual(['home']);
    expect(fs.readFileSync(file, 'utf8')).toBe('years of work');
  });

  it('leaves the old adapter whole whichever system call fails', () => {
    const outer = tempFolder();
    const folder = path.join(outer, 'a');
    writePeftAdapter(folder, adapter());
    const before = readPeftAdapter(folder);
    const config = { r: 2, loraAlpha: 8, targetModules: ['q'] };
    for (const call of ['mkdirSync', 'openSync', 'writeSync', 'fsyncSync', 'renameSync'] as const) {
      for (let at = 1; at <= 2; at++) {
        const original = fs[call] as (...args: unknown[]) => unknown;
        let count = 0;
        const spy = vi.spyOn(fs, call as 'openSync').mockImplementation(((...args: unknown[]) => {
          if (++count === at) throw Object.assign(new Error('full'), { code: 'ENOSPC' });
          return original(...args);
        }) as never);
        let code: string;
        try {
          code = codeOf(() => writePeftAdapter(folder, adapter({ config })));
        } finally {
          spy.mockRestore();
        }
        expect([call, at, code]).toEqual([call, at, 'ERR_DISK_FULL']);
        expect(fs.readdirSync(outer)).toEqual(['a']);
        expect(readPeftAdapter(folder)).toEqual(before);
      }
    }
  });
});
