// Qwen3-MoE against the float64 oracle, which recorded models of two other architectures with experts hold to their peers:
// both kinds of gates, experts one by one.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  Decoder,
  DecoderWeights,
  ModelTape,
  openHfModel,
  type RawTensor,
  rawToFloat32,
  scope,
  Tensor,
  writeSafetensors,
} from '../../lib/index.js';
import { decoderPlaces, tensorShapes } from '../../lib/model/decoder-tensors.js';
import { parseDecoderConfig } from '../../lib/model/read-config.js';
import { decoderPass } from '../oracle/decoder/model.js';
import { crossEntropy, lossAndGradients } from '../oracle/decoder/training.js';
import { source } from '../oracle/inputs.js';

const [T, vocab] = [11, 50];
const kDevices = ['cpu', 'reference', 'cuda-emulated'] as const;

function config(normalised: boolean) {
  return {
    architectures: ['Qwen3MoeForCausalLM'],
    model_type: 'qwen3_moe',
    vocab_size: vocab,
    hidden_size: 24,
    intermediate_size: 99,
    moe_intermediate_size: 14,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    head_dim: 8,
    num_experts: 6,
    num_experts_per_tok: 3,
    norm_topk_prob: normalised,
    tie_word_embeddings: false,
  };
}

function tensorsOf(fields: ReturnType<typeof config>): Map<string, RawTensor> {
  const from = source(11);
  const shapes = tensorShapes(decoderPlaces(parseDecoderConfig('test', 'config.json', fields)));
  return new Map(
    [...shapes].map(([name, shape]) => {
      const bound = shape.length === 1 ? 0.3 : 1.7 / Math.sqrt(shape.at(-1) as number);
      const center = shape.length === 1 ? 1 : 0;
      const size = shape.reduce((a, b) => a * b, 1);
      const draw = () => center + bound * (2 * from.uniform() - 1);
      return [name, { dtype: 'F32', shape, data: Float32Array.from({ length: size }, draw) }];
    }),
  );
}

describe.each([true, false])('gates that sum to 1: %s', (normalised) => {
  const fields = config(normalised);
  const tensors = tensorsOf(fields);
  const ids = Int32Array.from({ length: T }, (_, i) => (13 * i + 5) % vocab);

  it.each(kDevices)('logits and the gradient of the embedding on %s', (device) => {
    const folder = mkdtempSync(join(tmpdir(), 'lowrank-qwen-'));
    try {
      writeFileSync(join(folder, 'config.json'), JSON.stringify(fields));
      writeSafetensors(join(folder, 'model.safetensors'), tensors);
      const model = openHfModel(folder);
      const known = new Map(
        [...tensors].map(([name, raw]) => [name, Float64Array.from(rawToFloat32(raw))]),
      );
      const oracle = {
        config: model.decoder,
        places: model.places,
        tensor: (name: string) => known.get(name) as Float64Array,
        adapters: new Map(),
      };
      const batch = {
        B: 1,
        T,
        ids,
        labels: ids,
        positions: Int32Array.from(ids.keys()),
        segments: new Int32Array(T),
      };
      const wanted = decoderPass(oracle, batch).logits;
      const { embedding } = lossAndGradients(oracle, batch).gradients;
      const { loss: loss64 } = crossEntropy(wanted, batch);
      scope(() => {
        using decoder = new Decoder(model.decoder, DecoderWeights.load(model, { device }));
        const tape = new ModelTape();
        const call = { inputGradient: true };
        const pass = decoder.forward(tape, { B: 1, T, ids }, call);
        const logits = decoder.logits(tape, pass.features).tensor.readSync();
        const near = (name: string, mine: Float32Array, values: Float64Array) => {
          const limit = 2e-5 * Math.max(...values.map(Math.abs));
          values.forEach((value, i) => {
            if (!(Math.abs((mine[i] as number) - value) <= limit)) {
              throw new Error(`${name}[${i}]: ${mine[i]}, expected ${value}`);
            }
          });
        };
        near('logits', logits, wanted.values);
        const targets = ids.map((_, i) => (i + 1 < T ? (ids[i + 1] as number) : -1));
        const { loss } = decoder.loss(tape, pass.features, targets, { scale: 1 / (T - 1) });
        expect(loss.tensor.readSync()[0]).toBeCloseTo(loss64, 5);
        const one = Tensor.from([1], [1], { device });
        const [gradient] = tape.gradients('loss', loss, one, [pass.embedded]);
        near('gradient', (gradient as Tensor).readSync(), embedding.values);
      });
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});
