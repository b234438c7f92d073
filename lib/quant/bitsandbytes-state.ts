/** The state of a weight in bitsandbytes' layout, from the parts that its device has. */

import {
  type BitsandbytesState,
  formatBitsandbytes,
} from '../checkpoint/bitsandbytes/bitsandbytes.js';
import { formatRowInt8 } from '../checkpoint/bitsandbytes/row-int8-state.js';
import type { DType } from '../core/dtype.js';
import type { BitsandbytesFormat } from '../core/formats.js';
import { loadRows } from './row-int8.js';

/** What a state says beside its parts. */
export interface StateFacts {
  readonly format: BitsandbytesFormat;
  readonly blocksize: number;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly rowwise: boolean;
  /** Blocks whose scales share one, with double quantisation. */
  readonly nestedBlocksize: number | undefined;
}

/** @param read gives a part of the weight by its name, as raw bytes in memory of its own */
export async function bitsandbytesState(
  { rowwise, nestedBlocksize, ...own }: StateFacts,
  read: (part: string) => Promise<Uint8Array>,
): Promise<BitsandbytesState> {
  const floats = async (part: string) => new Float32Array((await read(part)).buffer);
  if (rowwise) {
    const [codes, absmax] = await Promise.all([read('codes'), floats('absmax')]);
    const K = own.shape.at(-1) ?? 1;
    return formatRowInt8(loadRows(codes, absmax, K, own.blocksize), own.shape);
  }
  const shared = [read('codes'), floats('codebook')] as const;
  if (nestedBlocksize === undefined) {
    const [codes, codebook, absmax] = await Promise.all([...shared, floats('absmax')]);
    return formatBitsandbytes({ ...own, shape: [...own.shape], codes, codebook, absmax });
  }
  const [codes, codebook, absmax8bit, absmaxCodebook, nestedAbsmax, offset] = await Promise.all([
    ...shared,
    read('absmax8bit'),
    floats('absmaxCodebook'),
    floats('nestedAbsmax'),
    floats('absmaxOffset'),
  ]);
  return formatBitsandbytes({
    ...own,
    shape: [...own.shape],
    codes,
    codebook,
    absmax: { absmax8bit, absmaxCodebook, nestedAbsmax, offset: offset[0] ?? 0, nestedBlocksize },
  });
}
