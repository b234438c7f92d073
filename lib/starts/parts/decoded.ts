import type { Tensor } from '../../core/tensor.js';
import type { BaseWeight } from '../../ops/base-weight.js';
import { denseRows } from '../../ops/dense-rows.js';

/** The values of a base weight, [N, K] f32. */
export const decoded = (w: BaseWeight): Tensor => denseRows(w, 0, w.shape[0] ?? 0);
