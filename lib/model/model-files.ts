/** What a decoder reads of a model on disk, whatever kind of file holds it. */

import type { PlanarWeight } from '../checkpoint/planar/planar-weight.js';
import type { RawTensor } from '../checkpoint/raw-tensor.js';
import type { RawTensorInfo } from '../checkpoint/safetensors.js';
import type { DecoderConfig } from './config/decoder-config.js';
import type { DecoderPlaces } from './decoder-tensors.js';

/** Called with each tensor that is read, as it stands in the file. */
export type OnTensor = (name: string, raw: RawTensor) => void;

/**
 * A model on disk: a Hugging Face folder or a GGUF file. Tensors go by their names in the Hugging Face folder.
 * @example
 * const model: ModelFiles = openModel('model.gguf');
 * console.log(model.decoder.layers.length, model.layouts);
 */
export interface ModelFiles {
  /** The folder or the file. */
  readonly path: string;
  /** What the model computes, layer by layer. */
  readonly decoder: DecoderConfig;
  /** Which tensor goes where in the decoder. */
  readonly places: DecoderPlaces;
  /** Harmless oddities, in words. */
  readonly warnings: readonly string[];
  /** Bytes of all files that hold tensors. */
  readonly byteLength: number;
  /** Where the tokenizer is: a `tokenizer.json`, or the GGUF file itself; undefined if there is none. */
  readonly tokenizerPath: string | undefined;
  /** Dtype, shape and size of a dense tensor, or `undefined`. */
  info(name: string): RawTensorInfo | undefined;
  /** Reads a dense tensor. */
  read(name: string): RawTensor;
  /** How a linear layer is stored, such as `gptq` or `Q4_K`; undefined where its weight is dense. */
  layoutOf(module: string): string | undefined;
  /** The layouts of all quantised layers, each once. */
  readonly layouts: readonly string[];
  /** Bytes that the tensors of a quantised layer take in the files. */
  quantizedBytes(module: string): number;
  /** Reads a quantised layer. */
  readQuantized(module: string, onTensor?: OnTensor): { readonly weight: PlanarWeight };
}
