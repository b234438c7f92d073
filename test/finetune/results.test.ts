/** What a fine-tune leaves is of use: each method's folder gives the trained logits, generates, and merges into its model. */

import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { mergeIntoModel } from '../../lib/cli/merge/merge-model.js';
import type { FinetuneOptions } from '../../lib/finetune/finetune.js';
import { adapterMethods, ModelTape, scope } from '../../lib/index.js';
import { Decoder, type DecoderCall } from '../../lib/model/decoder.js';
import { DecoderWeights } from '../../lib/model/decoder-weights.js';
import { generate } from '../../lib/model/generate.js';
import { openModel } from '../../lib/model/gguf/open-model.js';
import { loadDecoderAdapters } from '../../lib/model/load-adapters.js';
import { writeAdapter } from '../../lib/trained/write-adapter.js';
import { settingsOf } from '../adapters/settings.js';
import { temporaryFolder, tinyTrainer } from './setup.js';

const square = { hiddenSize: 48, numKeyValueHeads: 4, headDim: 12 };
/** Of whole blocks of every format. */
const blocks = { ...{ hiddenSize: 128, intermediateSize: 128 }, numKeyValueHeads: 4, headDim: 32 };
const targets = ['q_proj', 'k_proj'] as const;
const prompt = [84, 104, 101, 32, 99, 97, 116];

function logitsOf(decoder: Decoder, call: DecoderCall = {}): Float32Array {
  return scope(() => {
    const tape = new ModelTape({ recording: false });
    const tokens = { ids: Int32Array.from(prompt), B: 1, T: prompt.length };
    const { features } = decoder.forward(tape, tokens, call);
    return decoder.logits(tape, features).tensor.readSync();
  });
}

/** Largest difference, relative to the largest logit. */
function apart(a: Float32Array, b: Float32Array): number {
  const scale = Math.max(...a.map(Math.abs));
  return Math.max(...a.map((z, i) => Math.abs(z - (b[i] as number)))) / scale;
}

/** A trained adapter over a dense base, its folder, and the logits of both. */
async function trained(method: string, settings: object, sizes: object = square) {
  const adapter = { method, targets, ...settings };
  const tiny = tinyTrainer(sizes, { format: 'none' }, { adapter, lr: 0.05 });
  const { trainer, decoder, model } = tiny;
  for (let step = 0; step < 3; step++) await trainer.train();
  trainer.adapters.refresh();
  const out = path.join(temporaryFolder(), 'adapter');
  const options = { out, model: model.folder, train: { steps: 3 } } as FinetuneOptions;
  await writeAdapter(options, trainer.adapters);
  const logits = logitsOf(decoder, { adapters: trainer.adapters.byModule });
  return { tiny, out, logits, base: logitsOf(decoder), folder: model.folder };
}

/** The logits of a model on disk. */
function logitsAt(file: string): Float32Array {
  const model = openModel(file);
  const decoder = new Decoder(model.decoder, DecoderWeights.load(model, { device: 'cpu' }));
  try {
    return logitsOf(decoder);
  } finally {
    decoder.dispose();
  }
}

/** What they train is a bias, for which Llama has no place. */
const kBiased = ['beft'];

const methods = adapterMethods.filter(({ definition }) => definition.inputs === undefined);

describe.each(methods.map(({ method }) => method))('%s', (name) => {
  it('reads back with its logits, generates, and merges', async () => {
    const { settings } = settingsOf(name);
    const { tiny, out, logits, base, folder } = await trained(name, settings);
    const { decoder } = tiny;
    expect(apart(logits, base), 'training moves the logits').toBeGreaterThan(1e-4);
    const read = loadDecoderAdapters(decoder, out);
    expect(apart(logits, logitsOf(decoder, read))).toBeLessThan(1e-6);
    const ids: number[] = [];
    const greedy = { ...read, temperature: 0, maxTokens: 5, eosIds: [] };
    for await (const id of generate(decoder, prompt, greedy)) ids.push(id);
    const last = logits.subarray(-decoder.config.vocabSize);
    expect(ids.length).toBe(5);
    expect(ids[0]).toBe(last.indexOf(Math.max(...last)));
    const merged = path.join(temporaryFolder(), 'merged');
    const request = { model: folder, adapter: out, out: merged, format: 'f32' };
    const method = methods.find(({ method: own }) => own === name);
    if (method?.definition.mergeable === false || kBiased.includes(name)) {
      await expect(mergeIntoModel(request, () => {})).rejects.toMatchObject({
        code: 'ERR_UNSUPPORTED',
      });
      expect(() => openModel(merged)).toThrow();
    } else {
      await mergeIntoModel(request, () => {});
      expect(apart(logits, logitsAt(merged))).toBeLessThan(2e-5);
    }
    for (const adapter of read.adapters.values()) adapter.dispose();
    tiny.dispose();
  });
});

/** What rounding each weight to a format by this relative error does to the logits, with room for two blocks. */
const formats: readonly (readonly [out: string, format: string, bound: number])[] = [
  ['folder', 'bf16', 0.02],
  ['folder', 'f16', 0.003],
  ['folder', 'int8', 0.03],
  ['folder', 'nf4', 0.5],
  ['model.gguf', 'f32', 2e-5],
  ['model.gguf', 'bf16', 0.02],
  ['model.gguf', 'q8_0', 0.03],
];

describe('a merged model', () => {
  it.each(formats)(
    '%s in %s has the logits of the adapter on its base',
    async (to, format, bound) => {
      const { tiny, out, logits, base, folder } = await trained(
        'lora',
        { r: 4, loraAlpha: 8 },
        blocks,
      );
      const target = path.join(temporaryFolder(), to);
      const request = { model: folder, adapter: out, out: target, format };
      const { error = 0, layers } = await mergeIntoModel(request, () => {});
      expect(layers).toBe(4);
      const merged = logitsAt(target);
      expect(apart(logits, merged)).toBeLessThan(bound);
      // The rounding of the weights, and what training did, tell the two apart.
      if (format !== 'nf4') expect(apart(base, merged)).toBeGreaterThan(2 * apart(logits, merged));
      if (format !== 'f32') expect(error).toBeGreaterThan(1e-5);
      tiny.dispose();
    },
  );
});
