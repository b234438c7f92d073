/** What a LoRA adapter in GGUF takes over from its base model. */

import { fail, shown, wrongType } from '../../../core/errors.js';
import { checkObject } from '../../arguments.js';
import type { HeadCount } from '../names.js';
import { permuteGgufRows } from '../rows.js';

/** The heads of a base model: q and k of Llama have another order of rows in GGUF. */
export interface GgufAdapterHeads {
  /** Query heads, `num_attention_heads`. Needed for `llama` alone. */
  readonly heads?: number;
  /** Key heads, `num_key_value_heads`. Needed for `llama` alone. */
  readonly kvHeads?: number;
}

/** The base model of an adapter, as GGUF knows it. */
export interface GgufAdapterBase extends GgufAdapterHeads {
  /** `general.architecture` of the base in GGUF, one of `ggufArchitectures`; Mistral models have `llama`. */
  readonly architecture: string;
  /** The output layer is the embedding, so a GGUF file of the base has none of its own. Default: false. */
  readonly tied?: boolean;
}

/** Checks the JavaScript types of a base. @throws ERR_TYPE, ERR_VALUE */
export function checkHeads(op: string, base: unknown): asserts base is GgufAdapterHeads {
  checkObject(op, 'base', base);
  for (const name of ['heads', 'kvHeads'] as const) {
    const value = (base as GgufAdapterHeads)[name];
    if (value === undefined) continue;
    if (typeof value !== 'number') throw wrongType(op, `base.${name}`, 'a number', value);
    if (Number.isSafeInteger(value) && value > 0) continue;
    fail('ERR_VALUE', op, `base.${name}`, 'a positive integer', shown(value));
  }
}

const kFields = { 'attention.head_count': 'heads', 'attention.head_count_kv': 'kvHeads' } as const;

/**
 * Rows of `lora_b` in the order of the other side, or the same bytes where both sides have one order.
 * @throws ERR_VALUE if the base does not say how many heads share the rows · ERR_SHAPE if they do not divide them
 */
export function rowsOf(
  op: string,
  module: string,
  data: Uint8Array<ArrayBuffer>,
  rows: number,
  { permuted, base, to }: Permutation,
): Uint8Array<ArrayBuffer> {
  if (permuted === undefined) return data;
  const field = kFields[permuted];
  const heads = base[field];
  if (heads === undefined) {
    const expected = `given, because the rows of ${module} have another order in GGUF`;
    return fail('ERR_VALUE', op, `base.${field}`, expected, 'none');
  }
  if (rows % (2 * heads) !== 0) {
    const expected = `heads of an even number of the ${rows} rows of ${module}`;
    fail('ERR_SHAPE', op, `base.${field}`, expected, String(heads));
  }
  return permuteGgufRows(data, { rows, heads, to });
}

interface Permutation {
  readonly permuted: HeadCount | undefined;
  readonly base: GgufAdapterHeads;
  readonly to: 'hf' | 'gguf';
}

/** [rows, columns] of elements of `size_bytes` as [columns, rows]. */
export function transposed(
  data: Uint8Array,
  rows: number,
  columns: number,
): Uint8Array<ArrayBuffer> {
  const size_bytes = data.length / (rows * columns);
  const result = new Uint8Array(data.length);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const at = (row * columns + column) * size_bytes;
      const to = (column * rows + row) * size_bytes;
      for (let i = 0; i < size_bytes; i++) result[to + i] = data[at + i] as number;
    }
  }
  return result;
}

/** Keys of the metadata. */
export const adapterKeys = {
  architecture: 'general.architecture',
  type: 'general.type',
  name: 'general.name',
  method: 'adapter.type',
  alpha: 'adapter.lora.alpha',
  invocation: 'adapter.alora.invocation_tokens',
  version: 'general.quantization_version',
} as const;

/** The tensor of an adapter whose lora_a llama.cpp looks up by rows. */
export const kEmbeddingTensor = 'token_embd.weight';
