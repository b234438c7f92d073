/**
 * The tokenizer of a Hugging Face folder.
 */

import path from 'node:path';
import type { Tokenizer } from '@huggingface/tokenizers';
import type { HfModel } from '../checkpoint/hf-model.js';
import { jsonBounds } from '../checkpoint/json-bounds.js';
import { readJsonObject } from '../checkpoint/json-file.js';
import { printable } from '../checkpoint/printable.js';
import { LowrankError } from '../core/errors.js';

/** Text to token ids and back; ids are checked against the model's vocabulary. */
export class TextTokenizer {
  constructor(
    private readonly op: string,
    private readonly tokenizer: Tokenizer,
    private readonly vocabSize: number,
    /** Ends a document. */
    readonly eosId: number | undefined,
    /** Begins a text that is to be continued, where the model was trained with one. */
    readonly bosId: number | undefined,
  ) {}

  /**
   * Ids of a text, without special tokens around it.
   * @throws LowrankError `ERR_FILE` where the tokenizer is not the model's
   */
  encode(text: string): number[] {
    const { ids } = this.tokenizer.encode(text, { add_special_tokens: false });
    for (const id of ids) {
      if (!Number.isInteger(id) || id < 0 || id >= this.vocabSize) {
        const message =
          `${this.op}: tokenizer.json must give ids below the model's vocab_size ` +
          `(${this.vocabSize}), got ${id}. Tokenizer and model do not belong together`;
        throw new LowrankError('ERR_FILE', message, { op: this.op });
      }
    }
    return ids;
  }

  decode(ids: readonly number[]): string {
    if (ids.length === 0) return '';
    return this.tokenizer.decode([...ids], { skip_special_tokens: true });
  }
}

/**
 * Opens `tokenizer.json` (and `tokenizer_config.json`, if there is one) of a model folder.
 * @throws LowrankError `ERR_FILE_NOT_FOUND` · `ERR_FILE` malformed or of an unknown kind
 */
export async function openTokenizer(op: string, model: HfModel): Promise<TextTokenizer> {
  const file = model.tokenizerPath;
  if (file === undefined) {
    const text =
      `${op}: ${printable(model.folder)} must hold tokenizer.json, got a folder without one. ` +
      'Save it with tokenizer.save_pretrained of the transformers library';
    throw new LowrankError('ERR_FILE_NOT_FOUND', text, { op });
  }
  const tokenizerJson = readJsonObject(op, file, jsonBounds.tokenizer);
  const { Tokenizer } = await import('@huggingface/tokenizers');
  let tokenizer: Tokenizer;
  try {
    tokenizer = new Tokenizer(tokenizerJson, tokenizerConfig(op, path.dirname(file)));
    tokenizer.encode('a', { add_special_tokens: false });
  } catch (error) {
    const text = `${op}: ${printable(file)} must be a tokenizer that can be read, got: ${printable(String(error))}`;
    throw new LowrankError('ERR_FILE', text, { op, cause: error });
  }
  const { config } = model;
  const known = (id: number | undefined) =>
    id !== undefined && id < config.vocabSize ? id : undefined;
  return new TextTokenizer(
    op,
    tokenizer,
    config.vocabSize,
    known(config.eosTokenIds[0]),
    known(config.bosTokenId),
  );
}

function tokenizerConfig(op: string, folder: string): object {
  try {
    return readJsonObject(op, path.join(folder, 'tokenizer_config.json'), jsonBounds.tokenizer);
  } catch (error) {
    if (error instanceof LowrankError && error.code === 'ERR_FILE_NOT_FOUND') return {};
    throw error;
  }
}
