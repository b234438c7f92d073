/** What the tests of data share: a tokenizer of bytes with marks of a chat, and data from lines. */

import fs from 'node:fs';
import path from 'node:path';
import { type DataOptions, DataSource, type PreparedData } from '../../lib/data/data-source.js';
import { openHfModel } from '../../lib/model/hf-model.js';
import { openTokenizer, type TextTokenizer } from '../../lib/text/tokenizer.js';
import { temporaryFolder } from '../finetune/setup.js';
import { type TinyCheckpointOptions, writeTinyCheckpoint } from '../finetune/tiny-checkpoint.js';

/** The ids of the marks in {@link chatModel}'s tokenizer; a byte is its own id. */
export const ids = { end: 256, begin: 257, stop: 258 } as const;

/** Each turn as `<b>role:content<e>`. */
export const chatTemplate =
  "{% for m in messages %}{{ '<b>' + m.role + ':' + m.content + '<e>' }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<b>assistant:' }}{% endif %}";

/** A tiny model whose tokenizer has the marks of {@link chatTemplate}. */
export function chatModel(folder: string, options: TinyCheckpointOptions = {}): string {
  writeTinyCheckpoint(folder, {
    special: ['<b>', '<e>'],
    chatTemplate,
    maxPositionEmbeddings: 256,
    ...options,
  });
  return folder;
}

/** A file with one JSON object a line. */
export function writeLines(objects: readonly object[]): string {
  const file = path.join(temporaryFolder(), 'data.jsonl');
  fs.writeFileSync(file, objects.map((each) => JSON.stringify(each)).join('\n'));
  return file;
}

export async function withTokenizer<T>(
  model: string,
  body: (tokenizer: TextTokenizer) => Promise<T>,
): Promise<T> {
  const tokenizer = await openTokenizer('test', openHfModel(model));
  try {
    return await body(tokenizer);
  } finally {
    await tokenizer.close();
  }
}

/** Objects as the data of a run. */
export function prepare(
  tokenizer: TextTokenizer,
  objects: readonly object[],
  options: Partial<DataOptions> = {},
): Promise<PreparedData> {
  const data = [writeLines(objects)];
  const source = DataSource.open('test', { data, separator: '', seqLen: 64, ...options });
  return source.prepare(tokenizer);
}
