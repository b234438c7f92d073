/**
 * The thread that tokenises. The patterns in a tokenizer.json are untrusted regular expressions, and one may backtrack
 * for years. In a thread it can be terminated, and the main thread still handles signals (tokenizer.ts).
 */

import { createHash } from 'node:crypto';
import { parentPort, workerData } from 'node:worker_threads';
import { Tokenizer } from '@huggingface/tokenizers';
import { readSmallFile } from '../checkpoint/files/file-access.js';
import { jsonBounds } from '../checkpoint/files/json-bounds.js';
import { parseJsonObject } from '../checkpoint/files/json-file.js';
import { openGguf } from '../checkpoint/gguf/gguf.js';
import { type ErrorCode, LowrankError } from '../core/errors.js';
import { printable } from '../core/printable.js';
import { ggufTokenizer } from './gguf-tokenizer.js';

/** The data that the thread gets when it starts. */
export interface TokenizerFiles {
  readonly op: string;
  /** tokenizer.json, or a GGUF file. */
  readonly file: string;
  /** tokenizer_config.json, which need not be there; undefined for a GGUF file. */
  readonly configFile: string | undefined;
  /** One number: the index of the current text of a request. */
  readonly at: Int32Array<SharedArrayBuffer>;
}

export type TokenizerRequest =
  | { readonly encode: readonly string[] }
  | { readonly decode: readonly number[] };

export type TokenizerReply =
  /** It has started; the SHA-256 of the files by their names. */
  | { readonly hashes: Readonly<Record<string, string>> }
  /** Ids of all texts, one after another, and the length of each. */
  | { readonly ids: Int32Array<ArrayBuffer>; readonly lengths: readonly number[] }
  | { readonly text: string }
  /** It cannot start. */
  | { readonly code: ErrorCode; readonly message: string }
  /** The current text cannot be tokenised. */
  | { readonly problem: string };

const { op, file, configFile, at } = workerData as TokenizerFiles;
const hashes: Record<string, string> = {};
const reply = (message: TokenizerReply) => parentPort?.postMessage(message);

function readJson(path: string, name: string): object {
  const bytes = readSmallFile(op, path, jsonBounds.tokenizer.maxBytes);
  hashes[name] = createHash('sha256').update(bytes).digest('hex');
  return parseJsonObject(op, printable(path), bytes, jsonBounds.tokenizer);
}

function readConfig(path: string): object {
  try {
    return readJson(path, 'tokenizer_config.json');
  } catch (error) {
    if (!(error instanceof LowrankError) || error.code !== 'ERR_FILE_NOT_FOUND') throw error;
    return {};
  }
}

function readFiles(): [json: object, config: object] {
  if (configFile !== undefined) return [readJson(file, 'tokenizer.json'), readConfig(configFile)];
  const json = ggufTokenizer(op, openGguf(file));
  hashes['vocabulary of the GGUF file'] = createHash('sha256')
    .update(JSON.stringify(json))
    .digest('hex');
  return [json, { clean_up_tokenization_spaces: false }];
}

function open(): Tokenizer {
  const [json, config] = readFiles();
  try {
    const tokenizer = new Tokenizer(json, config);
    tokenizer.encode('a', { add_special_tokens: false });
    return tokenizer;
  } catch (error) {
    const text = `${op}: ${printable(file)} must be a tokenizer that can be read, got: ${printable(String(error))}`;
    throw new LowrankError('ERR_FILE', text, { op });
  }
}

function answer(tokenizer: Tokenizer, request: TokenizerRequest): TokenizerReply {
  if ('decode' in request) {
    return { text: tokenizer.decode([...request.decode], { skip_special_tokens: true }) };
  }
  const lengths: number[] = [];
  const all: number[][] = [];
  for (const [i, text] of request.encode.entries()) {
    Atomics.store(at, 0, i);
    const { ids }: { ids: number[] } = tokenizer.encode(text, { add_special_tokens: false });
    const wrong = ids.find((id) => !Number.isInteger(id) || id < 0 || id >= 2 ** 31);
    if (wrong !== undefined) throw new Error(`the id ${wrong}`);
    all.push(ids);
    lengths.push(ids.length);
  }
  return { ids: Int32Array.from(all.flat()), lengths };
}

try {
  const tokenizer = open();
  reply({ hashes });
  parentPort?.on('message', (request: TokenizerRequest) => {
    try {
      reply(answer(tokenizer, request));
    } catch (error) {
      reply({ problem: error instanceof Error ? error.message : String(error) });
    }
  });
} catch (error) {
  if (!(error instanceof LowrankError)) throw error;
  reply({ code: error.code, message: error.message });
}
