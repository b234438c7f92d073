/** What a GGUF file says of itself. */

import type { GgufFile } from '../../checkpoint/gguf/gguf.js';
import { count, type ModelFacts, type TensorSize, text } from './model-facts.js';

/** Names of `general.file_type`, as llama.cpp numbers them. */
export const ggufFileTypes: Readonly<Record<number, string>> = {
  0: 'F32',
  1: 'F16',
  2: 'Q4_0',
  3: 'Q4_1',
  7: 'Q8_0',
  8: 'Q5_0',
  9: 'Q5_1',
  10: 'Q2_K',
  11: 'Q3_K_S',
  12: 'Q3_K_M',
  13: 'Q3_K_L',
  14: 'Q4_K_S',
  15: 'Q4_K_M',
  16: 'Q5_K_S',
  17: 'Q5_K_M',
  18: 'Q6_K',
  25: 'IQ4_NL',
  30: 'IQ4_XS',
  32: 'BF16',
  37: 'TQ2_0',
  38: 'MXFP4',
  39: 'NVFP4',
};

export function ggufFacts(file: GgufFile): {
  readonly kind: string;
  readonly model: ModelFacts;
  readonly sizes: readonly TensorSize[];
} {
  const value = (key: string) => file.metadata.get(key)?.value;
  const architecture = value('general.architecture');
  const tokens = file.metadata.get('tokenizer.ggml.tokens');
  const vocabulary =
    value(`${architecture}.vocab_size`) ??
    (tokens?.type === 'array' ? tokens.value.length : file.info('token_embd.weight')?.shape[0]);
  const adapter = value('general.type') === 'adapter';
  const fileType = value('general.file_type');
  return {
    kind: `GGUF version ${file.version}${adapter ? ', adapter' : ''}`,
    model: {
      ...text('name', value('general.name')),
      ...text('architecture', architecture),
      ...count('layers', value(`${architecture}.block_count`)),
      ...count('context', value(`${architecture}.context_length`)),
      ...count('vocabulary', vocabulary),
      ...text('quantisation', typeof fileType === 'number' ? ggufFileTypes[fileType] : undefined),
    },
    sizes: file.names().flatMap((name) => file.info(name) ?? []),
  };
}
