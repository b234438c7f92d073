/** A GGUF model with its weights in another type; vocabulary and all other metadata stay as they are. */

import fs from 'node:fs';
import path from 'node:path';
import { removeLeftovers } from '../../checkpoint/files/atomic-write.js';
import { GGUF_TYPES, type GgufType } from '../../checkpoint/gguf/block-types.js';
import { isBlockType } from '../../checkpoint/gguf/blocks/parts.js';
import { ggufToPlanar } from '../../checkpoint/gguf/blocks/planar.js';
import { type GgufFile, ggufToFloat32, openGguf } from '../../checkpoint/gguf/gguf.js';
import type { GgufValue } from '../../checkpoint/gguf/values.js';
import { type GgufTensorSource, writeGguf } from '../../checkpoint/gguf/write.js';
import { planarToFloat32 } from '../../checkpoint/planar/decode.js';
import { LowrankError } from '../../core/errors.js';
import { requireNewFile } from '../command/require-new-output.js';
import { asGgufType } from './as-type.js';
import { type Conversion, kOp } from './conversion.js';
import { fileTypeOf } from './file-type.js';
import { WeightErrors } from './weight-error.js';

export const ggufToGguf: Conversion = {
  from: 'GGUF model',
  to: 'GGUF model',
  options: ['requantize', 'name'],
  run(source, target, { requantize, name }, onProgress) {
    if (requantize === undefined) {
      const text = `${kOp}: --requantize must be given for a GGUF model that stays one: the type of its weights`;
      throw new LowrankError('ERR_VALUE', text, { op: kOp });
    }
    requireNewFile(kOp, source, target);
    removeLeftovers(path.resolve(target));
    const file = openGguf(source);
    const errors = new WeightErrors();
    const warnings: string[] = [];
    const names = file.names();
    const tensors = new Map<string, GgufTensorSource>();
    let done = 0;
    for (const [tensor, own] of file.tensors()) {
      const scale = tensor.replace(/\.weight$/, '.scale');
      const changes = isWeight(tensor, own.shape) && own.type !== requantize;
      if (changes && (own.shape[1] as number) % GGUF_TYPES[requantize].elements !== 0) {
        const columns = `its ${own.shape[1]} columns are no multiple of ${GGUF_TYPES[requantize].elements}`;
        warnings.push(`${tensor} is as in IN: ${columns}`);
      } else if (changes) {
        const make = () => {
          const before = valuesOf(file, tensor);
          const made = asGgufType(tensor, before, own.shape, requantize);
          const after = isBlockType(made.type)
            ? planarToFloat32(ggufToPlanar(made))
            : ggufToFloat32(made);
          errors.add(tensor, requantize, before, after);
          onProgress('writing', ++done, names.length);
          return made.data;
        };
        tensors.set(tensor, { type: requantize, shape: own.shape, data: make });
        continue;
      }
      // The factor of an NVFP4 weight goes with it.
      const weight = tensor.replace(/\.scale$/, '.weight');
      const base = tensor.endsWith('.scale') ? file.info(weight) : undefined;
      if (base !== undefined && tensors.get(weight)?.type !== 'NVFP4' && scale === tensor) continue;
      const data = () => {
        onProgress('writing', ++done, names.length);
        return own.data();
      };
      tensors.set(tensor, { ...own, data });
    }
    const types = [...tensors].filter(([tensor, { shape }]) => isWeight(tensor, shape));
    const stored = types.map(([, { type }]) => type);
    const metadata = new Map<string, GgufValue>(file.metadata);
    if (name !== undefined) metadata.set('general.name', { type: 'string', value: name });
    for (const [key, value] of fileTypeOf(stored)) metadata.set(key, value);
    writeGguf(target, { version: file.version, metadata, tensors });
    return {
      architecture: String(file.metadata.get('general.architecture')?.value),
      tensors: tensors.size,
      types: [...new Set<GgufType>(stored)],
      errors: errors.layers,
      ...(errors.total === undefined ? {} : { error: errors.total }),
      bytes: fs.statSync(target).size,
      warnings,
    };
  },
};

const isWeight = (name: string, shape: readonly number[]): boolean =>
  shape.length === 2 && name.endsWith('.weight');

function valuesOf(file: GgufFile, name: string): Float32Array {
  const tensor = file.read(name);
  if (!isBlockType(tensor.type)) return ggufToFloat32(tensor);
  const scale = name.replace(/\.weight$/, '.scale');
  return planarToFloat32(ggufToPlanar(tensor, file.has(scale) ? file.read(scale) : undefined));
}
