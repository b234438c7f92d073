/** Which kernels a call would run: the routes of the CPU, the plans of CUDA. Nothing runs. */

import { native } from '../core/binding.js';
import type { DType } from '../core/dtype.js';
import type { CpuExplanation, CudaExplanation } from '../core/explanation.js';
import { checkFormat, type StoredFormat, storedAs } from '../core/formats.js';
import { LEAST_ROW_BLOCK, rowBlocksize } from '../quant/row-int8.js';
import type { ComputePrecision } from './compute.js';

/** A call to be explained: x [M, K], w [N, K], an adapter of rank r where r is not 0. */
export interface ExplainedCall {
  readonly M: number;
  readonly N: number;
  readonly K: number;
  readonly r: number;
  /** Of the activations, and of a dense weight. */
  readonly dtype: DType;
  readonly format: StoredFormat | 'dense';
  /** undefined: that of the format. */
  readonly blocksize: number | undefined;
  readonly compute: ComputePrecision;
}

/** Where it would run: a device, an instruction set of the CPU, or a CUDA architecture that need not be here. */
export interface ExplainTarget {
  readonly kind: 'device' | 'isa' | 'architecture';
  readonly name: string;
}

/**
 * The kernels of matmul and matmulInputGrad, and with r those of loraForward and loraBackward.
 * @throws ERR_VALUE an unknown set or architecture, a size that is not from 1 to 2^24 · ERR_UNSUPPORTED a set that does
 * not run here, or an op that the device does not have · ERR_FORMAT a blocksize that the format does not have ·
 * ERR_SHAPE rows of w that a rowwise weight cannot have · ERR_DEVICE
 */
export function explainCall(
  target: ExplainTarget,
  call: ExplainedCall,
): CpuExplanation | CudaExplanation {
  const { M, N, K, r, dtype, compute } = call;
  const shape = { M, N, K, r, dtype, compute, ...storageOf(call) };
  return native('explain', (raw) => raw.explain(target.kind, target.name, shape));
}

function storageOf({ format: name, blocksize, K }: ExplainedCall) {
  if (name === 'dense') return { format: null, blocksize: 0, rowwise: false };
  const { format, rowwise } = storedAs(name);
  const info = checkFormat('explain', format);
  return {
    format,
    rowwise,
    blocksize: rowwise
      ? rowBlocksize('explain', K, LEAST_ROW_BLOCK, info.maxBlocksize)
      : (blocksize ?? info.defaultBlocksize),
  };
}
