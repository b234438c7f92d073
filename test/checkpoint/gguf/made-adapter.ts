/** LoRA adapters for the tests of GGUF's, as PEFT folders. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  type AdapterToGgufOptions,
  adapterToGguf,
  encodeGguf,
  type GgufFile,
  LowrankError,
  openGguf,
  type PeftAdapter,
  type PeftAdapterParts,
  type RawTensor,
  readPeftAdapter,
  writePeftAdapter,
} from '../../../lib/index.js';
import { generator } from '../fuzz.js';

export const kLlama = { architecture: 'llama', heads: 4, kvHeads: 2 };

/** Writes a PEFT folder and reads it, as a user's adapter comes. */
export function throughPeft(parts: PeftAdapterParts): PeftAdapter {
  const parent = mkdtempSync(join(tmpdir(), 'lowrank-test-'));
  try {
    const folder = join(parent, 'adapter');
    writePeftAdapter(folder, parts);
    return readPeftAdapter(folder, { embeddings: true });
  } finally {
    rmSync(parent, { recursive: true });
  }
}

export const raw = (
  shape: number[],
  seed: number,
  dtype: RawTensor['dtype'] = 'F32',
): RawTensor => {
  const random = generator(seed);
  const values = Float32Array.from(
    { length: shape.reduce((a, b) => a * b, 1) },
    () => random(2001) / 1000 - 1,
  );
  if (dtype === 'F64') return { dtype, shape, data: Float64Array.from(values) };
  if (dtype === 'F32') return { dtype, shape, data: values };
  // Any 16 bits that are a small number in both types.
  return { dtype, shape, data: Uint16Array.from(values, (v) => (v < 0 ? 0x8000 : 0) | 0x3c00) };
};

export const kQ = 'model.layers.0.self_attn.q_proj';
export const kUp = 'model.layers.0.mlp.up_proj';
export const kEmbed = 'model.embed_tokens';

/** An adapter of q and up, and of the embedding, with ranks of their own. */
export function made(
  config: Partial<PeftAdapterParts['config']> = {},
  ranks = [4, 4],
): PeftAdapterParts {
  const [q = 4, up = 4] = ranks;
  return {
    config: { r: 4, loraAlpha: 8, targetModules: ['q_proj', 'up_proj', 'embed_tokens'], ...config },
    modules: [
      { module: kQ, loraA: raw([q, 64], 1), loraB: raw([32, q], 2) },
      { module: kUp, loraA: raw([up, 64], 3), loraB: raw([96, up], 4) },
      { module: kEmbed, loraA: raw([4, 50], 5), loraB: raw([64, 4], 6), embedding: true },
    ],
  };
}

export const fileOf = (content: Parameters<typeof encodeGguf>[0]): GgufFile =>
  openGguf(encodeGguf(content));
export const converted = (parts: PeftAdapterParts, options: AdapterToGgufOptions = {}): GgufFile =>
  fileOf(adapterToGguf(throughPeft(parts), kLlama, options));

export const errorOf = (body: () => unknown): LowrankError => {
  try {
    body();
  } catch (error) {
    if (error instanceof LowrankError || error instanceof TypeError) return error as LowrankError;
    throw error;
  }
  throw new Error('nothing was thrown');
};
