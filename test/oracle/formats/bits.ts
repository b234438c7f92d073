/** Codes of a few bits, in and out of bytes and words. */

/** Rows of codes that follow each other from the low bits; each row starts at a byte of its own. */
export function unpackStream(
  bytes: Uint8Array,
  rows: number,
  bits: number,
  count: number,
): Uint8Array {
  const pitch = bytes.length / rows;
  const codes = new Uint8Array(rows * count);
  for (let i = 0; i < codes.length; i++) {
    const bit = (i % count) * bits;
    const at = Math.floor(i / count) * pitch + Math.floor(bit / 8);
    const pair = (bytes[at] as number) + 256 * (bytes[at + 1] ?? 0);
    codes[i] = Math.floor(pair / 2 ** (bit % 8)) % 2 ** bits;
  }
  return codes;
}

/**
 * Codes that lie side by side in a byte but `chunk` elements apart: the first codes of `chunk` bytes,
 * then their second ones, and so on, from the low bits. A chunk of 1 is a stream.
 */
export function unpackParts(bytes: Uint8Array, bits: number, chunk: number): Uint8Array {
  const parts = 8 / bits;
  return Uint8Array.from({ length: bytes.length * parts }, (_, i) => {
    const rest = i % (chunk * parts);
    const byte = bytes[((i - rest) / parts + (rest % chunk)) as number] as number;
    return Math.floor(byte / 2 ** (bits * Math.floor(rest / chunk))) % 2 ** bits;
  });
}

/** The inverse of {@link unpackParts}. */
export function packParts(codes: ArrayLike<number>, bits: number, chunk: number): Uint8Array {
  const parts = 8 / bits;
  const bytes = new Uint8Array(codes.length / parts);
  for (let i = 0; i < codes.length; i++) {
    const rest = i % (chunk * parts);
    const at = (i - rest) / parts + (rest % chunk);
    const part = Math.floor(rest / chunk);
    bytes[at] = (bytes[at] as number) + (codes[i] as number) * 2 ** (bits * part);
  }
  return bytes;
}

/** [rows, cols, size bytes] as [cols, rows, size bytes]. */
export function transposeBytes(
  bytes: Uint8Array,
  rows: number,
  cols: number,
  size = 1,
): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(bytes.length);
  for (let i = 0; i < rows * cols; i++) {
    const to = (i % cols) * rows + Math.floor(i / cols);
    out.set(bytes.subarray(i * size, (i + 1) * size), to * size);
  }
  return out;
}
