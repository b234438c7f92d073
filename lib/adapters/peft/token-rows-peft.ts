/**
 * The layout of trained embedding rows in PEFT's folders: of type TRAINABLE_TOKENS, or in a LoRA folder whose config
 * has `trainable_token_indices` and whose tensors are `<module>.token_adapter.trainable_tokens_delta`. Both hold the
 * rows themselves, not differences from the table.
 */

import type { RawTensor } from '../../checkpoint/raw-tensor.js';
import { fail, LowrankError, wrongType } from '../../core/errors.js';
import { printableValue } from '../../core/printable.js';
import { Tensor } from '../../core/tensor.js';
import type { Adapter } from '../definition/adapter.js';
import { checkAdapters } from '../definition/adapter-map.js';
import { kPrefix } from '../definition/peft-form.js';
import { adaptersToPeft, rawOf } from './peft.js';
import { missing, type PeftFolder, PeftTensors } from './peft-tensors.js';

const kType = 'TRAINABLE_TOKENS';
const kDelta = 'trainable_tokens_delta';
/** The field of LoRA's config, and the prefix of the names of the rows. */
const kIndices = 'trainable_token_indices';
const kBeside = 'token_adapter';
/** Types whose configs have that field. */
const kBesideTypes: readonly unknown[] = ['LORA', 'ADALORA'];

/** Rows and their ids, not checked yet. */
interface StoredRows {
  readonly raw: RawTensor;
  readonly tokens: readonly number[];
}

interface Rows {
  readonly rows: Tensor;
  readonly tokens: readonly number[];
}

/**
 * PEFT's rule: names in a dict are ends of module names, and the last one that fits applies; a list
 * is for the module with rows.
 */
function tokensOf(op: string, indices: unknown, module: string): readonly number[] {
  if (Array.isArray(indices)) return indices;
  if (typeof indices !== 'object' || indices === null) {
    throw wrongType(op, kIndices, 'an array of ids, or an object of such arrays by name', indices);
  }
  const names = Object.keys(indices);
  const name = names.filter((end) => module.endsWith(end)).at(-1);
  if (name === undefined) {
    const text = `${op}: ${kIndices} must name ${module}, got ${names.join(', ') || 'no names'}`;
    throw new LowrankError('ERR_FILE', text, { op });
  }
  return (indices as Readonly<Record<string, readonly number[]>>)[name] as readonly number[];
}

/** @throws ERR_UNSUPPORTED, ERR_FILE, ERR_TYPE */
export function readTokenRows(op: string, folder: PeftFolder, module: string): StoredRows {
  const stored = PeftTensors.of(op, folder);
  const { peft_type: type, token_indices: tokens, [kIndices]: indices } = folder.config;
  if (type === kType) {
    const raw = stored.own(module, kDelta) ?? missing(op, module, kDelta);
    return { raw, tokens: tokens as readonly number[] };
  }
  if (indices === undefined || indices === null) {
    fail(
      'ERR_UNSUPPORTED',
      op,
      'peft_type',
      `${kType}, or ${kIndices} given`,
      printableValue(type),
    );
  }
  const own = tokensOf(op, indices, module);
  const raw = stored.own(`${module}.${kBeside}`, kDelta);
  return { raw: raw ?? missing(op, module, `${kBeside}.${kDelta}`), tokens: own };
}

/** Writes a folder of trained rows only. @throws ERR_VALUE */
export async function writeTokenRows(
  op: string,
  embeddings: ReadonlyMap<string, Rows>,
): Promise<PeftFolder> {
  const first = firstOf(op, embeddings);
  const tensors = new Map<string, RawTensor>();
  for (const [module, { rows, tokens }] of embeddings) {
    if (String(tokens) !== String(first.tokens)) {
      fail('ERR_VALUE', op, module, `of the tokens [${first.tokens}]`, `[${tokens}]`);
    }
    tensors.set(`${kPrefix}${module}.${kDelta}`, await rawOf(rows));
  }
  const config = {
    peft_type: kType,
    target_modules: [...embeddings.keys()],
    token_indices: [...first.tokens],
    init_weights: true,
  };
  return { config, tensors };
}

/** Adds trained rows to another folder. @throws ERR_VALUE, ERR_UNSUPPORTED, ERR_TYPE, ERR_FILE */
export async function addTokenRows(
  op: string,
  embeddings: ReadonlyMap<string, Rows>,
  beside: ReadonlyMap<string, Adapter> | PeftFolder,
): Promise<PeftFolder> {
  firstOf(op, embeddings);
  if (typeof beside !== 'object' || beside === null) {
    throw wrongType(op, 'beside', 'a Map of adapters, or a folder', beside);
  }
  const folder = 'tensors' in beside ? beside : await adaptersToPeft(checkAdapters(op, beside));
  const { config, adapterName = 'default' } = folder;
  if (!kBesideTypes.includes(config.peft_type)) {
    const expected = `${kBesideTypes.join(' or ')} (other configs have no ${kIndices})`;
    fail('ERR_UNSUPPORTED', op, 'peft_type', expected, printableValue(config.peft_type));
  }
  const tensors = new Map(folder.tensors);
  const all: Record<string, readonly number[]> = {};
  const end = `.${kBeside}.${kDelta}`;
  for (const key of PeftTensors.of(op, folder).keys()) {
    if (!key.endsWith(end)) continue;
    const module = key.slice(kPrefix.length, -end.length);
    if (!embeddings.has(module)) all[module] = tokensOf(op, config[kIndices], module);
  }
  for (const [module, { rows, tokens }] of embeddings) {
    const key = `${kPrefix}${module}${end}`;
    tensors.delete(`${key}.${adapterName}`);
    tensors.set(key, await rawOf(rows));
    all[module] = [...tokens];
  }
  return { ...folder, config: { ...config, [kIndices]: all }, tensors };
}

function firstOf(op: string, embeddings: ReadonlyMap<string, Rows>): Rows {
  if (!(embeddings instanceof Map)) throw wrongType(op, 'embeddings', 'a Map', embeddings);
  for (const [module, each] of embeddings as ReadonlyMap<string, Rows | null | undefined>) {
    if (!Tensor.is(each?.rows) || !Array.isArray(each?.tokens)) {
      throw wrongType(op, `rows of ${String(module)}`, 'TokenRows', each);
    }
  }
  const [first] = embeddings.values();
  return first ?? fail('ERR_VALUE', op, 'embeddings', 'at least one', 'none');
}
