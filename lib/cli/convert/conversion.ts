/** What a conversion is: a row of the table in convert.ts. */

/** The command, as its errors name it. */
export const kOp = 'convert';

/** Options that a conversion may take. */
export interface ConversionOptions {
  /** Path of the base model. */
  readonly base?: string;
  readonly type?: 'f32' | 'f16' | 'bf16' | 'q8_0';
  readonly name?: string;
}

/** What was converted. */
export interface ConversionFacts {
  readonly architecture: string;
  readonly modules: number;
  /** Distinct ones, ascending. */
  readonly ranks: readonly number[];
  readonly alpha: number;
  /** Of a file. */
  readonly bytes?: number;
  /** Sentences about everything that was ignored. */
  readonly warnings: readonly string[];
}

/** A pair of formats. */
export interface Conversion {
  readonly from: string;
  readonly to: string;
  /** The options that it takes; the others are refused. */
  readonly options: readonly (keyof ConversionOptions)[];
  /** Writes OUT whole, or not at all. */
  run(source: string, target: string, options: ConversionOptions): ConversionFacts;
}
