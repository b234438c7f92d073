/** Configurations that leave out all that they may. */
import type { JsonObject } from '../../lib/checkpoint/files/json-file.js';
import type { DecoderConfig } from '../../lib/index.js';
import { parseDecoderConfig } from '../../lib/model/read-config.js';

const SIZES = {
  hidden_size: 32,
  intermediate_size: 20,
  num_hidden_layers: 6,
  num_attention_heads: 8,
  vocab_size: 7,
};

const bare = (className: string, changes: JsonObject = {}): JsonObject => {
  const all: JsonObject = { architectures: [className], ...SIZES, ...changes };
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined));
};
/** Reads a config of an architecture with few keys; an undefined change takes a key out. */
export const parse = (className: string, changes: JsonObject = {}): DecoderConfig =>
  parseDecoderConfig('test', 'config.json', bare(className, changes));
