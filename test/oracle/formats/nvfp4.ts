/** NVFP4: blocks of 16 with a scale in e4m3, and one factor a tensor that multiplies or divides it. */
import { packParts, unpackStream } from './bits.js';
import { decodeMinifloats, encodeMinifloat, largestOf } from './minifloat.js';
import { scaled, tileMaxima, tiles } from './scaled.js';
import { type DiskTensor, dim, numbersOf } from './tensors.js';

const f32 = Math.fround;
const BLOCK = 16;
const E2M1 = largestOf('e2m1');
const E4M3 = largestOf('e4m3fn');
const LEAST_SCALE = 2 ** -6;

export type Peer = 'torchao' | 'modelopt' | 'compressed-tensors';

/** The scales of all blocks, the tensor's factor applied: a multiplier but for compressed-tensors. */
function blockScales(peer: Peer, scale: Uint8Array, factor: number): Float32Array {
  return decodeMinifloats('e4m3fn', scale).map((s) =>
    peer === 'compressed-tensors' ? s / factor : s * factor,
  );
}

const factorOf = (factor: DiskTensor | undefined): number =>
  factor === undefined ? 1 : (numbersOf(factor)[0] as number);

/** element(code) · (scale · factor) or (scale / factor): the scale is rounded before it is applied. */
export function decodeNvfp4(
  peer: Peer,
  codes: DiskTensor,
  scale: DiskTensor,
  factor?: DiskTensor,
): Float32Array {
  const { bytes } = codes;
  const levels = decodeMinifloats('e2m1', unpackStream(bytes, 1, 4, 2 * bytes.length));
  const pitch = dim(scale, -1);
  const scales = blockScales(peer, scale.bytes, factorOf(factor));
  return scaled(levels, pitch * BLOCK, tiles(scales, pitch, 1, BLOCK));
}

/** The tensor's factor as a peer derives it from max|w|. */
export function nvfp4Factor(peer: Peer, w: ArrayLike<number>): number {
  const [largest] = tileMaxima(w, w.length, 1, w.length) as unknown as [number];
  const range = E4M3 * E2M1;
  return f32(peer === 'compressed-tensors' ? range / largest : largest / range);
}

/** Codes of the scales of all blocks; each peer has a scale of its own for a block of zeros. */
export function nvfp4Scales(peer: Peer, w: ArrayLike<number>, factor?: DiskTensor): Uint8Array {
  const g = factorOf(factor);
  const scaleOf: Readonly<Record<Peer, (largest: number) => number>> = {
    torchao: (largest) => Math.min(Math.max(f32(f32(largest / E2M1) / g), LEAST_SCALE), E4M3),
    modelopt: (largest) => (largest === 0 ? 1 : f32(largest / f32(E2M1 * g))),
    'compressed-tensors': (largest) => f32(g * f32(largest / E2M1)),
  };
  return Uint8Array.from(tileMaxima(w, BLOCK, 1, BLOCK), (largest) => {
    const code = encodeMinifloat('e4m3fn', scaleOf[peer](largest));
    return code === 0 && peer === 'compressed-tensors' ? encodeMinifloat('e4m3fn', 2 ** -3) : code;
  });
}

/** Packed codes of w over its scale, rounded as each peer orders its operations. */
export function encodeNvfp4(
  peer: Peer,
  w: ArrayLike<number>,
  scale: Uint8Array,
  factor?: DiskTensor,
): Uint8Array {
  const g = factorOf(factor);
  const scales =
    peer === 'torchao'
      ? decodeMinifloats('e4m3fn', scale).map((s) => f32(1 / g) / s)
      : blockScales(peer, scale, g);
  const codes = Uint8Array.from(w, (value, i) => {
    const s = scales[Math.floor(i / BLOCK)] as number;
    return encodeMinifloat('e2m1', f32(peer === 'torchao' ? value * s : value / s));
  });
  return packParts(codes, 4, 1);
}
