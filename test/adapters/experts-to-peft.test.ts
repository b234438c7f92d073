// Experts of one parameter, written as PEFT has them: what is read comes back to the bit.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import {
  type Adapter,
  adapterFromPeft,
  adapters,
  type ExpertsPlace,
  expertsFromPeft,
  expertsToPeft,
  type PeftFolder,
  readAdapterFolder,
  scope,
  type Tensor,
  writeAdapterFolder,
} from '../../lib/index.js';
import { namesIn, raw, wave } from './peft-folder.js';

const [E, r, K, N] = [3, 2, 5, 4];
const device = 'cpu' as const;
const module = 'layers.0.mlp.experts';
const place: ExpertsPlace = { inFeatures: K, outFeatures: N, device };
const folderOf = (tensors: Parameters<typeof namesIn>[1], fields: object = {}): PeftFolder => ({
  config: { peft_type: 'LORA', r, lora_alpha: 6, use_rslora: false, ...fields },
  tensors: namesIn(module, tensors),
});
const pair = (inner: number, outer: number, phase = 0, rank = r) => ({
  'lora_A.weight': raw([rank * E, inner], wave(rank * E * inner, phase)),
  'lora_B.weight': raw([outer, rank * E], wave(outer * rank * E, phase + 1)),
});
const inside = (tensors: object) =>
  Object.fromEntries(Object.entries(tensors).map(([key, value]) => [`base_layer.${key}`, value]));

const root = mkdtempSync(path.join(tmpdir(), 'lowrank-experts-'));
afterAll(() => rmSync(root, { recursive: true }));

function expectSame(written: PeftFolder, folder: PeftFolder): void {
  expect([...written.tensors.keys()].sort()).toEqual([...folder.tensors.keys()].sort());
  for (const [name, { dtype, shape, data }] of folder.tensors)
    expect(written.tensors.get(name), name).toEqual({ dtype, shape, data });
}

describe('experts of a parameter', () => {
  it.each([
    ['on their inputs', pair(K, N), false],
    ['on their outputs', pair(N, K), true],
  ] as const)('are written with lora_A %s', async (_, tensors, transposed) => {
    await scope(async () => {
      const folder = folderOf(tensors);
      const experts = expertsFromPeft(folder, module, place);
      const parameter = { parameter: 'gate_up_proj', experts, transposed };
      const written = await expertsToPeft(new Map([[module, [parameter]]]));
      expectSame(written, folder);
      expect(written.config).toEqual({
        peft_type: 'LORA',
        target_modules: [],
        target_parameters: [`${module}.gate_up_proj`],
        r,
        lora_alpha: 6,
        use_rslora: false,
        lora_dropout: 0,
      });
    });
  });

  it.each(['bf16', 'f16'] as const)('of %s keep their bits', async (dtype) => {
    await scope(async () => {
      const experts = expertsFromPeft(folderOf(pair(N, K)), module, { ...place, dtype });
      const parameter = { parameter: 'w', experts, transposed: true };
      const written = await expertsToPeft(new Map([[module, [parameter]]]));
      const a = written.tensors.get(`base_model.model.${module}.lora_A.weight`);
      expect([a?.dtype, a?.shape]).toEqual([dtype.toUpperCase(), [r * E, N]]);
      const again = expertsFromPeft(written, module, { ...place, dtype });
      for (const [e, { parameters }] of experts.entries())
        for (const [name, tensor] of Object.entries(parameters))
          expect(await again[e]?.parameters[name]?.readBits()).toEqual(await tensor.readBits());
    });
  });

  it('of two parameters, of other ranks, lie one in the other, beside layers of the same folder', async () => {
    await scope(async () => {
      const tensors = { ...pair(K, N), ...inside(pair(7, 6, 3, 3)) };
      const rank_pattern = { down_proj: 3 };
      const folder = folderOf(tensors, { rank_pattern, use_rslora: true });
      const outer = expertsFromPeft(folder, module, { ...place, parameter: 'gate_up_proj' });
      const sizes = { inFeatures: 7, outFeatures: 6, device };
      const inner = expertsFromPeft(folder, module, { ...sizes, parameter: 'down_proj' });
      const attention = adapters.lora.create({ ...sizes, r: 2, loraAlpha: 4, rslora: true });
      const modules = new Map([
        [
          module,
          [
            { parameter: 'gate_up_proj', experts: outer },
            { parameter: 'down_proj', experts: inner },
          ],
        ],
      ]);
      const others = new Map([['layers.0.q_proj', attention as unknown as Adapter]]);
      const written = await expertsToPeft(modules, others);
      expect(written.config).toMatchObject({
        target_modules: ['layers.0.q_proj'],
        target_parameters: [`${module}.gate_up_proj`, `${module}.down_proj`],
        r: 2,
        rank_pattern: { '^layers\\.0\\.mlp\\.experts\\.down_proj': 3 },
        lora_alpha: 6,
        alpha_pattern: { '^layers\\.0\\.q_proj': 4 },
        use_rslora: true,
      });
      for (const [name, { data }] of folder.tensors)
        expect(written.tensors.get(name)?.data, name).toEqual(data);
      // Through a file.
      await writeAdapterFolder(path.join(root, 'both'), written, { task_type: 'CAUSAL_LM' });
      const stored = readAdapterFolder(path.join(root, 'both'));
      expect(stored.config).toMatchObject({
        task_type: 'CAUSAL_LM',
        target_modules: ['layers.0.q_proj'],
        target_parameters: [`${module}.down_proj`, `${module}.gate_up_proj`],
      });
      const back = expertsFromPeft(stored, module, { ...sizes, parameter: 'down_proj' });
      expect(back.map(({ config }) => config)).toEqual(inner.map(({ config }) => config));
      expect(back[2]?.parameters.loraB?.readSync()).toEqual(inner[2]?.parameters.loraB?.readSync());
      const q = adapterFromPeft(stored, 'layers.0.q_proj', sizes);
      expect(q.config).toEqual(attention.config);
      expect((q.parameters.loraA as Tensor).readSync()).toEqual(
        (attention.parameters.loraA as Tensor).readSync(),
      );
    });
  });

  const lora = (more: object = {}) =>
    adapters.lora.create({ ...place, r, ...more }) as unknown as Adapter;
  const one = (experts: unknown, parameter: unknown = 'w') =>
    new Map([[module, [{ experts, parameter }]]]);

  it.each([
    ['no map', () => ({}), 'ERR_TYPE', /modules must be a Map/],
    ['no modules', () => new Map(), 'ERR_VALUE', /modules must be at least one, got none/],
    [
      'no parameters',
      () => new Map([[module, []]]),
      'ERR_VALUE',
      /at least one parameter, got none/,
    ],
    ['no list', () => new Map([[module, lora()]]), 'ERR_TYPE', /experts must be an array/],
    ['no experts', () => one([]), 'ERR_VALUE', /w\.experts must be at least one, got none/],
    ['no array', () => one(lora()), 'ERR_TYPE', /w\.experts must be an array/],
    ['no name', () => one([lora()], 3), 'ERR_TYPE', /\[0\]\.parameter must be a string/],
    [
      'a parameter twice',
      () => new Map([[module, [0, 1].map(() => ({ parameter: 'w', experts: [lora()] }))]]),
      'ERR_VALUE',
      /named once, got layers\.0\.mlp\.experts\.w twice/,
    ],
    [
      'another rank',
      () => one([lora(), lora({ r: 3 })]),
      'ERR_VALUE',
      /experts\[1\] must be like experts\[0\] \(lora of K = 5, N = 4, r = 2, .*, got .*r = 3/,
    ],
    ['another dtype', () => one([lora(), lora({ dtype: 'f16' })]), 'ERR_VALUE', /f32\), got .*f16/],
    ['another alpha', () => one([lora(), lora({ loraAlpha: 3 })]), 'ERR_VALUE', /got .*= 3, f32/],
    ['dropout', () => one([lora({ dropout: 0.1 })]), 'ERR_UNSUPPORTED', /got .*dropout 0\.1/],
    ['a bias', () => one([lora({ loraBias: true })]), 'ERR_UNSUPPORTED', /loraBias true/],
    ['a kernel', () => one([lora({ kernel: [5] })]), 'ERR_UNSUPPORTED', /kernel \[5\]/],
  ] as const)('are refused with %s', async (_, modules, code, text) => {
    await scope(async () => {
      const call = async () => expertsToPeft(modules() as never);
      const refused = { code, message: expect.stringMatching(text) };
      await expect(call()).rejects.toThrow(expect.objectContaining(refused));
    });
  });

  it('of another method, or beside layers that PEFT would not have with them, are refused', async () => {
    await scope(async () => {
      const ia3 = adapters.ia3.create(place) as unknown as Adapter;
      await expect(expertsToPeft(one([ia3]) as never)).rejects.toThrow(/adapter of lora, got ia3/);
      const beside = (name: string, adapter: Adapter) =>
        expertsToPeft(one([lora()]) as never, new Map([[name, adapter]]));
      await expect(beside('q', ia3)).rejects.toThrow(/q must be an adapter of lora, got ia3/);
      await expect(beside('q', lora({ dropout: 0.5 }))).rejects.toThrow(/without dropout.*0\.5/);
      await expect(beside(module, lora())).rejects.toThrow(/adapters must be other modules/);
      await expect(beside('q', lora({ rslora: true }))).rejects.toThrow(/rslora must be the same/);
    });
  });
});
