/**
 * A GGUF file as a model. Its tensors go by the names that they have in a Hugging Face folder, and have the values that they have
 * there: rows of q and k in the order of transformers.
 *
 * Norms of Gemma stay as the file has them, with 1 added, and the decoder's norms add nothing.
 */

import { checkName, checkPath } from '../../checkpoint/arguments.js';
import { isBlockType } from '../../checkpoint/gguf/blocks/parts.js';
import { ggufToPlanar } from '../../checkpoint/gguf/blocks/planar.js';
import {
  type GgufFile,
  type GgufTensor,
  type GgufTensorInfo,
  type OpenGgufOptions,
  openGguf,
} from '../../checkpoint/gguf/gguf.js';
import { hfToGguf } from '../../checkpoint/gguf/names.js';
import { permuteGgufRows } from '../../checkpoint/gguf/rows.js';
import type { PlanarWeight } from '../../checkpoint/planar/planar-weight.js';
import { type RawTensor, rawView } from '../../checkpoint/raw-tensor.js';
import type { RawTensorInfo } from '../../checkpoint/safetensors.js';
import { LowrankError, notConstructed } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import type { DecoderConfig } from '../config/decoder-config.js';
import {
  type DecoderPlaces,
  decoderPlaces,
  layerLinears,
  moduleOf,
  tensorShapes,
} from '../decoder-tensors.js';
import type { ModelFiles, OnTensor } from '../model-files.js';
import { parseDecoderConfig } from '../read-config.js';
import { readGgufConfig } from './config.js';
import { ropeTensors } from './rope.js';

const kOp = 'openGgufModel';
const kDense = ['F32', 'F16', 'BF16', 'F64'] as const;
type DenseType = (typeof kDense)[number];

const isDense = (type: string): type is DenseType => (kDense as readonly string[]).includes(type);

/** A tensor of the decoder in the file. */
interface Place {
  /** The name in the file. */
  readonly name: string;
  readonly info: GgufTensorInfo;
  /** Heads by which its rows are permuted. */
  readonly heads?: number;
}

/**
 * An opened GGUF model. It does not have to be closed.
 * @example
 * const model = openGgufModel('model.gguf');
 * console.log(model.decoder.architecture, model.layouts); // llama, [ 'Q4_K', 'Q6_K' ]
 * using weights = DecoderWeights.load(model);
 */
export class GgufModel implements ModelFiles {
  /** @internal use {@link openGgufModel} */
  constructor(
    readonly file: GgufFile,
    /** What the metadata says, as the fields of a `config.json`. */
    readonly config: Readonly<Record<string, unknown>>,
    readonly decoder: DecoderConfig,
    readonly places: DecoderPlaces,
    private readonly tensors: ReadonlyMap<string, Place>,
  ) {
    if (!(tensors instanceof Map)) throw notConstructed('GgufModel', kOp);
  }

  get path(): string {
    return this.file.path;
  }

  get warnings(): readonly string[] {
    return [];
  }

  get byteLength(): number {
    return this.file.byteLength;
  }

  /** The file itself, if it has a vocabulary. */
  get tokenizerPath(): string | undefined {
    const model = this.file.metadata.get('tokenizer.ggml.model')?.value ?? 'none';
    return model === 'none' ? undefined : this.path;
  }

  info(name: string): RawTensorInfo | undefined {
    const info = this.tensors.get(name)?.info;
    if (info === undefined || !isDense(info.type)) return undefined;
    return { dtype: info.type, shape: info.shape, byteLength: info.byteLength };
  }

  /**
   * Reads a dense tensor.
   * @param name as in a Hugging Face folder: `model.norm.weight`
   * @throws LowrankError `ERR_FILE` if there is no such dense tensor · `ERR_FILE_CHANGED` · `ERR_OOM`
   */
  read(name: string): RawTensor {
    checkName(kOp, 'name', name);
    const place = this.tensors.get(name);
    if (place === undefined || !isDense(place.info.type)) {
      const got = place === undefined ? 'no such tensor' : `one in ${place.info.type}`;
      return this.#refuse(`must hold dense tensor ${printable(name)}, got ${got}`);
    }
    const { shape, data } = this.#read(place);
    return { dtype: place.info.type, shape, data: rawView(place.info.type, data) };
  }

  layoutOf(module: string): string | undefined {
    const type = this.tensors.get(`${module}.weight`)?.info.type;
    return type === undefined || isDense(type) ? undefined : type;
  }

  /** The types of the quantised linear layers, each once. */
  get layouts(): readonly string[] {
    const linears = [...this.places.layers.flatMap(layerLinears), this.places.head];
    const types = linears.flatMap(({ weight }) => this.layoutOf(moduleOf(weight.name)) ?? []);
    return [...new Set(types)];
  }

  quantizedBytes(module: string): number {
    return this.tensors.get(`${module}.weight`)?.info.byteLength ?? 0;
  }

  /**
   * Reads a quantised weight. The codes and scales are those of the file, with rows in the order of transformers.
   * @param module the layer's name in a Hugging Face folder: `model.layers.0.mlp.up_proj`
   * @throws LowrankError `ERR_FILE` if it is not quantised · `ERR_FILE_CHANGED` · `ERR_OOM`
   */
  readQuantized(module: string, onTensor?: OnTensor): { readonly weight: PlanarWeight } {
    checkName(kOp, 'module', module);
    const place = this.tensors.get(`${module}.weight`);
    if (place === undefined || isDense(place.info.type)) {
      const got = 'a dense one or none';
      return this.#refuse(`must hold quantised layer ${printable(module)}, got ${got}`);
    }
    const tensor = this.#read(place, onTensor);
    const name = scaleOf(place.name);
    const scale = this.file.has(name) ? this.file.read(name) : undefined;
    if (scale !== undefined) onTensor?.(name, asBytes(scale));
    return { weight: ggufToPlanar(tensor, scale) };
  }

  /** The tensor with its rows in the order of transformers. */
  #read({ name, info, heads }: Place, onTensor?: OnTensor): GgufTensor {
    const tensor = this.file.read(name);
    onTensor?.(name, asBytes(tensor));
    if (heads === undefined) return tensor;
    const rows = info.shape[0] as number;
    return { ...tensor, data: permuteGgufRows(tensor.data, { rows, heads, to: 'hf' }) };
  }

  #refuse(what: string): never {
    throw new LowrankError('ERR_FILE', `${kOp}: ${printable(this.path)} ${what}`, { op: kOp });
  }
}

const asBytes = ({ data }: GgufTensor): RawTensor => ({ dtype: 'U8', shape: [data.length], data });

/** The factor beside an NVFP4 tensor. */
const scaleOf = (name: string): string => name.replace(/\.weight$/, '.scale');

/**
 * Opens a GGUF model: Llama, Mistral, Qwen2, Qwen3, Phi-3, Gemma 2 or Gemma 3 (text), with tensors of any type that is read.
 *
 * @param path a file of llama.cpp with all tensors of the model
 * @returns the checked configuration, and access to the tensors one by one
 * @throws `ERR_TYPE` · LowrankError `ERR_UNSUPPORTED` for another architecture, experts, a part of a split file, or a tensor that the
 * architecture does not have here · `ERR_FILE` if malformed, or if keys or tensors are missing or contradict each other · what
 * {@link openGguf} throws
 * @example
 * const model = openGgufModel('model.gguf');
 * using weights = DecoderWeights.load(model);
 * const decoder = new Decoder(model.decoder, weights);
 */
export function openGgufModel(path: string, options: OpenGgufOptions = {}): GgufModel {
  checkPath(kOp, 'path', path);
  const file = openGguf(path, options);
  const { architecture, config } = readGgufConfig(kOp, file);
  const parsed = parseDecoderConfig(kOp, `${printable(path)} as config.json`, config);
  // The file holds 1 + weight.
  const decoder = { ...parsed, norm: { ...parsed.norm, plusOne: false } };
  const places = decoderPlaces(decoder);
  return new GgufModel(file, config, decoder, places, findTensors(file, architecture, decoder));
}

/** The tensors of the decoder by their names in a Hugging Face folder; requires all of them, and no others. */
function findTensors(
  file: GgufFile,
  architecture: string,
  decoder: DecoderConfig,
): Map<string, Place> {
  const refuse = (what: string, code: LowrankError['code'] = 'ERR_FILE'): never => {
    throw new LowrankError(code, `${kOp}: ${printable(file.path)}: ${what}`, { op: kOp });
  };
  const { heads, kvHeads } = decoder.layers[0]?.attention ?? {};
  const places = decoderPlaces(decoder);
  const blocks = new Set(
    [...places.layers.flatMap(layerLinears), places.head].map(({ weight }) => weight.name),
  ).add(places.embedding.name);
  const found = new Map<string, Place>();
  const known = new Set<string>(Object.values(ropeTensors));
  for (const [hf, shape] of tensorShapes(places)) {
    const place = hfToGguf(architecture, hf);
    if (place === undefined) return refuse(`llama.cpp has no tensor for ${hf}`, 'ERR_UNSUPPORTED');
    const { name, permuted } = place;
    const info = file.info(name);
    const expected = `[${shape.join(', ')}]`;
    if (info === undefined) {
      return refuse(`must hold tensor ${name} ${expected}, got no such tensor`);
    }
    if (info.shape.length !== shape.length || info.shape.some((dim, i) => dim !== shape[i])) {
      const got = `[${info.shape.join(', ')}]`;
      refuse(`tensor ${name} must be ${expected}, as the metadata says, got ${got}`);
    }
    if (!isDense(info.type) && !(blocks.has(hf) && isBlockType(info.type))) {
      const types = blocks.has(hf) ? 'floats or quantised' : `${kDense.join(', ')}`;
      refuse(`tensor ${name} must be ${types}, got ${info.type}`);
    }
    const count = permuted === 'attention.head_count' ? heads : kvHeads;
    found.set(hf, {
      name,
      info,
      ...(permuted === undefined || count === undefined ? {} : { heads: count }),
    });
    known
      .add(name)
      .add(scaleOf(name))
      .add(name.replace(/\.weight$/, '.input_scale'));
  }
  checkScales(file, found, refuse);
  const other = file.names().find((name) => !known.has(name));
  if (other !== undefined) {
    const text = `must hold the tensors of ${architecture} alone, got ${printable(other)}`;
    refuse(`${text}, so the model computes something else`, 'ERR_UNSUPPORTED');
  }
  return found;
}

/** A factor beside a weight is one number, and its weight NVFP4. */
function checkScales(
  file: GgufFile,
  found: ReadonlyMap<string, Place>,
  refuse: (what: string) => never,
): void {
  for (const { name, info } of found.values()) {
    if (!name.endsWith('.weight')) continue;
    const scale = scaleOf(name);
    const own = file.info(scale);
    if (own === undefined) continue;
    const one = own.type === 'F32' && own.shape.every((dim) => dim === 1);
    if (!one) refuse(`tensor ${scale} must be F32 [1], got ${own.type} [${own.shape.join(', ')}]`);
    if (info.type !== 'NVFP4') {
      refuse(`tensor ${name} must be NVFP4 beside ${scale}, got ${info.type}`);
    }
  }
}
