/**
 * GGUF files of recorded model folders, as llama.cpp's converter writes them: keys by hand for each architecture, values by its rules.
 */
import { cpSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { isBlockType } from '../../../lib/checkpoint/gguf/blocks/parts.js';
import {
  type GgufTensorSource,
  type GgufType,
  type GgufValue,
  hfToGguf,
  openHfModel,
  quantizeToGguf,
  writeGguf,
} from '../../../lib/index.js';
import type { DecoderLayerConfig } from '../../../lib/model/config/decoder-config.js';
import { tempFolder } from '../../checkpoint/raw-file.js';
import { ModelCase } from '../../golden/models/cases.js';

export const u32 = (value: number): GgufValue => ({ type: 'u32', value });
export const f32 = (value: number): GgufValue => ({ type: 'f32', value: Math.fround(value) });
export const text = (value: string): GgufValue => ({ type: 'string', value });
export const flags = (value: boolean[]): GgufValue => ({ type: 'array', of: 'bool', value });

/** What a file of a recorded folder has beside its tensors. */
export interface GgufCase {
  readonly id: string;
  readonly architecture: string;
  readonly keys: Readonly<Record<string, GgufValue>>;
  /** Lists of divisors of the frequencies. */
  readonly factors?: Readonly<Record<string, readonly number[]>>;
  /** Fields of config.json that the file cannot say otherwise. */
  readonly config?: Readonly<Record<string, unknown>>;
}

const sizes = (
  context: number,
  hidden: number,
  inner: number,
  layers: number,
  heads: number,
  kvHeads: number,
) => ({
  context_length: u32(context),
  embedding_length: u32(hidden),
  feed_forward_length: u32(inner),
  block_count: u32(layers),
  'attention.head_count': u32(heads),
  'attention.head_count_kv': u32(kvHeads),
});

/** The factors of Llama 3.1 for heads of 12, theta 500,000, factor 8 and an original length of 32. */
function llama3Factors(): number[] {
  return Array.from({ length: 6 }, (_, i) => {
    const wave = 2 * Math.PI * 500_000 ** (i / 6);
    if (wave < 32 / 4) return 1;
    if (wave > 32) return 8;
    const smooth = (32 / wave - 1) / 3;
    return 1 / ((1 - smooth) / 8 + smooth);
  });
}

export const ggufCases: readonly GgufCase[] = [
  {
    id: 'llama/mha_untied_f32',
    architecture: 'llama',
    keys: { ...sizes(64, 32, 45, 2, 4, 4), 'rope.dimension_count': u32(8) },
  },
  {
    id: 'llama/gqa_llama3_tied',
    architecture: 'llama',
    keys: {
      ...sizes(128, 48, 77, 2, 6, 2),
      'attention.key_length': u32(12),
      'rope.freq_base': f32(5e5),
    },
    factors: { 'rope_freqs.weight': llama3Factors() },
  },
  {
    id: 'llama/mqa_linear_bias_sharded',
    architecture: 'llama',
    keys: {
      ...sizes(64, 40, 51, 3, 5, 1),
      'rope.scaling.type': text('linear'),
      'rope.scaling.factor': f32(2.5),
    },
  },
  {
    id: 'mistral/window5',
    architecture: 'llama',
    keys: {
      ...sizes(64, 48, 61, 2, 4, 2),
      'attention.key_length': u32(16),
      'attention.sliding_window': u32(5),
    },
  },
  {
    id: 'qwen2/bias_tied',
    architecture: 'qwen2',
    keys: { ...sizes(64, 48, 70, 2, 3, 1), 'rope.freq_base': f32(1e6) },
  },
  {
    id: 'qwen2/window_layers_rslora',
    architecture: 'qwen2',
    keys: {
      ...sizes(64, 32, 43, 3, 4, 2),
      'attention.sliding_window': u32(4),
      'attention.sliding_window_pattern': flags([false, true, true]),
    },
  },
  {
    id: 'qwen3/qknorm_headdim_tied',
    architecture: 'qwen3',
    keys: {
      ...sizes(64, 40, 57, 2, 4, 2),
      'attention.key_length': u32(16),
      'rope.freq_base': f32(1e6),
    },
  },
  {
    id: 'qwen3/untied_f32',
    architecture: 'qwen3',
    keys: {
      ...sizes(64, 32, 37, 2, 4, 1),
      'attention.key_length': u32(12),
      'attention.value_length': u32(12),
    },
  },
  {
    id: 'phi3/fused_window',
    architecture: 'phi3',
    keys: { ...sizes(64, 48, 53, 2, 4, 2), 'attention.sliding_window': u32(7) },
  },
  {
    id: 'phi3/partial_longrope_short',
    architecture: 'phi3',
    keys: {
      ...sizes(256, 64, 58, 2, 4, 4),
      'rope.dimension_count': u32(12),
      'rope.scaling.original_context_length': u32(32),
      'rope.scaling.attn_factor': f32(Math.sqrt(1 + Math.log(8) / Math.log(32))),
      'attention.sliding_window': u32(0),
    },
    factors: {
      'rope_factors_long.weight': [1.1, 1.9, 2.7, 4, 5.5, 7.5],
      'rope_factors_short.weight': [1, 1.03, 1.1, 1.25, 1.4, 1.8],
    },
  },
  {
    id: 'gemma2/softcap_window',
    architecture: 'gemma2',
    keys: {
      ...sizes(64, 48, 67, 3, 4, 2),
      'attention.key_length': u32(16),
      'attention.value_length': u32(16),
      'attention.sliding_window': u32(5),
      attn_logit_softcapping: f32(4),
      final_logit_softcapping: f32(5),
    },
    // llama.cpp takes the size of a head.
    config: { query_pre_attn_scalar: 16 },
  },
  {
    id: 'gemma3/default_rope_f32',
    architecture: 'gemma3',
    keys: {
      ...sizes(64, 32, 39, 3, 2, 1),
      'attention.key_length': u32(24),
      'attention.sliding_window': u32(6),
      'attention.sliding_window_pattern': u32(2),
      'rope.freq_base': f32(1e6),
    },
  },
  {
    id: 'gemma3/two_bases_linear',
    architecture: 'gemma3',
    keys: {
      ...sizes(64, 48, 59, 4, 4, 2),
      'attention.key_length': u32(16),
      'attention.sliding_window': u32(4),
      'attention.sliding_window_pattern': u32(3),
      'rope.freq_base': f32(1e6),
      'rope.freq_base_swa': f32(1e4),
      'rope.scaling.type': text('linear'),
      'rope.scaling.factor': f32(8),
    },
    config: { query_pre_attn_scalar: 16 },
  },
];

/** The model folder of a case, with its changes to config.json. */
export function folderOf({ id, config = {} }: GgufCase): string {
  const golden = new ModelCase(id);
  const folder = join(tempFolder(), 'model');
  mkdirSync(folder);
  cpSync(golden.base, folder, { recursive: true });
  const fields = { ...golden.config('v5'), ...config };
  writeFileSync(join(folder, 'config.json'), JSON.stringify(fields));
  return folder;
}

/** Row h · D + 2i + j of the file is row h · D + j · D/2 + i of the folder. */
export function permuted(
  values: Float32Array,
  rows: number,
  heads: number,
  to: 'gguf' | 'hf',
): Float32Array<ArrayBuffer> {
  const D = rows / heads;
  const width = values.length / rows;
  const result = new Float32Array(values.length);
  for (let h = 0; h < heads; h++) {
    for (let i = 0; i < D / 2; i++) {
      for (let j = 0; j < 2; j++) {
        const [hf, gguf] = [h * D + j * (D / 2) + i, h * D + 2 * i + j];
        const [from, at] = to === 'gguf' ? [hf, gguf] : [gguf, hf];
        result.set(values.subarray(from * width, (from + 1) * width), at * width);
      }
    }
  }
  return result;
}

/** The metadata of a case. */
export function metadataOf({ architecture, keys }: GgufCase, eps: number): Map<string, GgufValue> {
  const own = Object.entries({ ...keys, 'attention.layer_norm_rms_epsilon': f32(eps) });
  return new Map<string, GgufValue>([
    ['general.architecture', text(architecture)],
    ['general.type', text('model')],
    ...own.map(([key, value]) => [`${architecture}.${key}`, value] as const),
  ]);
}

/**
 * Writes the GGUF file of a folder.
 * @param typeOf the type of a weight [N, K], by its name in the file
 */
export function writeModel(
  path: string,
  folder: string,
  each: GgufCase,
  typeOf: (name: string) => GgufType = () => 'F32',
  vocabulary: readonly (readonly [string, GgufValue])[] = [],
): void {
  const { architecture, factors = {} } = each;
  const model = openHfModel(folder);
  const [{ attention }] = model.decoder.layers as [DecoderLayerConfig];
  const { heads, kvHeads } = attention;
  const tensors = new Map<string, GgufTensorSource>(
    model.names().map((hf): [string, GgufTensorSource] => {
      const place = hfToGguf(architecture, hf);
      if (place === undefined) throw new Error(`no name for ${hf}`);
      const shape = model.info(hf)?.shape as readonly number[];
      let values = model.readFloat32(hf);
      if (architecture.startsWith('gemma') && hf.endsWith('norm.weight')) {
        values = values.map((value) => value + 1);
      }
      const [, part] = architecture === 'llama' ? (/self_attn\.([qk])_proj/.exec(hf) ?? []) : [];
      if (part !== undefined) {
        const count = part === 'q' ? heads : kvHeads;
        values = permuted(values, shape[0] as number, count, 'gguf');
      }
      const type = shape.length === 2 ? typeOf(place.name) : 'F32';
      if (isBlockType(type)) return [place.name, quantizeToGguf(values, shape, type)];
      const data = type === 'F32' ? values : halves(type, values);
      return [place.name, { type, shape, data }];
    }),
  );
  for (const [name, list] of Object.entries(factors)) {
    tensors.set(name, { type: 'F32', shape: [list.length], data: Float32Array.from(list) });
  }
  const metadata = metadataOf(each, model.decoder.norm.eps);
  for (const [key, value] of vocabulary) metadata.set(key, value);
  writeGguf(path, { metadata, tensors });
}

/** Values that the type holds exactly. */
function halves(type: GgufType, values: Float32Array): Uint16Array {
  if (type !== 'BF16') throw new Error(`no test writes ${type}`);
  const words = new Uint32Array(values.buffer, values.byteOffset, values.length);
  return Uint16Array.from(words, (word) => word >>> 16);
}
