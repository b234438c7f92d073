export interface Mutant {
  readonly id: number;
  readonly file: string;
  readonly line: number;
  readonly kind: 'ordering' | 'bound' | 'loop' | 'zero-fill';
  readonly what: string;
  /** The how many-th of this text in its file. */
  readonly nth: number;
}
/** Writes the kernels of `root` with all mutants in them to `target`. */
export function writeMutants(root: string, target: string): Mutant[];
