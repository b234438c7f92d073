/** The numbers of a tensor's blocks, as integers and bits of f16, out of its bytes and back. */

import { type Fields, readFields, writeFields } from '../../../core/bit-fields.js';
import { GGUF_TYPES } from '../block-types.js';
import { float4Blocks } from './float4.js';
import { iq4Blocks } from './iq4.js';
import { kQuantBlocks } from './k-quants.js';
import type { BlockField, BlockLayout, BlockPlane } from './layout.js';
import { blocksOf32 } from './of-32.js';
import { ternaryBlocks } from './ternary.js';

const kLayouts = {
  ...blocksOf32,
  ...kQuantBlocks,
  ...iq4Blocks,
  ...float4Blocks,
  ...ternaryBlocks,
};

/** A type whose tensors are blocks of codes. */
export type GgufBlockType = keyof typeof kLayouts;

/** Their names, family by family. */
export const ggufBlockTypes = Object.keys(kLayouts) as readonly GgufBlockType[];

export const isBlockType = (type: unknown): type is GgufBlockType =>
  typeof type === 'string' && Object.hasOwn(kLayouts, type);

/** How the blocks of a type lie in their bytes. */
export const layoutOf = (type: GgufBlockType): BlockLayout => kLayouts[type];

/** A plane of scales or minima as stored. */
export interface PlaneParts {
  /** One a group. */
  readonly integers?: Uint8Array;
  /** Bits of f16, one a block. */
  readonly halves?: Uint16Array;
}

/** Everything that blocks hold. */
export interface BlockParts {
  /** One an element. */
  readonly codes: Uint8Array;
  readonly scale: PlaneParts;
  readonly min?: PlaneParts;
}

/** Where `each` numbers of every block are. */
function fieldsOf(
  type: GgufBlockType,
  blocks: number,
  each: number,
  fields: readonly BlockField[],
): Fields {
  const stride = 8 * GGUF_TYPES[type].bytes;
  return {
    rows: 1,
    columns: blocks * each,
    fields: fields.map(({ at, bits, shift = 0 }) => ({
      base: 0,
      rows: { at: [0], stride: 0 },
      columns: { at, stride },
      bits,
      shift,
    })),
  };
}

/** The two bytes of the f16 that begins at a byte of every block. */
const halfFields = (type: GgufBlockType, blocks: number, half: number): Fields =>
  fieldsOf(type, blocks, 2, [{ at: [8 * half, 8 * half + 8], bits: 8 }]);

/** @param bytes whole blocks of the type */
export function readParts(type: GgufBlockType, bytes: Uint8Array): BlockParts {
  const layout = layoutOf(type);
  const { elements, bytes: block_bytes } = GGUF_TYPES[type];
  const blocks = bytes.length / block_bytes;
  const groups = elements / layout.group;
  const planeOf = ({ integers, half }: BlockPlane): PlaneParts => ({
    ...(integers !== undefined && {
      integers: readFields(bytes, fieldsOf(type, blocks, groups, integers.fields)),
    }),
    ...(half !== undefined && {
      halves: new Uint16Array(readFields(bytes, halfFields(type, blocks, half)).slice().buffer),
    }),
  });
  return {
    codes: readFields(bytes, fieldsOf(type, blocks, elements, layout.codes.fields)),
    scale: planeOf(layout.scale),
    ...(layout.min !== undefined && { min: planeOf(layout.min) }),
  };
}

/** The bytes of blocks; the other way of {@link readParts}. */
export function writeParts(type: GgufBlockType, parts: BlockParts): Uint8Array<ArrayBuffer> {
  const layout = layoutOf(type);
  const { elements, bytes: block_bytes } = GGUF_TYPES[type];
  const blocks = parts.codes.length / elements;
  const bytes = new Uint8Array(blocks * block_bytes);
  const write = (plane: BlockPlane | undefined, { integers, halves }: PlaneParts = {}): void => {
    if (plane?.integers !== undefined && integers !== undefined) {
      const groups = elements / layout.group;
      writeFields(integers, fieldsOf(type, blocks, groups, plane.integers.fields), bytes);
    }
    if (plane?.half !== undefined && halves !== undefined) {
      const { buffer, byteOffset, byteLength } = halves;
      const halfBytes = new Uint8Array(buffer, byteOffset, byteLength);
      writeFields(halfBytes, halfFields(type, blocks, plane.half), bytes);
    }
  };
  writeFields(parts.codes, fieldsOf(type, blocks, elements, layout.codes.fields), bytes);
  write(layout.scale, parts.scale);
  write(layout.min, parts.min);
  return bytes;
}
