/** A Hugging Face model folder as a GGUF file. */

import fs from 'node:fs';
import path from 'node:path';
import { removeLeftovers } from '../../checkpoint/files/atomic-write.js';
import { jsonBounds } from '../../checkpoint/files/json-bounds.js';
import { readJsonObject } from '../../checkpoint/files/json-file.js';
import { GGUF_TYPES, type GgufType } from '../../checkpoint/gguf/block-types.js';
import { isBlockType } from '../../checkpoint/gguf/blocks/parts.js';
import { ggufToPlanar } from '../../checkpoint/gguf/blocks/planar.js';
import { ggufToFloat32 } from '../../checkpoint/gguf/gguf.js';
import { hfToGguf } from '../../checkpoint/gguf/names.js';
import { exactGguf } from '../../checkpoint/gguf/quantize/exact.js';
import { floatBytes, isFloatType } from '../../checkpoint/gguf/quantize/floats.js';
import { permuteGgufRows } from '../../checkpoint/gguf/rows.js';
import type { GgufValue } from '../../checkpoint/gguf/values.js';
import { type GgufTensorSource, writeGguf } from '../../checkpoint/gguf/write.js';
import { planarToFloat32 } from '../../checkpoint/planar/decode.js';
import { bytesOf } from '../../checkpoint/raw-tensor.js';
import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import type { DecoderLayerConfig } from '../../model/config/decoder-config.js';
import { moduleOf, tensorShapes } from '../../model/decoder-tensors.js';
import { ggufModelHead } from '../../model/gguf/metadata.js';
import { openHfModel } from '../../model/hf-model.js';
import type { FolderModel } from '../../model/merged/merged-model.js';
import { ggufVocabulary } from '../../text/gguf-vocabulary.js';
import { folderTemplate } from '../../text/template-files.js';
import { requireNewFile } from '../command/require-new-output.js';
import { asGgufType } from './as-type.js';
import {
  type Conversion,
  type ConversionFacts,
  type ConversionOptions,
  kOp,
  type OnProgress,
  requireGgufName,
} from './conversion.js';
import { fileTypeOf } from './file-type.js';
import { WeightErrors } from './weight-error.js';

/** A tensor of the file to write: how it is made is known before it is. */
interface Planned {
  readonly name: string;
  readonly type: GgufType;
  readonly shape: readonly number[];
  make(): Uint8Array;
}

export const folderToGguf: Conversion = {
  from: 'Hugging Face folder',
  to: 'GGUF model',
  options: ['requantize', 'name', 'noVocabulary'],
  run(source, target, options, onProgress) {
    requireGgufName(target);
    requireNewFile(kOp, source, target);
    removeLeftovers(path.resolve(target));
    return convertToGguf(openHfModel(source), target, options, onProgress);
  },
};

/**
 * Writes a GGUF file, which replaces an older one.
 * @throws LowrankError as {@link folderToGguf}
 */
export function convertToGguf(
  model: FolderModel,
  target: string,
  options: ConversionOptions,
  onProgress: OnProgress,
): ConversionFacts {
  return new FolderConverter(model, options, onProgress).write(target);
}

/**
 * Checks that a model can become a GGUF file, before minutes are spent.
 * @throws LowrankError as {@link convertToGguf} for its architecture, its layers and its tokenizer
 */
export function requireGguf(model: FolderModel, options: ConversionOptions): void {
  new FolderConverter(model, options, () => {}).check();
}

class FolderConverter {
  readonly #model: FolderModel;
  readonly #errors = new WeightErrors();
  readonly #warnings: string[];
  #done = 0;

  constructor(
    model: FolderModel,
    private readonly options: ConversionOptions,
    private readonly onProgress: OnProgress,
  ) {
    this.#model = model;
    this.#warnings = [...this.#model.warnings];
  }

  check(): void {
    this.#planned();
    this.#vocabulary();
  }

  #planned() {
    const { decoder, folder, places } = this.#model;
    const what = printable(path.join(folder, 'config.json'));
    const head = ggufModelHead(kOp, what, decoder);
    this.#warnings.push(...head.warnings);
    const names = [...tensorShapes(places)];
    this.#warnOfOthers(new Set(names.map(([name]) => name)));
    const planned = names.map(([name, shape], i) => {
      this.onProgress('checking', i + 1, names.length);
      return this.#plan(head.architecture, name, shape);
    });
    return { head, planned };
  }

  write(target: string): ConversionFacts {
    const { folder } = this.#model;
    const { head, planned } = this.#planned();
    const tensors = new Map<string, GgufTensorSource>(head.tensors);
    let extra = 0;
    for (const { scale, ...tensor } of planned) {
      tensors.set(tensor.name, { ...tensor, data: () => this.#made(tensor, planned.length) });
      if (scale === undefined) continue;
      tensors.set(tensor.name.replace(/\.weight$/, '.scale'), scale);
      extra++;
    }
    const types = planned.filter(({ shape }) => shape.length === 2).map(({ type }) => type);
    const metadata = new Map<string, GgufValue>([
      ['general.architecture', { type: 'string', value: head.architecture }],
      ['general.type', { type: 'string', value: 'model' }],
      [
        'general.name',
        { type: 'string', value: this.options.name ?? path.basename(path.resolve(folder)) },
      ],
      ...head.metadata,
      ...fileTypeOf(types),
      ...this.#vocabulary(),
    ]);
    writeGguf(target, { metadata, tensors });
    return {
      architecture: head.architecture,
      tensors: planned.length + head.tensors.size + extra,
      types: [...new Set(types)],
      bytes: fs.statSync(target).size,
      errors: this.#errors.layers,
      ...(this.#errors.total === undefined ? {} : { error: this.#errors.total }),
      warnings: this.#warnings,
    };
  }

  #made({ make }: Planned, total: number): Uint8Array {
    const bytes = make();
    this.onProgress('writing', ++this.#done, total);
    return bytes;
  }

  /** Tensors that the file would lose silently. A tied head may be saved as well, and tables of angles are computed. */
  #warnOfOthers(known: ReadonlySet<string>): void {
    const { decoder } = this.#model;
    const others = this.#model.names().filter((name) => {
      const head = name === 'lm_head.weight' && decoder.tieWordEmbeddings;
      return !known.has(name) && !head && !name.endsWith('inv_freq') && !this.#ofLayer(name);
    });
    const [first] = others;
    if (first === undefined) return;
    const more = others.length === 1 ? '' : ` and ${others.length - 1} more`;
    this.#warnings.push(`left out, as not of the architecture: ${printable(first)}${more}`);
  }

  /** Is a tensor a part of a quantised layer? */
  #ofLayer(name: string): boolean {
    const parts = name.split('.');
    return parts.some((_, i) => this.#model.layoutOf(parts.slice(0, i).join('.')) !== undefined);
  }

  #plan(architecture: string, name: string, shape: readonly number[]) {
    const place = hfToGguf(architecture, name);
    if (place === undefined) {
      const text = `${kOp}: llama.cpp has no tensor for ${printable(name)} of ${architecture}`;
      throw new LowrankError('ERR_UNSUPPORTED', text, { op: kOp });
    }
    const { permuted, normOffset } = place;
    const { heads, kvHeads } = (this.#model.decoder.layers[0] as DecoderLayerConfig).attention;
    const count = permuted === 'attention.head_count' ? heads : kvHeads;
    const rows = shape[0] as number;
    const inOrder = (data: Uint8Array) =>
      permuted === undefined ? data : permuteGgufRows(data, { rows, heads: count, to: 'gguf' });
    const module = moduleOf(name);
    const weight = shape.length === 2;
    const wanted = weight ? this.#wantedType(place.name, shape) : undefined;
    const layout = weight ? this.#model.layoutOf(module) : undefined;
    const base = { name: place.name, shape };
    if (layout !== undefined) {
      const read = () => this.#model.readQuantized(module).weight;
      const exact = exactGguf(read());
      if (exact !== undefined && (wanted === undefined || wanted === exact.tensor.type)) {
        const { type } = exact.tensor;
        const { scale } = exact;
        const make = () => inOrder((exactGguf(read()) ?? exact).tensor.data);
        return { ...base, type, make, ...(scale === undefined ? {} : { scale }) };
      }
      if (wanted === undefined) {
        const text = `layer ${printable(module)} must have an exact type in GGUF, got one in ${layout}`;
        const way = 'Give --requantize TYPE, such as q8_0 or q4_k, which tells the added error';
        throw new LowrankError('ERR_UNSUPPORTED', `${kOp}: ${text}. ${way}`, { op: kOp });
      }
      const make = () => inOrder(this.#rounded(place.name, planarToFloat32(read()), shape, wanted));
      return { ...base, type: wanted, make };
    }
    const dtype = this.#model.info(name)?.dtype ?? 'F32';
    // llama.cpp's converter writes vectors in f32.
    const type = wanted ?? (weight && isFloatType(dtype) ? dtype : 'F32');
    if (type === dtype && normOffset === undefined) {
      return { ...base, type, make: () => inOrder(bytesOf(this.#model.read(name).data)) };
    }
    if (dtype === 'F64' && wanted === undefined && weight) {
      const text = `tensor ${printable(name)} must be in F32, F16 or BF16, got F64. Give --requantize f32`;
      throw new LowrankError('ERR_UNSUPPORTED', `${kOp}: ${text}`, { op: kOp });
    }
    const make = () => {
      const values = this.#model.readFloat32(name);
      const shifted = normOffset === undefined ? values : values.map((value) => value + normOffset);
      if (wanted !== undefined) return inOrder(this.#rounded(place.name, shifted, shape, wanted));
      return inOrder(floatBytes(kOp, `tensor ${place.name}`, 'F32', shifted));
    };
    return { ...base, type, make };
  }

  /** The type of --requantize, where its blocks divide the rows. */
  #wantedType(name: string, shape: readonly number[]): GgufType | undefined {
    const { requantize } = this.options;
    if (requantize === undefined) return undefined;
    const { elements } = GGUF_TYPES[requantize];
    if ((shape[1] as number) % elements === 0) return requantize;
    const text = `${name} is as in IN: its ${shape[1]} columns are no multiple of ${elements}`;
    this.#warnings.push(text);
    return undefined;
  }

  /** Values in a type, with the error that it adds. */
  #rounded(
    name: string,
    values: Float32Array,
    shape: readonly number[],
    type: GgufType,
  ): Uint8Array {
    const tensor = asGgufType(name, values, shape, type);
    const after = isBlockType(type) ? planarToFloat32(ggufToPlanar(tensor)) : ggufToFloat32(tensor);
    this.#errors.add(name, type, values, after);
    return tensor.data;
  }

  #vocabulary(): Map<string, GgufValue> {
    const { decoder, tokenizerPath, folder } = this.#model;
    const found =
      tokenizerPath === undefined || this.options.noVocabulary === true
        ? new Map<string, GgufValue>([['tokenizer.ggml.model', { type: 'string', value: 'none' }]])
        : ggufVocabulary(kOp, tokenizerPath, decoder.vocabSize);
    if (tokenizerPath === undefined) {
      this.#warnings.push('the folder has no tokenizer.json, so the file has no vocabulary');
    }
    const [eos, eot] = decoder.eosTokenIds;
    const ids = { bos: decoder.bosTokenId, eos, eot };
    for (const [name, id] of Object.entries(ids)) {
      if (id !== undefined)
        found.set(`tokenizer.ggml.${name}_token_id`, { type: 'u32', value: id });
    }
    const file = path.join(folder, 'tokenizer_config.json');
    const config = fs.existsSync(file) ? readJsonObject(kOp, file, jsonBounds.tokenizer) : {};
    const { add_bos_token: adds } = config;
    if (typeof adds === 'boolean') {
      found.set('tokenizer.ggml.add_bos_token', { type: 'bool', value: adds });
    }
    const own = path.join(folder, 'chat_template.jinja');
    const template = folderTemplate(kOp, config, { config: file, own, other: undefined });
    if (template !== undefined && found.has('tokenizer.ggml.tokens')) {
      found.set('tokenizer.chat_template', { type: 'string', value: template.source });
    }
    return found;
  }
}
