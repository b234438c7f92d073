/** Where the chat template of a model is, and the special tokens that it names. */

import { createHash } from 'node:crypto';
import fs from 'node:fs';
import { readSmallFile } from '../checkpoint/files/file-access.js';
import type { JsonObject } from '../checkpoint/files/json-file.js';
import type { GgufFile } from '../checkpoint/gguf/gguf.js';
import { LowrankError } from '../core/errors.js';
import { printable } from '../core/printable.js';

/** Real ones have some 20 kB. */
const kMaxTemplateBytes = 1 << 20;

/** A template that was found, not yet parsed. */
export interface FoundTemplate {
  /** Its file, for messages. */
  readonly file: string;
  readonly source: string;
  /** Special tokens by the names of transformers. */
  readonly tokens: Readonly<Record<string, unknown>>;
}

const kTokenNames = ['bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask'].map(
  (name) => `${name}_token`,
);

const textOf = (token: unknown): string | undefined => {
  const content = (token as JsonObject | null | undefined)?.content;
  if (typeof token === 'string') return token;
  return typeof content === 'string' ? content : undefined;
};

/** The special tokens of a tokenizer_config.json. */
export function specialTokensOf(config: JsonObject): Readonly<Record<string, unknown>> {
  const named = kTokenNames.flatMap((name) => {
    const text = Object.hasOwn(config, name) ? textOf(config[name]) : undefined;
    return text === undefined ? [] : [[name, text] as const];
  });
  return Object.fromEntries(named);
}

/** The template of a tokenizer_config.json: a text, or a list of named ones of which `default` counts. */
function configuredTemplate(config: JsonObject): string | undefined {
  const given = config.chat_template;
  if (typeof given === 'string') return given;
  if (!Array.isArray(given)) return undefined;
  const named = (given as (JsonObject | null)[]).find((each) => each?.name === 'default');
  return typeof named?.template === 'string' ? named.template : undefined;
}

/**
 * The template of a Hugging Face folder. A file of its own counts more than the configuration, as in transformers.
 * @param config the content of tokenizer_config.json
 * @param paths of tokenizer_config.json, of chat_template.jinja, and of a file that counts more than both
 * @throws LowrankError `ERR_FILE` · `ERR_FILE_NOT_FOUND` · `ERR_PATH`
 */
export function folderTemplate(
  op: string,
  config: JsonObject,
  paths: { readonly config: string; readonly own: string; readonly other: string | undefined },
): FoundTemplate | undefined {
  const tokens = specialTokensOf(config);
  const file = paths.other ?? (fs.existsSync(paths.own) ? paths.own : undefined);
  if (file !== undefined) return { file, source: readTemplate(op, file), tokens };
  const source = configuredTemplate(config);
  return source === undefined ? undefined : { file: paths.config, source, tokens };
}

/** The template of a GGUF file. @throws as {@link folderTemplate} */
export function ggufTemplate(
  op: string,
  file: GgufFile,
  other: string | undefined,
): FoundTemplate | undefined {
  const value = (key: string) => file.metadata.get(`tokenizer.${key}`);
  const list = value('ggml.tokens');
  const texts = list?.type === 'array' && list.of === 'string' ? list.value : [];
  const ids = { bos: 'bos', eos: 'eos', unk: 'unknown', pad: 'padding' };
  const tokens = Object.entries(ids).flatMap(([name, own]) => {
    const id = value(`ggml.${own}_token_id`)?.value;
    const text = typeof id === 'number' ? texts[id] : undefined;
    return typeof text === 'string' ? [[`${name}_token`, text] as const] : [];
  });
  const found = { tokens: Object.fromEntries(tokens) };
  if (other !== undefined) return { ...found, file: other, source: readTemplate(op, other) };
  const source = value('chat_template')?.value;
  return typeof source === 'string' ? { ...found, file: file.path, source } : undefined;
}

function readTemplate(op: string, file: string): string {
  const bytes = readSmallFile(op, file, kMaxTemplateBytes);
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (error) {
    const text = `${op}: ${printable(file)} must be a template in UTF-8, got other bytes`;
    throw new LowrankError('ERR_FILE', text, { op, cause: error });
  }
}

/** SHA-256 of a template's source. */
export const hashOf = ({ source }: FoundTemplate): string =>
  createHash('sha256').update(source).digest('hex');
