import { type RawTensor, rawToFloat32 } from '../../checkpoint/raw-tensor.js';
import { fail, LowrankError, wrongType } from '../../core/errors.js';
import { showShape } from '../../core/validate.js';
import { leadingPart } from '../definition/leading-part.js';
import type { LayerSize } from '../definition/maker.js';
import { kPrefix } from '../definition/peft-form.js';

/** The contents of an adapter folder: its config as JSON, its tensors by their names in the file. */
export interface PeftFolder {
  readonly config: Readonly<Record<string, unknown>>;
  readonly tensors: ReadonlyMap<string, RawTensor>;
  /**
   * The largest sizes among the adapted layers, for which omitted projections were drawn. Default those
   * of `layers`, else of the layer.
   */
  readonly largest?: LayerSize;
  /**
   * The adapted layers by module, in the order of the model, which a file does not record. What is drawn for all of them
   * together, or shared by groups of them, depends on it: TinyLoRA's vectors and projections, Uni-LoRA's tables.
   */
  readonly layers?: ReadonlyMap<string, LayerSize>;
  /** What PEFT computes differently from the folder, in words. From {@link adaptersToPeft}; most methods have none. */
  readonly warnings?: readonly string[];
  /**
   * The adapter's name in the keys of a state dict, after the tensor's name
   * (`lora_A.default.weight`). A saved folder leaves it out. Default `default`.
   */
  readonly adapterName?: string;
}

/**
 * The values of a tensor in the file. For one that all layers share, the leading part that this
 * layer uses.
 * @throws ERR_SHAPE
 */
export function partOf(
  op: string,
  name: string,
  raw: RawTensor,
  shape: readonly number[],
  shared: boolean,
): Float32Array {
  const values = rawToFloat32(raw);
  const long = (dims: readonly number[]) => String(dims.filter((dim) => dim !== 1));
  // A convolution's tensors have the kernel's dimensions at the end, or are [1, N, 1, 1]; the order is
  // the same.
  if (!shared && values.length === shape.reduce((size, dim) => size * dim, 1)) {
    const flat = shape.length === 2 && raw.shape[0] === shape[0];
    if (flat || long(raw.shape) === long(shape)) return values;
  }
  const fits = (dim: number, i: number) =>
    shared ? dim <= (raw.shape[i] ?? 0) : dim === raw.shape[i];
  if (raw.shape.length !== shape.length || !shape.every(fits)) {
    const expected = `of shape ${showShape(shape)}${shared ? ' or larger' : ''}`;
    fail('ERR_SHAPE', op, name, expected, showShape(raw.shape));
  }
  return leadingPart(values, raw.shape, shape);
}

/** Reports that a required tensor is missing. */
export function missing(op: string, module: string, key: string): never {
  const text = `${op}: ${module} must have the tensor ${key}, got none of that name`;
  throw new LowrankError('ERR_FILE', text, { op });
}

/**
 * The tensors of a folder, or of a state dict: there the adapter's name follows the tensor's name in
 * a key (`lora_A.default.weight`), and a trained vector may end in `.weight`.
 */
export class PeftTensors {
  readonly #op: string;
  readonly #all: ReadonlyMap<string, RawTensor>;
  readonly #adapter: string;

  private constructor(op: string, all: ReadonlyMap<string, RawTensor>, adapter: string) {
    this.#op = op;
    this.#all = all;
    this.#adapter = adapter;
  }

  /** From a folder that a caller gives. @throws ERR_TYPE */
  static of(op: string, folder: PeftFolder): PeftTensors {
    if (typeof folder !== 'object' || folder === null) {
      throw wrongType(op, 'folder', 'an object', folder);
    }
    const { config, tensors, adapterName = 'default' } = folder;
    if (typeof config !== 'object' || config === null) {
      throw wrongType(op, 'folder.config', 'an object', config);
    }
    if (!(tensors instanceof Map)) throw wrongType(op, 'folder.tensors', 'a Map', tensors);
    if (typeof adapterName !== 'string') {
      throw wrongType(op, 'folder.adapterName', 'a string', adapterName);
    }
    return new PeftTensors(op, tensors, adapterName);
  }

  /** A module's own tensor. @throws ERR_FILE if two of its names have different tensors */
  own(module: string, key: string): RawTensor | undefined {
    return this.#find(`${kPrefix}${module}.`, key);
  }

  /** A tensor that layers share. @throws ERR_FILE */
  shared(key: string): RawTensor | undefined {
    return this.#find('base_model.', key);
  }

  /** All keys, in the form of a folder. */
  keys(): string[] {
    const name = this.#adapter.replace(/[^\w-]/g, '\\$&');
    const behind = new RegExp(`(_[^.]*)\\.${name}(?=\\.|$)`);
    return [...this.#all.keys()].map((key) => key.replace(behind, '$1'));
  }

  #find(prefix: string, key: string): RawTensor | undefined {
    const end = key.includes('.') ? key.indexOf('.') : key.length;
    const named = `${key.slice(0, end)}.${this.#adapter}${key.slice(end)}`;
    const names = key.endsWith('.weight')
      ? [key, named]
      : [key, named, `${key}.weight`, `${named}.weight`];
    let found: { readonly name: string; readonly raw: RawTensor } | undefined;
    for (const name of names.map((end) => prefix + end)) {
      const raw = this.#all.get(name);
      if (raw === undefined) continue;
      if (found !== undefined && !isSame(raw, found.raw)) {
        fail(
          'ERR_FILE',
          this.#op,
          found.name,
          'the same under each name',
          `a different one as ${name}`,
        );
      }
      found ??= { name, raw };
    }
    return found?.raw;
  }
}

/** Do two names have the same tensor? */
function isSame(a: RawTensor, b: RawTensor): boolean {
  if (a.dtype !== b.dtype || String(a.shape) !== String(b.shape)) return false;
  return a.data.every((value: number | bigint, i: number) => Object.is(value, b.data[i]));
}

/**
 * Joins the tensors that the file stores for the entries of the first dimension.
 * @throws ERR_FILE if only some of them exist; ERR_SHAPE
 */
export function stackOf(
  op: string,
  module: string,
  shape: readonly number[],
  keyOf: (i: number) => string,
  tensors: PeftTensors,
): RawTensor | undefined {
  const [count = 0, ...each] = shape;
  const size = each.reduce((product, dim) => product * dim, 1);
  const found = Array.from({ length: count }, (_, i) => tensors.own(module, keyOf(i)));
  if (found.every((raw) => raw === undefined)) return undefined;
  const data = new Float32Array(count * size);
  found.forEach((raw, i) => {
    if (raw === undefined) missing(op, module, keyOf(i));
    data.set(partOf(op, keyOf(i), raw, each, false), i * size);
  });
  return { dtype: 'F32', shape, data };
}

/** Splits the first dimension into separate tensors, with the same bits. */
export function unstacked(raw: RawTensor): RawTensor[] {
  const [count = 0, ...shape] = raw.shape;
  const data = raw.data as Float32Array;
  const size = data.length / Math.max(count, 1);
  return Array.from({ length: count }, (_, i) => ({
    ...raw,
    shape,
    data: data.slice(i * size, (i + 1) * size),
  }));
}
