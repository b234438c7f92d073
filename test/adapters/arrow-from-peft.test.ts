// PEFT's Arrow models from their folders: what the router's config says, and what is refused. Values are those of arrowExperts,
// which the golden cases check.
import { describe, expect, it } from 'vitest';
import {
  type ArrowFolders,
  adapters,
  arrowExperts,
  arrowFromPeft,
  LoraAdapter,
  memoryUsage,
  type PeftFolder,
  scope,
  Tensor,
} from '../../lib/index.js';
import { namesIn, raw, wave } from './peft-folder.js';

const [K, N, M] = [8, 6, 5];
const place = { inFeatures: K, outFeatures: N, device: 'cpu' as const };
const module = 'layers.0.up';
const parts = (r: number, seed: number) => ({
  'lora_A.weight': raw([r, K], wave(r * K, seed)),
  'lora_B.weight': raw([N, r], wave(N * r, seed + 20)),
});
const folder = (r: number, seed: number, config = {}): PeftFolder => ({
  config: { peft_type: 'LORA', r, lora_alpha: 3 + seed, ...config },
  tensors: namesIn(module, parts(r, seed)),
});
const own = (r: number, seed: number, rslora = false) => {
  const { 'lora_A.weight': a, 'lora_B.weight': b } = parts(r, seed);
  const loraA = Tensor.from(a.data, a.shape, { device: 'cpu' });
  const loraB = Tensor.from(b.data, b.shape, { device: 'cpu' });
  return new LoraAdapter({ loraA, loraB, loraAlpha: 3 + seed, rslora });
};
const router = (arrow_config: unknown) => ({ config: { peft_type: 'LORA', arrow_config } });
const outputs = (adapter: ReturnType<typeof arrowFromPeft>): number[] => {
  const x = Tensor.from(wave(M * K, 3), [M, K], { device: 'cpu' });
  const w = Tensor.from(wave(N * K, 4), [N, K], { device: 'cpu' });
  return [...adapter.forward(x, w, { training: false }).y.readSync()];
};

describe('an Arrow model', () => {
  it.each([
    ['its own settings', { top_k: 2, router_temperature: 0.5, rng_seed: 9 }, 2, 0.5, 9],
    ['PEFT’s defaults and exact prototypes', {}, 3, 1, undefined],
  ] as const)('is routed by %s', (_, config, topK, temperature, seed) => {
    scope(() => {
      const experts = [folder(2, 1), folder(3, 2, { use_rslora: true }), folder(1, 3)];
      const adapter = arrowFromPeft({ router: router(config), experts }, module, place);
      const { tensors, settings } = arrowExperts(
        [own(2, 1), own(3, 2, true), own(1, 3)],
        seed === undefined ? {} : { iteration: { seed } },
      );
      expect(adapter.config).toMatchObject({ ranks: [2, 3, 1], topK, temperature });
      const expected = adapters.arrow.from(tensors, { ...settings, topK, temperature });
      expect(outputs(adapter)).toEqual(outputs(expected as unknown as typeof adapter));
    });
  });

  it('has what its general adapters know taken off, and leaves nothing behind', () => {
    const before = memoryUsage('cpu').liveTensors;
    scope(() => {
      const config = {
        top_k: 1,
        use_gks: true,
        task_adapter_names: ['task_0', 'task_1'],
        gks_adapter_names: ['gks_0'],
      };
      const folders = {
        router: router(config),
        experts: [folder(2, 1), folder(2, 2)],
        general: [folder(2, 7)],
      };
      const adapter = arrowFromPeft(folders, module, place);
      const kept = memoryUsage('cpu').liveTensors - before;
      const given = { general: [own(2, 7)] };
      const { tensors, settings } = arrowExperts([own(2, 1), own(2, 2)], given);
      const made = memoryUsage('cpu').liveTensors;
      const expected = adapters.arrow.from(tensors, { ...settings, topK: 1 });
      // Three tensors, and what the method prepares: nothing of the experts'.
      expect(kept).toBe(3 + memoryUsage('cpu').liveTensors - made);
      expect(outputs(adapter)).toEqual(outputs(expected as unknown as typeof adapter));
    });
    expect(memoryUsage('cpu').liveTensors).toBe(before);
  });

  const two = [folder(2, 1), folder(2, 2)];
  const dora = folder(2, 1, { use_dora: true });
  it.each([
    ['no config', { router: router(null), experts: two }, 'ERR_TYPE', /arrow_config must be/],
    ['no folders', { router: router({ top_k: 1 }) }, 'ERR_TYPE', /experts must be an array/],
    [
      'none',
      { router: router({ top_k: 1 }), experts: [] },
      'ERR_VALUE',
      /experts must be at least/,
    ],
    [
      'fewer than are named',
      { router: router({ task_adapter_names: ['a', 'b', 'c'] }), experts: two },
      'ERR_VALUE',
      /experts must be 3 folders, as arrow_config names, got 2/,
    ],
    [
      'use_gks and none',
      { router: router({ use_gks: true }), experts: two },
      'ERR_VALUE',
      /general must be given \(use_gks is true\), got 0/,
    ],
    [
      'general ones that are not taken off',
      { router: router({}), experts: two, general: two },
      'ERR_VALUE',
      /general must be none \(use_gks is false\), got 2/,
    ],
    ['too large a topK', { router: router({}), experts: two }, 'ERR_VALUE', /topK.*0 to 2.*3/],
    [
      'another module’s folder',
      { router: router({ top_k: 1 }), experts: [{ ...two[0], tensors: new Map() }] },
      'ERR_FILE',
      /layers\.0\.up must have the tensor lora_A/,
    ],
    [
      'a bias of the up-projection',
      {
        router: router({ top_k: 1 }),
        experts: [
          {
            config: { peft_type: 'LORA', r: 2, lora_bias: true },
            tensors: namesIn(module, { ...parts(2, 1), 'lora_B.bias': raw([N]) }),
          },
        ],
      },
      'ERR_UNSUPPORTED',
      /without loraBias/,
    ],
    [
      'another method',
      {
        router: router({ top_k: 1 }),
        experts: [
          {
            ...dora,
            tensors: namesIn(module, { ...parts(2, 1), lora_magnitude_vector: raw([N]) }),
          },
        ],
      },
      'ERR_UNSUPPORTED',
      /experts\[0\] must be lora of a linear layer, got dora/,
    ],
  ])('is refused with %s', (_, folders, code, text) => {
    const refused = expect(() => arrowFromPeft(folders as unknown as ArrowFolders, module, place));
    refused.toThrow(expect.objectContaining({ code }));
    refused.toThrow(text);
  });
});
