const words = new Float32Array(1);
const bits = new Uint32Array(words.buffer);

/** A finite value rounded to bf16, to nearest, ties to even. */
export function roundToBf16(value: number): number {
  words[0] = value;
  const word = bits[0] as number;
  bits[0] = (word + 0x7fff + ((word >>> 16) & 1)) & 0xffff0000;
  return words[0];
}
