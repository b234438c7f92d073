/** What a conversion is: a row of the table in convert.ts. */

import path from 'node:path';
import type { GgufType } from '../../checkpoint/gguf/block-types.js';
import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import type { LayerError } from './weight-error.js';

/** The command, as its errors name it. */
export const kOp = 'convert';

/** Options that a conversion may take. */
export interface ConversionOptions {
  /** Path of the base model. */
  readonly base?: string;
  readonly type?: 'f32' | 'f16' | 'bf16' | 'q8_0';
  readonly name?: string;
  /** The type of all weights, whatever it costs. */
  readonly requantize?: GgufType;
  readonly noVocabulary?: true;
}

/** What was converted. */
export interface ConversionFacts {
  readonly architecture: string;
  /** Of an adapter. */
  readonly modules?: number;
  /** Of an adapter: distinct ones, ascending. */
  readonly ranks?: readonly number[];
  readonly alpha?: number;
  /** Of a model. */
  readonly tensors?: number;
  /** How the weights of a model are stored. */
  readonly types?: readonly string[];
  /** Layers whose values changed. */
  readonly errors?: readonly LayerError[];
  /** ‖w' − w‖ / ‖w‖ over those layers. */
  readonly error?: number;
  /** Of a file. */
  readonly bytes?: number;
  /** Sentences about everything that was ignored. */
  readonly warnings: readonly string[];
}

/** Told of long work. */
export type OnProgress = (phase: string, done: number, total: number) => void;

/** A pair of formats. */
export interface Conversion {
  readonly from: string;
  readonly to: string;
  /** The options that it takes; the others are refused. */
  readonly options: readonly (keyof ConversionOptions)[];
  /** Writes OUT whole, or not at all. */
  run(
    source: string,
    target: string,
    options: ConversionOptions,
    onProgress: OnProgress,
  ): ConversionFacts;
}

/** @throws ERR_VALUE */
export function requireGgufName(target: string): void {
  if (path.extname(target).toLowerCase() === '.gguf') return;
  const text = `${kOp}: OUT must be a file with the ending .gguf, got ${printable(target)}`;
  throw new LowrankError('ERR_VALUE', text, { op: kOp });
}
