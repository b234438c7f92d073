import type { Tensor } from '../core/tensor.js';
import type { BaseWeight } from '../ops/base-weight.js';
import type { LinearPlace } from './places.js';

/** A frozen linear layer. */
export interface LinearWeights {
  readonly place: LinearPlace;
  /** [N, K] */
  readonly w: BaseWeight;
  /** [N] */
  readonly bias?: Tensor;
}
