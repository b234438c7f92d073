import type { DType } from '../../core/dtype.js';

/** Data of a calibration. */
export interface CalibrationData {
  /** Rows of T tokens, the token that follows each (negative for none), and where documents begin in packed rows. */
  readonly batches: readonly {
    readonly ids: Int32Array;
    readonly targets: Int32Array;
    readonly documents?: Int32Array;
  }[];
  readonly T: number;
  /** Of the activations. */
  readonly dtype: DType;
}
