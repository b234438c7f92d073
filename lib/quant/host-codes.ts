import type { NestedAbsmax } from '../checkpoint/bitsandbytes/bitsandbytes.js';
import { formatOf } from '../core/formats.js';
import type { Tensor } from '../core/tensor.js';
import { encodeCodebook } from './codebook.js';
import { QuantizedWeight } from './quantized-weight.js';

/** Codes made on the host, tile by tile. The weight is complete once all of them are. */
export interface HostCodes {
  /** @param begin the first element, at a block boundary */
  put(tile: Tensor, begin: number): void;
  finish(): QuantizedWeight;
}

/** Quantises scales to 8 bits as the device does: subtracts their mean, then blockwise by a table. */
function nestedScales(
  op: string,
  absmax: Float32Array,
  absmaxCodebook: Float32Array,
  nestedBlocksize: number,
): NestedAbsmax {
  const sum = absmax.reduce((total, v) => total + v, 0);
  const offset = Math.fround(absmax.length === 0 ? 0 : sum / absmax.length);
  const rest = absmax.map((v) => v - offset);
  const { codes, absmax: nestedAbsmax } = encodeCodebook(
    op,
    'int8',
    rest,
    absmaxCodebook,
    nestedBlocksize,
  );
  return { absmax8bit: codes, absmaxCodebook, nestedAbsmax, offset, nestedBlocksize };
}

/**
 * For a weight with its own table (of levels, or of scales): a weight of its format and tables, encoded on the
 * host. Undefined if the device encodes.
 * @internal
 */
export function hostCodes(op: string, like: QuantizedWeight): HostCodes | undefined {
  const { shape, blocksize, ownTables } = like;
  if (ownTables === undefined) return undefined;
  const { format, codebook, scaleCodebook, nestedBlocksize } = ownTables;
  const { sourceDType, device } = like;
  const place = { shape, format, blocksize, sourceDType, device };
  const codesPerByte = 8 / formatOf(format).bits;
  const size = shape.reduce((product, dim) => product * dim, 1);
  const codes = new Uint8Array(Math.ceil(size / codesPerByte));
  const absmax = new Float32Array(like.blocks);
  return {
    put(tile, begin) {
      const own = encodeCodebook(op, format, tile.readSync(), codebook, blocksize);
      codes.set(own.codes, begin / codesPerByte);
      absmax.set(own.absmax, begin / blocksize);
    },
    finish() {
      const scales =
        scaleCodebook === undefined
          ? absmax
          : nestedScales(op, absmax, scaleCodebook, nestedBlocksize);
      return QuantizedWeight.fromTables(op, { codes, codebook, absmax: scales }, place);
    },
  };
}
