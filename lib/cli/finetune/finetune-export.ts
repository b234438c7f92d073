/** `--export`: what `lowrank finetune` writes beside the adapter, for programs that read no PEFT folder. */

import path from 'node:path';
import type { GgufType } from '../../checkpoint/gguf/block-types.js';
import { ggufArchitectures } from '../../checkpoint/gguf/names.js';
import { LowrankError } from '../../core/errors.js';
import type { FinetuneOptions } from '../../finetune/finetune.js';
import { isGgufPath } from '../../model/gguf/open-model.js';
import { openHfModel } from '../../model/hf-model.js';
import type { Progress } from '../../report/terminal.js';
import type { Arguments } from '../command/arguments.js';
import { readBaseModel } from '../convert/base-model.js';
import { writeAdapterGguf } from '../convert/convert-adapter.js';
import { requireGguf } from '../convert/folder-to-gguf.js';
import { mergedFormats, mergeIntoModel } from '../merge/merge-model.js';

const kOp = 'finetune';

/** Where each export goes in OUT. */
const kNames = { merged: 'merged', gguf: 'model.gguf', 'lora-gguf': 'adapter.gguf' } as const;

/** One export. */
export interface Export {
  readonly kind: keyof typeof kNames;
  /** Of the weights of a merged model. */
  readonly format: string;
}

/** `gguf:q8_0,lora-gguf` @throws UsageError */
export function readExports(parsed: Arguments): readonly Export[] {
  const text = parsed.text('export');
  if (text === undefined) return [];
  return text.split(',').map((part) => {
    const [kind = '', format, ...more] = part.trim().split(':');
    const formats = kind === 'gguf' ? mergedFormats.gguf : mergedFormats.folder;
    const known = Object.hasOwn(kNames, kind) && more.length === 0;
    const taken = format === undefined || (kind !== 'lora-gguf' && formats.includes(format));
    if (known && taken) return { kind: kind as Export['kind'], format: format ?? 'bf16' };
    const own = known && kind !== 'lora-gguf' ? ` with a format of ${formats.join(', ')}` : '';
    const expected = `a list of merged, gguf, lora-gguf, perhaps with a format (gguf:q8_0)${own}`;
    throw parsed.refuse('export', expected, part);
  });
}

/**
 * Checks before training what the exports would be rejected for after it.
 * @throws LowrankError `ERR_UNSUPPORTED` · as {@link requireGguf}
 */
export function requireExports(options: FinetuneOptions, exports: readonly Export[]): void {
  const { method, definition } = options.adapter.method;
  const refuse = (kind: string, expected: string, got: string): never => {
    const text = `${kOp}: --export ${kind} must be of ${expected}, got ${got}`;
    throw new LowrankError('ERR_UNSUPPORTED', text, { op: kOp });
  };
  for (const { kind, format } of exports) {
    if (kind === 'lora-gguf') {
      if (method !== 'lora') refuse(kind, 'the method lora', method);
      const { architecture } = readBaseModel(kOp, options.model);
      if (!ggufArchitectures.includes(architecture)) {
        refuse(kind, `a model of ${ggufArchitectures.join(', ')}`, architecture);
      }
    } else if (definition.mergeable === false) {
      refuse(kind, 'a method that can be merged', method);
    } else if (kind === 'gguf' && !isGgufPath(options.model)) {
      const requantize = format.toUpperCase() as GgufType;
      requireGguf(openHfModel(options.model), { requantize });
    }
  }
}

/**
 * Writes the exports of a finished run. Older ones of the same names are replaced.
 * @returns their paths
 * @throws LowrankError as {@link mergeIntoModel} and {@link writeAdapterGguf}; the adapter is complete then
 */
export async function writeExports(
  { model, out }: FinetuneOptions,
  exports: readonly Export[],
  progress: Progress,
  signal: AbortSignal,
): Promise<readonly string[]> {
  const written: string[] = [];
  for (const { kind, format } of exports) {
    const target = path.join(out, kNames[kind]);
    progress.phase(`exporting ${kind}`);
    if (kind === 'lora-gguf') writeAdapterGguf(out, target, { base: model });
    else {
      const merge = { model, adapter: out, out: target, format, replace: true };
      await mergeIntoModel(merge, (_, done, total) => progress.update(done, total), signal);
    }
    written.push(target);
  }
  progress.close();
  return written;
}
