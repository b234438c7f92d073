import { native } from '../core/binding.js';
import { checkTensor } from '../core/check-tensor.js';
import { checkDType, type DType } from '../core/dtype.js';
import { fail, shown, wrongType } from '../core/errors.js';
import { checkBlocksize, checkFormat, type FormatInfo, type QuantFormat } from '../core/formats.js';
import { scope } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import { readOptions } from '../core/validate.js';
import { checkCodebook, encodeCodebook } from '../quant/codebook.js';
import { blocksOf, middles } from '../quant/group-affine.js';
import { hostCodes } from '../quant/host-codes.js';
import { NESTED_BLOCKSIZE, QuantizedWeight } from '../quant/quantized-weight.js';
import { requantizedWeight } from '../quant/requantized-weight.js';
import { rowBlocksize } from '../quant/row-int8.js';
import { FeatureMap, mapFeatures } from './feature-map.js';
import { shiftRows, zeroTermOf } from './zero-points.js';

/** How {@link quantize} stores a weight. */
export interface QuantizeOptions {
  format: QuantFormat;
  /** Elements that share a scale, a power of two from 32 to 4096; default 64 (int8: 256). */
  blocksize?: number;
  /** Quantise the scales themselves to 8 bits; default false. */
  doubleQuant?: boolean;
  /**
   * For `int8`: linear codes with one scale per row, bitsandbytes' LLM.int8, instead of its blockwise dynamic map. As
   * there, w is rounded to f16 first. The row length is a multiple of 32 (pad with zeros if necessary; fromBitsandbytes
   * takes multiples of 8, which only the exact product supports). Values that are not finite in f16 throw like other
   * non-finite values. Default false.
   */
  rowwise?: boolean;
  /**
   * For `int8`: 256 ascending levels within ±1 instead of the dynamic map (a linear or an unsigned table, say).
   * Quantising and merging then run on the host.
   */
  codebook?: Float32Array;
  /**
   * For `int4`: a zero-point for each block, its middle `(min + max) / 2`, so that the 16 levels span the block's own
   * range (min-max rounding, as for group-affine weights). w is [N, K] with K a multiple of the blocksize. It is read
   * on the host, and non-finite values throw at once. Default false.
   */
  zeroPoints?: boolean;
}

/**
 * Blockwise quantisation of a weight. `absmax` is the largest magnitude of a block. Each element gets
 * the code whose level is nearest to `w / absmax`.
 *
 * The bytes are those of bitsandbytes. Where its CPU and CUDA code differ, the rule is: the value
 * `w · (1 / absmax)` in f32 is compared with the thresholds of its CUDA source. A block whose
 * `1 / absmax` overflows (zeros, or an absmax under 2^-128) gets the code that bitsandbytes gives a
 * block of zeros.
 * @param w [N, K] f32, bf16 or f16 (any rank; blocks run over the flattened elements)
 * @throws ERR_TYPE, ERR_FORMAT, ERR_VALUE (conflicting options, an invalid codebook), ERR_SHAPE (`rowwise` or
 * `zeroPoints` with rows that are not whole blocks), ERR_DISPOSED, ERR_OOM. NaN or infinity in `w` shows as
 * ERR_NON_FINITE at the first read of anything that depends on the weight
 * @example
 * const w4 = quantize(w, { format: 'nf4', blocksize: 64, doubleQuant: true });
 */
export function quantize(w: Tensor, options: QuantizeOptions): QuantizedWeight {
  const op = 'quantize';
  checkTensor(op, 'w', w);
  const given = readOptions(op, options, {
    format: true,
    blocksize: true,
    doubleQuant: true,
    rowwise: true,
    codebook: true,
    zeroPoints: true,
  });
  const format = checkFormat(op, given.format);
  const rowwise: unknown = given.rowwise ?? false;
  if (typeof rowwise !== 'boolean') throw wrongType(op, 'rowwise', 'a boolean', rowwise);
  if (rowwise) return quantizeRowwise(op, w, given);
  const blocksize = checkBlocksize(op, format, given.blocksize ?? format.defaultBlocksize);
  if (given.codebook !== undefined) return quantizeByCodebook(op, w, blocksize, given);
  const doubleQuant: unknown = given.doubleQuant ?? false;
  if (typeof doubleQuant !== 'boolean')
    throw wrongType(op, 'doubleQuant', 'a boolean', doubleQuant);
  const zeroPoints: unknown = given.zeroPoints ?? false;
  if (typeof zeroPoints !== 'boolean') throw wrongType(op, 'zeroPoints', 'a boolean', zeroPoints);
  if (zeroPoints) return quantizeAffine(op, w, blocksize, given);
  return encode(op, w, format, blocksize, doubleQuant, w.dtype);
}

/** Encodes codes and scales with the device's own kernel. */
function encode(
  op: string,
  w: Tensor,
  format: FormatInfo,
  blocksize: number,
  doubleQuant: boolean,
  sourceDType: DType,
  { rowwise = false, zeroPoints }: { rowwise?: boolean; zeroPoints?: Tensor } = {},
): QuantizedWeight {
  const handle = Tensor.handleOf(w, op, 'w');
  return QuantizedWeight.adopt(
    native(op, (raw) => raw.quantize(handle, format.name, blocksize, doubleQuant, rowwise)),
    {
      shape: w.shape,
      format,
      blocksize,
      doubleQuant,
      nestedBlocksize: NESTED_BLOCKSIZE,
      sourceDType,
      device: w.device,
      rowwise,
      ...(zeroPoints === undefined ? {} : { zeroPoints }),
    },
  );
}

function quantizeAffine(
  op: string,
  w: Tensor,
  blocksize: number,
  { format: name, doubleQuant }: Partial<QuantizeOptions>,
  sourceDType = w.dtype,
): QuantizedWeight {
  if (name !== 'int4') fail('ERR_VALUE', op, 'zeroPoints', `false for ${name}`, 'true');
  if (doubleQuant) fail('ERR_VALUE', op, 'doubleQuant', 'false with zeroPoints', 'true');
  const G = blocksOf(op, 'w', w.shape, blocksize);
  const { device } = w;
  const [N = 0] = w.shape;
  return scope(() => {
    const zeros = Tensor.from(middles(op, w.readSync(), blocksize), [N, G], { device });
    using spread = FeatureMap.repeat(G, blocksize, 'inner', { device });
    const centred = mapFeatures(zeros, spread, { c: w, alpha: -1, dtype: 'f32' });
    return encode(op, centred, checkFormat(op, name), blocksize, false, sourceDType, {
      zeroPoints: zeros,
    });
  });
}

function quantizeByCodebook(
  op: string,
  w: Tensor,
  blocksize: number,
  { format: name, doubleQuant, codebook: given }: Partial<QuantizeOptions>,
): QuantizedWeight {
  if (name !== 'int8') fail('ERR_VALUE', op, 'codebook', `left out for ${name}`, 'a table');
  if (doubleQuant) fail('ERR_VALUE', op, 'doubleQuant', 'false with a codebook', 'true');
  const codebook = checkCodebook(op, given);
  const { shape, device, dtype: sourceDType } = w;
  const parts = encodeCodebook(op, name, w.readSync(), codebook, blocksize);
  const place = { shape, format: name, sourceDType, device, blocksize };
  return QuantizedWeight.fromTables(op, { ...parts, codebook }, place);
}

function quantizeRowwise(
  op: string,
  w: Tensor,
  { format, blocksize, doubleQuant, codebook }: Partial<QuantizeOptions>,
): QuantizedWeight {
  if (format !== 'int8') fail('ERR_VALUE', op, 'rowwise', `false for ${format}`, 'true');
  if (blocksize !== undefined) {
    fail('ERR_VALUE', op, 'blocksize', 'left out with rowwise', shown(blocksize));
  }
  if (doubleQuant) fail('ERR_VALUE', op, 'doubleQuant', 'false with rowwise', 'true');
  if (codebook !== undefined) fail('ERR_VALUE', op, 'codebook', 'left out with rowwise', 'a table');
  const info = checkFormat(op, format);
  const K = w.shape.at(-1) ?? 1;
  const size = rowBlocksize(op, K, info.minBlocksize, info.maxBlocksize);
  return encode(op, w, info, size, false, w.dtype, { rowwise: true });
}

/**
 * Quantises a tensor like the weight that it replaces: same format, blocksizes, tables and source dtype; zero-points are made
 * anew. A planar weight keeps its scales where they reach.
 * @param w a tensor of the weight's shape
 * @internal
 */
export function quantizeLike(w: Tensor, like: QuantizedWeight): QuantizedWeight {
  const op = 'quantize';
  if (like.format === 'planar') {
    const values = w.to({ dtype: 'f32' }).readSync();
    return requantizedWeight(op, like, values);
  }
  const host = hostCodes(op, like);
  if (host !== undefined) {
    host.put(w, 0);
    return host.finish();
  }
  const { format, blocksize, doubleQuant, sourceDType } = like;
  if (like.zeroPoints !== undefined) {
    return quantizeAffine(op, w, blocksize, { format }, sourceDType);
  }
  const made = QuantizedWeight.emptyLike(like, op);
  const [from, to] = [Tensor.handleOf(w, op, 'w'), QuantizedWeight.handleOf(made, op, 'w')];
  if (!doubleQuant) {
    native(op, (raw) => raw.quantizeRows(from, to, 0, null));
    return made;
  }
  using absmax = Tensor.zeros([like.blocks], { device: like.device });
  const scales = Tensor.handleOf(absmax, op, 'absmax');
  native(op, (raw) => raw.quantizeRows(from, to, 0, scales));
  native(op, (raw) => raw.quantizeScales(scales, to));
  return made;
}

/**
 * The dense weight: `codebook[code] · absmax`, plus the block's zero-point if it has one, in f32,
 * rounded once to `dtype`.
 * @param options.dtype default: that of the tensor that was quantised
 * @returns [N, K]
 * @throws ERR_TYPE, ERR_DTYPE, ERR_DISPOSED, ERR_OOM
 * @example
 * const values = dequantize(w4, { dtype: 'bf16' }); // [N, K]
 */
export function dequantize(w: QuantizedWeight, options?: { dtype?: DType }): Tensor {
  const op = 'dequantize';
  if (!QuantizedWeight.is(w)) throw wrongType(op, 'w', 'a QuantizedWeight', w);
  const given = readOptions(op, options, { dtype: true });
  const dtype = checkDType(op, 'dtype', given.dtype ?? w.sourceDType);
  const handle = QuantizedWeight.handleOf(w, op, 'w');
  const zeros = zeroTermOf(w);
  const stored = zeros === undefined ? dtype : 'f32';
  const codes = Tensor.adopt(
    native(op, (raw) => raw.dequantize(handle, stored)),
    w.shape,
    stored,
    w.device,
  );
  if (zeros === undefined) return codes;
  const dense = shiftRows(codes, zeros, { dtype });
  codes.dispose();
  return dense;
}
