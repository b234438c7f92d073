/** Conversions of LoRA adapters. */

import { statSync } from 'node:fs';
import { ggufToAdapter } from '../../checkpoint/gguf/adapter/from-gguf.js';
import { adapterToGguf, type GgufAdapterType } from '../../checkpoint/gguf/adapter/to-gguf.js';
import { openGguf } from '../../checkpoint/gguf/gguf.js';
import { writeGguf } from '../../checkpoint/gguf/write.js';
import { readPeftAdapter, writePeftAdapter } from '../../checkpoint/peft/peft.js';
import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { requireNewFile, requireNewFolder } from '../command/require-new-output.js';
import { readBaseModel } from './base-model.js';
import {
  type Conversion,
  type ConversionFacts,
  type ConversionOptions,
  kOp,
  requireGgufName,
} from './conversion.js';

/** What `--type` may be, as llama.cpp's converter spells it. */
export const factorTypes = {
  f32: 'F32',
  f16: 'F16',
  bf16: 'BF16',
  q8_0: 'Q8_0',
} as const satisfies Readonly<Record<string, GgufAdapterType>>;

const isPermuted = (name: string): boolean => /\.attn_[qk]\.weight\.lora_b$/.test(name);

function withoutBase(why: string): LowrankError {
  const text = `--base must be given, ${why}: config.json of the base model, its folder, or its .gguf file`;
  return new LowrankError('ERR_VALUE', `${kOp}: ${text}`, { op: kOp });
}

export const peftToGguf: Conversion = {
  from: 'PEFT adapter',
  to: 'GGUF adapter',
  options: ['base', 'type', 'name'],
  run(source, target, { base, type, name }) {
    if (base === undefined) throw withoutBase('because a GGUF adapter names its architecture');
    requireGgufName(target);
    requireNewFile(kOp, source, target);
    return writeAdapterGguf(source, target, {
      base,
      ...(type !== undefined && { type }),
      ...(name !== undefined && { name }),
    });
  },
};

/**
 * Writes a LoRA folder as a GGUF adapter, which replaces an older file.
 * @throws LowrankError as {@link peftToGguf}
 */
export function writeAdapterGguf(
  source: string,
  target: string,
  { base, type, name }: Pick<ConversionOptions, 'type' | 'name'> & { readonly base: string },
): ConversionFacts {
  const model = readBaseModel(kOp, base);
  const adapter = readPlainLora(source);
  const content = adapterToGguf(adapter, model, {
    ...(type !== undefined && { type: factorTypes[type] }),
    ...(name !== undefined && { name }),
  });
  writeGguf(target, content);
  const alpha = content.metadata.get('adapter.lora.alpha')?.value as number;
  const ranks = adapter.modules.map(({ r }) => r);
  return facts(target, model.architecture, ranks, alpha, adapter.warnings);
}

/** Adds what to do to the error about another method. */
function readPlainLora(source: string) {
  try {
    return readPeftAdapter(source, { embeddings: true });
  } catch (error) {
    if (!(error instanceof LowrankError) || error.code !== 'ERR_UNSUPPORTED') throw error;
    const text = `${error.message}. Merge the adapter into its model, and convert the model`;
    throw new LowrankError(error.code, text, { op: kOp, cause: error });
  }
}

export const ggufToPeft: Conversion = {
  from: 'GGUF adapter',
  to: 'PEFT adapter',
  options: ['base'],
  run(source, target, { base }) {
    requireNewFolder(kOp, target);
    const file = openGguf(source);
    const architecture = String(file.metadata.get('general.architecture')?.value);
    const model = base === undefined ? undefined : readBaseModel(kOp, base);
    if (model !== undefined && model.architecture !== architecture) {
      const text = `${kOp}: --base must be a model of the adapter's architecture, ${printable(architecture)}`;
      throw new LowrankError('ERR_FILE', `${text}, got ${model.architecture}`, { op: kOp });
    }
    if (model === undefined && architecture === 'llama' && file.names().some(isPermuted)) {
      throw withoutBase('because rows of q and k have another order in GGUF');
    }
    const parts = ggufToAdapter(file, model);
    writePeftAdapter(target, parts);
    const ranks = parts.modules.map(({ loraA }) => loraA.shape[0] as number);
    return facts(target, architecture, ranks, parts.config.loraAlpha, []);
  },
};

function facts(
  target: string,
  architecture: string,
  ranks: readonly number[],
  alpha: number,
  warnings: readonly string[],
): ConversionFacts {
  const stat = statSync(target);
  return {
    architecture,
    modules: ranks.length,
    ranks: [...new Set(ranks)].sort((a, b) => a - b),
    alpha,
    ...(stat.isFile() && { bytes: stat.size }),
    warnings,
  };
}
