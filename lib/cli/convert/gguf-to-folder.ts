/** A GGUF model as a Hugging Face folder. */

import fs from 'node:fs';
import path from 'node:path';
import { writeQuantizedLayer } from '../../checkpoint/codecs/quantized-layers.js';
import { tensorName } from '../../checkpoint/codecs/registry.js';
import { commitFolder, removeLeftovers, siblingName } from '../../checkpoint/files/atomic-write.js';
import { fileError } from '../../checkpoint/files/file-access.js';
import { hfToGguf } from '../../checkpoint/gguf/names.js';
import {
  floatBytes,
  type GgufFloatType,
  isFloatType,
} from '../../checkpoint/gguf/quantize/floats.js';
import { planarToFloat32 } from '../../checkpoint/planar/decode.js';
import { e2m1Levels, e8m0Table, integerLevels } from '../../checkpoint/planar/levels.js';
import type { PlanarWeight } from '../../checkpoint/planar/planar-weight.js';
import { type RawTensor, rawToFloat32, rawView } from '../../checkpoint/raw-tensor.js';
import { ShardWriter } from '../../checkpoint/shards.js';
import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { layerLinears, moduleOf, tensorShapes } from '../../model/decoder-tensors.js';
import { type GgufModel, openGgufModel } from '../../model/gguf/gguf-model.js';
import { ggufTokenizer } from '../../text/gguf-tokenizer.js';
import { requireNewFolder } from '../command/require-new-output.js';
import {
  type Conversion,
  type ConversionFacts,
  type ConversionOptions,
  kOp,
  type OnProgress,
} from './conversion.js';
import { WeightErrors } from './weight-error.js';

/** Types with an exact counterpart among the layouts of compressed-tensors. */
const kLayouts: Readonly<
  Record<string, { readonly format: string; readonly bits: number; readonly type: 'int' | 'float' }>
> = {
  Q4_0: { format: 'pack-quantized', bits: 4, type: 'int' },
  Q8_0: { format: 'int-quantized', bits: 8, type: 'int' },
  MXFP4: { format: 'mxfp4-pack-quantized', bits: 4, type: 'float' },
};

export const ggufToFolder: Conversion = {
  from: 'GGUF model',
  to: 'Hugging Face folder',
  options: ['requantize', 'noVocabulary'],
  run(source, target, options, onProgress) {
    return convertToFolder(source, target, options, onProgress);
  },
};

/** @param shard_bytes of tensors that a file of the folder has at least, but for the last one */
export function convertToFolder(
  source: string,
  target: string,
  options: ConversionOptions,
  onProgress: OnProgress,
  shard_bytes?: number,
): ConversionFacts {
  requireNewFolder(kOp, target);
  return new GgufConverter(source, options, onProgress, shard_bytes).write(target);
}

class GgufConverter {
  readonly #model: GgufModel;
  readonly #errors = new WeightErrors();
  readonly #warnings: string[] = [];
  /** The one type of the layers that stay quantised. */
  readonly #kept: string | undefined;
  readonly #float: GgufFloatType | undefined;

  constructor(
    source: string,
    options: ConversionOptions,
    private readonly onProgress: OnProgress,
    private readonly shard_bytes: number | undefined,
  ) {
    this.#model = openGgufModel(source);
    this.noVocabulary = options.noVocabulary === true;
    const { requantize } = options;
    if (requantize !== undefined && !isFloatType(requantize)) {
      const text = `${kOp}: --requantize must be f32, f16 or bf16 for a Hugging Face folder, got ${requantize}`;
      throw new LowrankError('ERR_VALUE', text, { op: kOp });
    }
    this.#float = requantize;
    this.#kept = requantize === undefined ? this.#keptType() : undefined;
  }

  private readonly noVocabulary: boolean;

  /** @throws ERR_UNSUPPORTED if the folder cannot hold the layers as they are */
  #keptType(): string | undefined {
    const refuse = (got: string): never => {
      const text = `${printable(this.#model.path)} must have its quantised layers in one of ${Object.keys(kLayouts).join(', ')}`;
      const way = 'Give --requantize f32, which is exact, or bf16';
      throw new LowrankError('ERR_UNSUPPORTED', `${kOp}: ${text}, got ${got}. ${way}`, { op: kOp });
    };
    const { layers } = this.#model.places;
    const linears = layers.flatMap(layerLinears).map(({ module }) => this.#model.layoutOf(module));
    const found = new Set(linears.filter((type) => type !== undefined));
    const [type] = found;
    if (type === undefined) return undefined;
    if (found.size > 1 || !Object.hasOwn(kLayouts, type)) refuse([...found].join(' and '));
    return type;
  }

  write(target: string): ConversionFacts {
    const full = path.resolve(target);
    const temp = siblingName(full);
    try {
      fs.mkdirSync(path.dirname(full), { recursive: true });
      removeLeftovers(full);
      fs.mkdirSync(temp);
      const tensors = this.#writeTensors(temp);
      this.#writeJson(path.join(temp, 'config.json'), this.#config());
      this.#writeTokenizer(temp);
      if (fs.existsSync(full)) fs.rmdirSync(full);
      commitFolder(kOp, temp, full);
      return {
        architecture: this.#model.decoder.architecture,
        tensors,
        types: [...new Set([this.#kept ?? [], this.#float ?? []].flat())],
        errors: this.#errors.layers,
        ...(this.#errors.total === undefined ? {} : { error: this.#errors.total }),
        warnings: this.#warnings,
      };
    } catch (error) {
      fs.rmSync(temp, { recursive: true, force: true });
      throw fileError(kOp, target, error);
    }
  }

  /** @returns the number of tensors */
  #writeTensors(folder: string): number {
    const names = [...tensorShapes(this.#model.places).keys()];
    const shards = new ShardWriter(folder, this.shard_bytes);
    for (const [i, name] of names.entries()) {
      for (const [own, tensor] of this.#tensorsOf(name)) shards.add(own, tensor);
      this.onProgress('writing', i + 1, names.length);
    }
    return shards.finish();
  }

  /** The tensors of the folder for one of the decoder. */
  #tensorsOf(name: string): [string, RawTensor][] {
    const model = this.#model;
    const module = moduleOf(name);
    const type = model.layoutOf(module);
    if (type === undefined) {
      const raw = model.read(name);
      const offset = hfToGguf(this.#architecture, name)?.normOffset;
      if (offset !== undefined) {
        const values = rawToFloat32(raw).map((value) => value - offset);
        return [[name, { dtype: 'F32', shape: raw.shape, data: values }]];
      }
      const same = this.#float === undefined || raw.dtype === this.#float || raw.shape.length < 2;
      if (same) return [[name, raw]];
      return [
        [name, this.#rounded(name, rawToFloat32(raw), raw.shape, this.#float as GgufFloatType)],
      ];
    }
    const { weight } = model.readQuantized(module);
    const shape = [weight.rows, weight.columns];
    if (this.#float !== undefined) {
      return [[name, this.#rounded(name, planarToFloat32(weight), shape, this.#float)]];
    }
    if (!this.#keeps(module)) {
      return [[name, { dtype: 'F32', shape, data: planarToFloat32(weight) }]];
    }
    const tensors = writeQuantizedLayer(layerOf(module, weight, type));
    return Object.entries(tensors).map(([suffix, tensor]) => [tensorName(module, suffix), tensor]);
  }

  /** Is a layer quantised in the folder too? Embeddings are not, and a head of another type is decoded, which is exact. */
  #keeps(module: string): boolean {
    const embedding = moduleOf(this.#model.places.embedding.name);
    return module !== embedding && this.#model.layoutOf(module) === this.#kept;
  }

  get #architecture(): string {
    return this.#model.file.metadata.get('general.architecture')?.value as string;
  }

  #rounded(
    name: string,
    values: Float32Array,
    shape: readonly number[],
    dtype: GgufFloatType,
  ): RawTensor {
    const data = rawView(dtype, floatBytes(kOp, `tensor ${name}`, dtype, values));
    const raw: RawTensor = { dtype, shape, data };
    this.#errors.add(name, dtype, values, rawToFloat32(raw));
    return raw;
  }

  #config(): object {
    const { config, places } = this.#model;
    const dtype = { F32: 'float32', F16: 'float16', BF16: 'bfloat16' }[this.#float ?? 'F32'];
    const found = this.#kept === undefined ? undefined : kLayouts[this.#kept];
    if (found === undefined) return { ...config, torch_dtype: dtype };
    const dense = [...places.layers.flatMap(layerLinears), places.head]
      .filter(({ module }) => !this.#keeps(module))
      .map(({ module }) => module);
    const weights = {
      num_bits: found.bits,
      type: found.type,
      symmetric: true,
      strategy: 'group',
      group_size: 32,
      dynamic: false,
    };
    return {
      ...config,
      torch_dtype: 'float32',
      quantization_config: {
        quant_method: 'compressed-tensors',
        format: found.format,
        quantization_status: 'compressed',
        ignore: dense,
        config_groups: { group_0: { targets: ['Linear'], weights } },
      },
    };
  }

  #writeTokenizer(folder: string): void {
    if (this.noVocabulary) return;
    if (this.#model.tokenizerPath === undefined) {
      this.#warnings.push('the file has no vocabulary, so the folder has no tokenizer.json');
      return;
    }
    this.#writeJson(path.join(folder, 'tokenizer.json'), ggufTokenizer(kOp, this.#model.file));
    const value = (key: string) => this.#model.file.metadata.get(`tokenizer.ggml.${key}`)?.value;
    const tokens = value('tokens') as readonly string[];
    const token = (name: string) => {
      const id = value(`${name}_token_id`);
      const text = typeof id === 'number' ? tokens[id] : undefined;
      return text === undefined ? {} : { [`${name === 'padding' ? 'pad' : name}_token`]: text };
    };
    const adds = value('add_bos_token');
    const template = this.#model.file.metadata.get('tokenizer.chat_template')?.value;
    this.#writeJson(path.join(folder, 'tokenizer_config.json'), {
      tokenizer_class: 'PreTrainedTokenizerFast',
      ...token('bos'),
      ...token('eos'),
      ...token('padding'),
      ...(typeof adds === 'boolean' ? { add_bos_token: adds } : {}),
      ...(typeof template === 'string' ? { chat_template: template } : {}),
      clean_up_tokenization_spaces: false,
    });
  }

  #writeJson(file: string, value: object): void {
    fs.writeFileSync(file, `${JSON.stringify(value, null, 2)}\n`);
  }
}

/** A layer with the levels that its layout counts from. */
function layerOf(
  module: string,
  weight: PlanarWeight,
  type: string,
): Parameters<typeof writeQuantizedLayer>[0] {
  if (type === 'Q4_0') {
    const own = { ...weight, levels: integerLevels(4, 8) };
    return { weight: own, layout: { name: 'pack-quantized', zeros: false } };
  }
  if (type === 'Q8_0') {
    // Two's complement counts from the middle.
    const codes = weight.codes.map((code) => code ^ 0x80);
    const own = { ...weight, codes, levels: integerLevels(8, 128) };
    return { weight: own, layout: { name: 'int-quantized', zeros: false } };
  }
  const { values } = weight.scale;
  if (values.dtype === 'u8' && values.data.includes(255)) {
    const text = `layer ${printable(module)} must have scales below 2^128, which is a NaN in a folder`;
    throw new LowrankError('ERR_UNSUPPORTED', `${kOp}: ${text}`, { op: kOp });
  }
  const scale = { values: { ...values, table: e8m0Table } } as PlanarWeight['scale'];
  const own = { ...weight, levels: e2m1Levels, scale };
  return { weight: own, layout: { name: 'mxfp4-pack-quantized' } };
}
