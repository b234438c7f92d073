/** GPTQ and AWQ name their tensors alike. Shapes tell them apart, but for some layers of few rows. */
import type { LayerTensors, TensorInfo } from './layer-tensors.js';

type Layer = LayerTensors<TensorInfo>;

/** As many columns of codes as of scales. */
export const looksLikeGptq = ({ qweight, scales }: Layer): boolean =>
  qweight !== undefined && qweight.shape[1] === scales?.shape[1];

/** Eight columns of scales for one of words (GEMM), or as many rows of both (GEMV). */
export const looksLikeAwq = ({ qweight, scales }: Layer): boolean =>
  qweight !== undefined &&
  (qweight.shape[0] === scales?.shape[0] || 8 * (qweight.shape[1] ?? 0) === scales?.shape[1]);
