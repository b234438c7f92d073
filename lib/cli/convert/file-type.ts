/** `general.file_type`: what llama.cpp calls a file by the type of most of its weights. */

import type { GgufType } from '../../checkpoint/gguf/block-types.js';
import { isBlockType } from '../../checkpoint/gguf/blocks/parts.js';
import type { GgufValue } from '../../checkpoint/gguf/values.js';
import { ggufFileTypes } from '../inspect/gguf-facts.js';

/** The keys that follow from the types of the weights. */
export function fileTypeOf(types: readonly GgufType[]): Map<string, GgufValue> {
  const counts = new Map<GgufType, number>();
  for (const type of types) counts.set(type, (counts.get(type) ?? 0) + 1);
  const [[most] = []] = [...counts].sort(([, a], [, b]) => b - a);
  const known = Object.entries(ggufFileTypes);
  const id = known.find(([, name]) => name === most || name === `${most}_S`)?.[0];
  return new Map<string, GgufValue>([
    ...(id === undefined
      ? []
      : [['general.file_type', { type: 'u32', value: Number(id) }] as const]),
    ...(types.some(isBlockType)
      ? [['general.quantization_version', { type: 'u32', value: 2 }] as const]
      : []),
  ]);
}
