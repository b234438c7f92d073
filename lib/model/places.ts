/** Tensors of a model's files, and the linear layers that they make up. */

/** A tensor of the file. */
export interface TensorPlace {
  readonly name: string;
  readonly shape: readonly number[];
}

/** A linear layer: y = x · wᵀ + bias. */
export interface LinearPlace {
  /** As in the file, without `.weight`: `model.layers.0.self_attn.q_proj`. */
  readonly module: string;
  /** The last part of it, by which PEFT names targets: `q_proj`. */
  readonly target: string;
  readonly N: number;
  readonly K: number;
  /** [N, K] */
  readonly weight: TensorPlace;
  /** [N] */
  readonly bias?: TensorPlace;
}
