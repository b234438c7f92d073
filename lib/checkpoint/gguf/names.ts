/**
 * What the tensors of a GGUF file are called in a Hugging Face folder, for the architectures of this library, as
 * llama.cpp's converter (convert_hf_to_gguf.py) names and changes them:
 *
 * - rows of q and k of Llama are permuted, because llama.cpp rotates neighbours and transformers rotates halves;
 * - norms of Gemma are stored with 1 added.
 */

import { anyOf, LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';

/** Names without `.weight` or `.bias`, GGUF's first. Those of blocks follow `blk.L.` and `model.layers.L.`. */
type Pairs = Readonly<Record<string, string>>;

const kModel: Pairs = {
  token_embd: 'model.embed_tokens',
  output_norm: 'model.norm',
  output: 'lm_head',
};
const kBlock: Pairs = {
  attn_norm: 'input_layernorm',
  attn_output: 'self_attn.o_proj',
  ffn_down: 'mlp.down_proj',
};
const kQkv: Pairs = {
  attn_q: 'self_attn.q_proj',
  attn_k: 'self_attn.k_proj',
  attn_v: 'self_attn.v_proj',
};
const kGateUp: Pairs = { ffn_gate: 'mlp.gate_proj', ffn_up: 'mlp.up_proj' };
const kFused: Pairs = { attn_qkv: 'self_attn.qkv_proj', ffn_up: 'mlp.gate_up_proj' };
const kHeadNorms: Pairs = { attn_q_norm: 'self_attn.q_norm', attn_k_norm: 'self_attn.k_norm' };
const kPreNorms: Pairs = { ffn_norm: 'post_attention_layernorm' };
const kOutputNorms: Pairs = {
  post_attention_norm: 'post_attention_layernorm',
  ffn_norm: 'pre_feedforward_layernorm',
  post_ffw_norm: 'post_feedforward_layernorm',
};

interface Architecture {
  readonly block: Pairs;
  /** Which key has the number of heads by which the rows of a tensor are permuted. */
  readonly permuted?: Readonly<Record<string, HeadCount>>;
  readonly normOffset?: 1;
}

/** By `general.architecture`. */
const kArchitectures: Readonly<Record<string, Architecture>> = {
  // Mistral too: its converter writes it as llama.
  llama: {
    block: { ...kBlock, ...kQkv, ...kGateUp, ...kPreNorms },
    permuted: { attn_q: 'attention.head_count', attn_k: 'attention.head_count_kv' },
  },
  qwen2: { block: { ...kBlock, ...kQkv, ...kGateUp, ...kPreNorms } },
  qwen3: { block: { ...kBlock, ...kQkv, ...kGateUp, ...kPreNorms, ...kHeadNorms } },
  phi3: { block: { ...kBlock, ...kFused, ...kPreNorms } },
  gemma2: { block: { ...kBlock, ...kQkv, ...kGateUp, ...kOutputNorms }, normOffset: 1 },
  gemma3: {
    block: { ...kBlock, ...kQkv, ...kGateUp, ...kOutputNorms, ...kHeadNorms },
    normOffset: 1,
  },
};

/** The architectures whose tensors have names here, as `general.architecture` spells them. */
export const ggufArchitectures: readonly string[] = Object.keys(kArchitectures);

/** The metadata key, behind `<architecture>.`, with a number of heads. */
export type HeadCount = 'attention.head_count' | 'attention.head_count_kv';

/** The name of a tensor on the other side, and how its values differ. */
export interface TensorPlace {
  readonly name: string;
  /** The rows are permuted by the number of heads under this key: `permuteGgufRows`. */
  readonly permuted?: HeadCount;
  /** The GGUF file has the values of the Hugging Face folder with this added. */
  readonly normOffset?: 1;
}

/**
 * What a tensor of a GGUF file is called in a Hugging Face folder.
 *
 * @param architecture `general.architecture` of the file; Mistral models have `llama`
 * @param name the name in the GGUF file: `blk.0.attn_q.weight`
 * @returns `undefined` for a tensor that a Hugging Face folder does not have, such as `rope_freqs.weight`
 * @throws LowrankError `ERR_UNSUPPORTED` for an architecture that is not in {@link ggufArchitectures}
 * @example
 * ggufToHf('llama', 'blk.0.attn_q.weight');
 * // { name: 'model.layers.0.self_attn.q_proj.weight', permuted: 'attention.head_count' }
 */
export function ggufToHf(architecture: string, name: string): TensorPlace | undefined {
  const row = architectureOf('ggufToHf', architecture);
  const [, block, stem, suffix] = /^(?:blk\.(\d{1,6})\.)?(\w+)\.(weight|bias)$/.exec(name) ?? [];
  if (stem === undefined) return undefined;
  const found = own(block === undefined ? kModel : row.block, stem);
  if (found === undefined) return undefined;
  const prefix = block === undefined ? '' : `model.layers.${block}.`;
  return { name: `${prefix}${found}.${suffix}`, ...changes(row, stem) };
}

/**
 * What a tensor of a Hugging Face folder is called in a GGUF file; the other way of {@link ggufToHf}.
 *
 * @param architecture `general.architecture` of the file; Mistral models have `llama`
 * @param name the name in the folder: `model.layers.0.self_attn.q_proj.weight`
 * @returns `undefined` for a tensor that llama.cpp's converter does not write
 * @throws LowrankError `ERR_UNSUPPORTED` for an architecture that is not in {@link ggufArchitectures}
 * @example
 * hfToGguf('llama', 'lm_head.weight'); // { name: 'output.weight' }
 */
export function hfToGguf(architecture: string, name: string): TensorPlace | undefined {
  const row = architectureOf('hfToGguf', architecture);
  const [, block, module, suffix] =
    /^(?:model\.layers\.(\d{1,6})\.)?([\w.]+)\.(weight|bias)$/.exec(name) ?? [];
  const pairs = Object.entries(block === undefined ? kModel : row.block);
  const stem = pairs.find(([, hf]) => hf === module)?.[0];
  if (stem === undefined) return undefined;
  const prefix = block === undefined ? '' : `blk.${block}.`;
  return { name: `${prefix}${stem}.${suffix}`, ...changes(row, stem) };
}

function changes({ permuted = {}, normOffset }: Architecture, stem: string) {
  const heads = own(permuted, stem);
  return {
    ...(heads === undefined ? {} : { permuted: heads }),
    ...(normOffset === undefined || !stem.endsWith('norm') ? {} : { normOffset }),
  };
}

const own = <T>(record: Readonly<Record<string, T>>, key: string): T | undefined =>
  Object.hasOwn(record, key) ? record[key] : undefined;

function architectureOf(op: string, name: string): Architecture {
  const row = own(kArchitectures, name);
  if (row !== undefined) return row;
  const expected = `architecture must be ${anyOf(ggufArchitectures)}`;
  const text = `${op}: ${expected}, got ${printable(String(name))}`;
  throw new LowrankError('ERR_UNSUPPORTED', text, { op });
}
