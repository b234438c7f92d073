// The harness of recorded models catches what it is for: every rule is applied, a value out of bounds breaks it, and so does
// one mistake in the description of a model.
import { describe, expect, it } from 'vitest';
import type { DecoderConfig, DecoderLayerConfig } from '../../lib/index.js';
import type { OracleModel } from '../oracle/decoder/model.js';
import { ModelCase, modelIds } from './models/cases.js';
import { checkModel, ModelRules } from './models/check-model.js';
import { oracleModel, runningOracle } from './models/oracle-runner.js';
import type { RunningModel, Values } from './models/runner.js';

/** A model that answers with the peer's recorded f32 results; one tensor may be changed. */
function recorded(golden: ModelCase, changed?: string): RunningModel {
  const of = (name: string): Float64Array => {
    const values = golden.numbers(name).slice();
    if (name === changed) {
      const atol = golden.rules.find((rule) => rule.tensor === name)?.atol ?? 0;
      const at = values.length - 1;
      values[at] = (values[at] as number) + 3 * atol + (atol === 0 ? 1 : 0);
    }
    return values;
  };
  const prefix = (batch: { readonly B: number }) => (batch.B === 1 ? 'packed.' : '');
  const adapters = [...golden.tensors.keys()].filter((name) => /^grad\..*lora_/.test(name));
  return {
    logits: (batch, adapted) => of(adapted ? `out.${prefix(batch)}logits` : 'out.base_logits'),
    losses: (batch) => ({
      loss: of(`out.${prefix(batch)}loss`)[0] as number,
      tokenLosses: of(`out.${prefix(batch)}token_losses`),
    }),
    gradients: (batch) => ({
      embedding: of(`grad.${prefix(batch)}embedding`),
      adapters: new Map(adapters.map((name) => [name.slice('grad.'.length), of(name)])),
    }),
    generate: () => ({ ids: of('out.generate.ids'), logits: of('out.generate.logits') }),
    train: () => [...of('out.train_losses')],
    dispose: () => {},
  };
}

describe('the rules of a recorded model', () => {
  it.each(modelIds)("%s: hold for the peer's own f32 results", async (id) => {
    const golden = new ModelCase(id);
    await checkModel(golden, recorded(golden), 'f32');
  });

  it('are each broken by one value that is out of bounds', async () => {
    const golden = new ModelCase('qwen3/untied_f32');
    const rules = golden.rules.filter(({ dtype }) => dtype === undefined);
    expect(rules.length).toBeGreaterThan(35);
    for (const { tensor } of rules) {
      await expect(checkModel(golden, recorded(golden, tensor), 'f32'), tensor).rejects.toThrow(
        tensor,
      );
    }
  });

  it('are each broken by a result of another length, or by one that is no number', () => {
    const golden = new ModelCase('qwen3/untied_f32');
    const check = (mine: Values) => new ModelRules(golden, 'f32').check('out.loss', mine);
    expect(() => check([])).toThrow('0 values, expected 1');
    expect(() => check([Number.NaN])).toThrow('is NaN');
  });

  it('fail a run that leaves one out', () => {
    const rules = new ModelRules(new ModelCase('qwen3/untied_f32'), 'f32');
    rules.check('out.loss', new ModelCase('qwen3/untied_f32').numbers('out.loss'));
    expect(() => rules.finish()).toThrow(/never applied: .*out.logits/);
  });

  it("of bf16 hold for the peer's bf16 results, and not for twice their error", () => {
    for (const id of modelIds) {
      const golden = new ModelCase(id);
      const mine = golden.numbers('aux.bf16.logits');
      const reference = golden.numbers('f64.logits');
      new ModelRules(golden, 'bf16').check('out.logits', mine);
      const worse = mine.map((value, i) => value + (value - (reference[i] as number)));
      expect(() => new ModelRules(golden, 'bf16').check('out.logits', worse), id).toThrow('rms');
    }
  });
});

/** The configuration with another attention in every layer, or in one. */
const attention =
  (change: (layer: DecoderLayerConfig, index: number) => object) =>
  (config: DecoderConfig): DecoderConfig => ({
    ...config,
    layers: config.layers.map((layer, index) => ({
      ...layer,
      attention: { ...layer.attention, ...change(layer, index) },
    })),
  });
const plain = { scaling: { type: 'default' } } as const;
const wider = (by: number) =>
  attention(({ attention: { window } }) => (window === undefined ? {} : { window: window + by }));
const without = (key: 'window' | 'softcap') => attention(() => ({ [key]: undefined }));

describe('one mistake in the description of a model', () => {
  it.each<[string, string, (config: DecoderConfig) => DecoderConfig]>([
    ['a window one larger', 'mistral/window5', wider(1)],
    ['a window one smaller', 'phi3/fused_window', wider(-1)],
    ['no window', 'qwen2/window_layers_rslora', without('window')],
    ['a window in every layer', 'qwen2/window_layers_rslora', attention(() => ({ window: 4 }))],
    [
      'local and global layers swapped',
      'gemma2/softcap_window',
      attention((layer) => ({ window: layer.attention.window === undefined ? 5 : undefined })),
    ],
    [
      'no rope scaling',
      'llama/gqa_llama3_tied',
      attention((layer) => ({ rotary: { ...layer.attention.rotary, ...plain } })),
    ],
    [
      'one base for local and global layers',
      'gemma3/default_rope_f32',
      attention((layer) => ({ rotary: { ...layer.attention.rotary, theta: 10_000 } })),
    ],
    [
      'a linear scaling of local layers too',
      'gemma3/two_bases_linear',
      attention((layer) => ({
        rotary: { ...layer.attention.rotary, scaling: { type: 'linear', factor: 8 } },
      })),
    ],
    [
      'longrope without its factor of attention',
      'phi3/partial_longrope_short',
      attention((layer) => ({
        rotary: {
          ...layer.attention.rotary,
          scaling: { ...layer.attention.rotary.scaling, attentionFactor: 1 },
        },
      })),
    ],
    ['no soft cap of scores', 'gemma2/softcap_window', without('softcap')],
    ['no soft cap of logits', 'gemma2/softcap_window', ({ finalSoftcap, ...config }) => config],
    [
      'a scale from head_dim',
      'gemma3/two_bases_linear',
      attention((layer) => ({ scale: layer.attention.headDim ** -0.5 })),
    ],
    [
      'norms without 1 +',
      'gemma2/softcap_window',
      (config) => ({ ...config, norm: { ...config.norm, plusOne: false } }),
    ],
    [
      'an epsilon of 1e-6',
      'qwen3/untied_f32',
      (config) => ({ ...config, norm: { ...config.norm, eps: 1e-6 } }),
    ],
    [
      'an embedding that is not scaled',
      'gemma3/default_rope_f32',
      (config) => ({ ...config, embeddingScale: 1 }),
    ],
    [
      'another gelu',
      'gemma3/default_rope_f32',
      (config) => ({
        ...config,
        layers: config.layers.map((layer) => ({ ...layer, mlp: { ...layer.mlp, gate: 'gelu' } })),
      }),
    ],
  ])('%s breaks %s', async (_, id, change) => {
    const golden = new ModelCase(id);
    const model = oracleModel(golden, golden.base);
    const changed = runningOracle({ ...model, config: change(model.config) });
    await expect(checkModel(golden, changed, 'f32')).rejects.toThrow('out.base_logits');
  });

  it.each<[string, string, string, (model: OracleModel) => OracleModel]>([
    [
      'norms of heads left out',
      'qwen3/qknorm_headdim_tied',
      'out.base_logits',
      (model) => ({
        ...model,
        places: {
          ...model.places,
          layers: model.places.layers.map(({ qNorm, kNorm, ...layer }) => layer),
        },
      }),
    ],
    [
      'biases left out',
      'qwen2/bias_tied',
      'out.base_logits',
      (model) => ({
        ...model,
        places: {
          ...model.places,
          layers: model.places.layers.map((layer) => ({
            ...layer,
            qkv: layer.qkv.map(({ bias, ...place }) => place),
          })),
        },
      }),
    ],
    [
      'rsLoRA scaled as LoRA',
      'qwen2/window_layers_rslora',
      'out.logits',
      (model) => ({
        ...model,
        adapters: new Map(
          [...model.adapters].map(([name, lora]) => [name, { ...lora, scaling: 1 }]),
        ),
      }),
    ],
  ])('%s breaks %s', async (_, id, tensor, change) => {
    const golden = new ModelCase(id);
    const changed = runningOracle(change(oracleModel(golden, golden.base)));
    await expect(checkModel(golden, changed, 'f32')).rejects.toThrow(tensor);
  });

  it('documents that see each other break the packed row', async () => {
    for (const id of modelIds) {
      const golden = new ModelCase(id);
      const model = runningOracle(oracleModel(golden, golden.base));
      const { packed } = golden;
      const together = { ...packed, segments: new Int32Array(packed.ids.length) };
      const rules = new ModelRules(golden, 'f32');
      const logits = await model.logits(together, true);
      expect(() => rules.check('out.packed.logits', logits), id).toThrow('out.packed.logits');
    }
  });
});
