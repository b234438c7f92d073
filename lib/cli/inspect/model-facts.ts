/** What a checkpoint says of itself, and how large its tensors are. */

/** A field is absent where the checkpoint says nothing. */
export interface ModelFacts {
  readonly name?: string;
  readonly architecture?: string;
  readonly layers?: number;
  readonly context?: number;
  readonly vocabulary?: number;
  readonly quantisation?: string;
}

/** One tensor, as far as the facts need it. */
export interface TensorSize {
  readonly type: string;
  readonly shape: readonly number[];
  readonly byteLength: number;
}

/** A field of text, if it is one. */
export const text = (name: keyof ModelFacts, value: unknown): ModelFacts =>
  typeof value === 'string' && value !== '' ? { [name]: value } : {};

/** A field of a count, if it is one. */
export const count = (name: keyof ModelFacts, value: unknown): ModelFacts =>
  Number.isSafeInteger(value) ? { [name]: value } : {};
