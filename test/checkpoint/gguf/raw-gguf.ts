/** Builders of GGUF files, valid and not, field by field. They share nothing with the writer. */

/** A field: little-endian bytes. */
export const u32 = (value: number): number[] => [...new Uint8Array(Uint32Array.of(value).buffer)];
export const u64 = (value: number | bigint): number[] => [
  ...new Uint8Array(BigUint64Array.of(BigInt(value)).buffer),
];
export const utf8 = (text: string): number[] => [...new TextEncoder().encode(text)];
export const text = (value: string | number[], length?: number | bigint): number[] => {
  const bytes = typeof value === 'string' ? utf8(value) : value;
  return [...u64(length ?? bytes.length), ...bytes];
};

/** A key of metadata: type and the bytes of its value. */
export const key = (name: string | number[], type: number, value: number[]): number[] => [
  ...text(name),
  ...u32(type),
  ...value,
];

/** An array: the type and number of its elements, and their bytes. */
export const array = (of: number, count: number | bigint, bytes: number[]): number[] => [
  ...u32(of),
  ...u64(count),
  ...bytes,
];

/** A tensor of the header; dimensions with the fastest first. */
export const tensor = (
  name: string | number[],
  dims: (number | bigint)[],
  type: number,
  offset: number | bigint = 0,
  rank = dims.length,
): number[] => [...text(name), ...u32(rank), ...dims.flatMap(u64), ...u32(type), ...u64(offset)];

export interface RawGguf {
  readonly magic?: string;
  readonly version?: number;
  readonly keys?: number[][];
  readonly tensors?: number[][];
  /** Counts that the header claims, if not those of the lists. */
  readonly keyCount?: number | bigint;
  readonly tensorCount?: number | bigint;
  readonly alignment?: number;
  /** Bytes behind the padding of the header. */
  readonly data_bytes?: number;
}

/** A file of these parts; its data counts up. */
export function rawGguf(parts: RawGguf): Uint8Array<ArrayBuffer> {
  const { magic = 'GGUF', version = 3, keys = [], tensors = [], alignment = 32 } = parts;
  const header = [
    ...utf8(magic),
    ...u32(version),
    ...u64(parts.tensorCount ?? tensors.length),
    ...u64(parts.keyCount ?? keys.length),
    ...keys.flat(),
    ...tensors.flat(),
  ];
  const start = Math.ceil(header.length / alignment) * alignment;
  const file = new Uint8Array(start + (parts.data_bytes ?? 0));
  file.set(header);
  for (let i = start; i < file.length; i++) file[i] = i - start + 1;
  return file;
}
