/**
 * The thread that tokenises. The patterns in a tokenizer.json are untrusted regular expressions, and one may backtrack
 * for years. In a thread it can be terminated, and the main thread still handles signals (tokenizer.ts).
 */

import { createHash } from 'node:crypto';
import path from 'node:path';
import { parentPort, workerData } from 'node:worker_threads';
import { Tokenizer } from '@huggingface/tokenizers';
import { readSmallFile } from '../checkpoint/files/file-access.js';
import { jsonBounds } from '../checkpoint/files/json-bounds.js';
import { type JsonObject, parseJsonObject } from '../checkpoint/files/json-file.js';
import { openGguf } from '../checkpoint/gguf/gguf.js';
import { type ErrorCode, LowrankError } from '../core/errors.js';
import { printable } from '../core/printable.js';
import { ChatTemplate, type Conversation } from './chat-template.js';
import { type LearnedConversation, type RenderedChat, renderTurns } from './chat-turns.js';
import { ggufTokenizer } from './gguf-tokenizer.js';
import { type FoundTemplate, folderTemplate, ggufTemplate, hashOf } from './template-files.js';

/** The data that the thread gets when it starts. */
export interface TokenizerFiles {
  readonly op: string;
  /** tokenizer.json, or a GGUF file. */
  readonly file: string;
  /** tokenizer_config.json, which need not be there; undefined for a GGUF file. */
  readonly configFile: string | undefined;
  /** Instead of the model's chat template. */
  readonly templateFile: string | undefined;
  /** The day that templates see, in milliseconds; undefined for that of training. */
  readonly day: number | undefined;
  /** One number: the index of the current text of a request. */
  readonly at: Int32Array<SharedArrayBuffer>;
}

export type TokenizerRequest =
  | { readonly encode: readonly string[] }
  | { readonly decode: readonly number[]; readonly special: boolean }
  /** Conversations to learn from. */
  | { readonly render: readonly LearnedConversation[] }
  /** A conversation that the assistant continues. */
  | { readonly prompt: Conversation };

export type TokenizerReply =
  | Started
  /** Ids of all texts, one after another, and the length of each. */
  | { readonly ids: Int32Array<ArrayBuffer>; readonly lengths: readonly number[] }
  | { readonly text: string }
  /** The texts of each conversation. */
  | { readonly chats: readonly (readonly RenderedChat[])[] }
  /** It cannot start. */
  | { readonly code: ErrorCode; readonly message: string }
  /** The current text cannot be tokenised. */
  | { readonly problem: string };

/** What is known once it has started. */
export interface Started {
  /** The SHA-256 of the files by their names. */
  readonly hashes: Readonly<Record<string, string>>;
  /** The ids of special tokens, with their texts. */
  readonly special: readonly (readonly [id: number, text: string])[];
  /** The chat template, if there is one. */
  readonly template: { readonly file: string; readonly sha256: string } | undefined;
}

const { op, file, configFile, templateFile, day, at } = workerData as TokenizerFiles;
const hashes: Record<string, string> = {};
const reply = (message: TokenizerReply) => parentPort?.postMessage(message);

function readJson(from: string, name: string): JsonObject {
  const bytes = readSmallFile(op, from, jsonBounds.tokenizer.maxBytes);
  hashes[name] = createHash('sha256').update(bytes).digest('hex');
  return parseJsonObject(op, printable(from), bytes, jsonBounds.tokenizer);
}

function readConfig(from: string): JsonObject {
  try {
    return readJson(from, 'tokenizer_config.json');
  } catch (error) {
    if (!(error instanceof LowrankError) || error.code !== 'ERR_FILE_NOT_FOUND') throw error;
    return {};
  }
}

interface Files {
  readonly json: object;
  readonly config: object;
  readonly template: FoundTemplate | undefined;
}

function readFiles(): Files {
  if (configFile !== undefined) {
    const [json, config] = [readJson(file, 'tokenizer.json'), readConfig(configFile)];
    const own = path.join(path.dirname(file), 'chat_template.jinja');
    const paths = { config: configFile, own, other: templateFile };
    return { json, config, template: folderTemplate(op, config, paths) };
  }
  const opened = openGguf(file);
  const json = ggufTokenizer(op, opened);
  hashes['vocabulary of the GGUF file'] = createHash('sha256')
    .update(JSON.stringify(json))
    .digest('hex');
  const config = { clean_up_tokenization_spaces: false };
  return { json, config, template: ggufTemplate(op, opened, templateFile) };
}

function open({ json, config }: Files): Tokenizer {
  try {
    const tokenizer = new Tokenizer(json, config);
    tokenizer.encode('a', { add_special_tokens: false });
    return tokenizer;
  } catch (error) {
    const text = `${op}: ${printable(file)} must be a tokenizer that can be read, got: ${printable(String(error))}`;
    throw new LowrankError('ERR_FILE', text, { op });
  }
}

/** Renders with the model's template, which is parsed when it is first needed. */
class Chats {
  #template: ChatTemplate | undefined;

  constructor(
    private readonly found: FoundTemplate | undefined,
    private readonly special: Started['special'],
  ) {}

  all(conversations: readonly LearnedConversation[]): RenderedChat[][] {
    const texts = this.special.map(([, text]) => text);
    return conversations.map((each, i) => {
      Atomics.store(at, 0, i);
      return renderTurns(this.#opened(), each, texts);
    });
  }

  prompt(conversation: Conversation): string {
    return this.#opened().render(conversation, { generate: true });
  }

  #opened(): ChatTemplate {
    if (this.found === undefined) throw new Error('no template');
    const { source, tokens } = this.found;
    const known = day === undefined ? undefined : new Date(day);
    this.#template ??= new ChatTemplate(source, tokens, known);
    return this.#template;
  }
}

function answer(tokenizer: Tokenizer, chats: Chats, request: TokenizerRequest): TokenizerReply {
  if ('render' in request) return { chats: chats.all(request.render) };
  if ('prompt' in request) return { text: chats.prompt(request.prompt) };
  if ('decode' in request) {
    return {
      text: tokenizer.decode([...request.decode], { skip_special_tokens: !request.special }),
    };
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
  const files = readFiles();
  const tokenizer = open(files);
  const special = [...tokenizer.get_added_tokens_decoder()]
    .filter(([, token]) => token.special)
    .map(([id, token]) => [id, token.content] as const);
  const { template } = files;
  const known =
    template === undefined ? undefined : { file: template.file, sha256: hashOf(template) };
  reply({ hashes, special, template: known });
  const chats = new Chats(template, special);
  parentPort?.on('message', (request: TokenizerRequest) => {
    try {
      reply(answer(tokenizer, chats, request));
    } catch (error) {
      reply({ problem: error instanceof Error ? error.message : String(error) });
    }
  });
} catch (error) {
  if (!(error instanceof LowrankError)) throw error;
  reply({ code: error.code, message: error.message });
}
