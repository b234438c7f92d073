/** Reads the golden cases that are copied into this folder: a manifest and safetensors files. */
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { decodeAll } from '../oracle.js';

const FOLDER = dirname(fileURLToPath(import.meta.url));

/** One tolerance rule, as the manifest has it. */
export interface Rule {
  readonly tensor: string;
  readonly rule:
    | 'absolute'
    | 'relative'
    | 'bytes'
    | 'values'
    | 'nibbles'
    | 'u8'
    | 'int8'
    | 'quantised';
  readonly why: string;
  readonly reference?: string;
  readonly atol?: number;
  readonly rtol?: number;
  readonly outlierFraction?: number;
  readonly outlierAtol?: number;
  readonly upToSign?: 'rows' | 'columns';
  readonly mask?: string;
  readonly blockKind?: string;
  readonly alternative?: string;
  readonly alternativeMask?: string;
  readonly equivalentNibbles?: readonly (readonly number[])[];
  readonly maxDiff?: number;
  readonly maxDiffFraction?: number;
  readonly from?: readonly string[];
}

/** A tensor of a case file: raw little-endian bytes. */
export interface GoldenTensor {
  readonly dtype: 'U8' | 'I8' | 'BF16' | 'F16' | 'F32' | 'F64' | 'I32' | 'I64';
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

interface ManifestCase {
  readonly id: string;
  readonly params: Readonly<Record<string, unknown>>;
  readonly files: readonly {
    readonly path: string;
    readonly kind?: string;
    readonly tensors?: Readonly<Record<string, Pick<GoldenTensor, 'dtype' | 'shape'>>>;
  }[];
  readonly compare?: readonly Rule[];
}

const MANIFEST = JSON.parse(readFileSync(join(FOLDER, 'manifest.json'), 'utf8')) as {
  readonly cases: readonly ManifestCase[];
};

/** Tensors of a safetensors file. The files are our own, so nothing is checked. */
export function readTensors(path: string): Map<string, GoldenTensor> {
  const file = readFileSync(join(FOLDER, ...path.split('/')));
  const headerBytes = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString('utf8', 8, 8 + headerBytes)) as Record<
    string,
    { dtype: GoldenTensor['dtype']; shape: number[]; data_offsets: [number, number] }
  >;
  const tensors = new Map<string, GoldenTensor>();
  for (const [name, info] of Object.entries(header)) {
    if (name === '__metadata__') continue;
    const [start, end] = info.data_offsets;
    // A copy, so that typed arrays may be laid over it whatever the offset.
    const bytes = Uint8Array.from(file.subarray(8 + headerBytes + start, 8 + headerBytes + end));
    tensors.set(name, { dtype: info.dtype, shape: info.shape, bytes });
  }
  return tensors;
}

/** The values of a tensor as doubles. */
export function numbersOf({ dtype, bytes }: GoldenTensor): Float64Array {
  const { buffer } = bytes;
  switch (dtype) {
    case 'F64':
      return new Float64Array(buffer);
    case 'F32':
      return Float64Array.from(new Float32Array(buffer));
    case 'BF16':
      return decodeAll('bf16', new Uint16Array(buffer));
    case 'F16':
      return decodeAll('f16', new Uint16Array(buffer));
    case 'I8':
      return Float64Array.from(new Int8Array(buffer));
    case 'I32':
      return Float64Array.from(new Int32Array(buffer));
    case 'I64':
      return Float64Array.from(new BigInt64Array(buffer), Number);
    default:
      return Float64Array.from(bytes);
  }
}

export class GoldenCase {
  readonly id: string;
  readonly params: Readonly<Record<string, unknown>>;
  readonly rules: readonly Rule[];
  readonly tensors: Map<string, GoldenTensor>;
  readonly #files: ManifestCase['files'];

  constructor(row: ManifestCase) {
    this.id = row.id;
    this.params = row.params;
    this.rules = row.compare ?? [];
    this.#files = row.files;
    this.tensors = readTensors((row.files[0] as { path: string }).path);
  }

  has(name: string): boolean {
    return this.tensors.has(name);
  }

  tensor(name: string): GoldenTensor {
    const found = this.tensors.get(name);
    if (found === undefined) throw new Error(`${this.id}: no tensor ${name}`);
    return found;
  }

  numbers(name: string): Float64Array {
    return numbersOf(this.tensor(name));
  }

  /** The adapter folder beside the case, where there is one. */
  adapter(): { config: Record<string, unknown>; tensors: Map<string, GoldenTensor> } {
    const [first] = this.adapters();
    if (first === undefined) throw new Error(`${this.id}: no adapter folder`);
    return first;
  }

  /** All of them, in the manifest's order. */
  adapters(): { config: Record<string, unknown>; tensors: Map<string, GoldenTensor> }[] {
    return this.#files
      .filter(({ path }) => path.endsWith('adapter_config.json'))
      .map(({ path }) => ({
        config: JSON.parse(readFileSync(join(FOLDER, path), 'utf8')),
        tensors: readTensors(path.replace('adapter_config.json', 'adapter_model.safetensors')),
      }));
  }
}

/** Ids of the copied cases of a group. */
export function caseIds(group: string): string[] {
  return MANIFEST.cases.map(({ id }) => id).filter((id) => id.startsWith(`${group}/`));
}

export function loadCase(id: string): GoldenCase {
  return new GoldenCase(rowOf(id));
}

const rowOf = (id: string): ManifestCase => {
  const row = MANIFEST.cases.find((candidate) => candidate.id === id);
  if (row === undefined) throw new Error(`no golden case ${id}`);
  return row;
};

/** What the layers of a case are, by the shapes and dtypes that the manifest lists. */
export function layerKind(id: string): 'linear' | 'convolution' | 'embedding' {
  const tensors = Object.entries(rowOf(id).files[0]?.tensors ?? {});
  const weights = tensors.filter(([name]) => /^base\.[^.]+\.weight$/.test(name));
  if (weights.some(([, { shape }]) => shape.length > 2)) return 'convolution';
  const x = tensors.find(([name]) => name === 'in.x')?.[1];
  return x?.dtype === 'I64' || x?.dtype === 'I32' ? 'embedding' : 'linear';
}

/** The config of a case's (first) adapter; none where it has no adapter folder. */
export function configOf(id: string): Readonly<Record<string, unknown>> {
  const config = rowOf(id).files.find(({ path }) => path.endsWith('adapter_config.json'));
  return config === undefined ? {} : JSON.parse(readFileSync(join(FOLDER, config.path), 'utf8'));
}

/** Cases of embeddings and convolutions; layers.test.ts has them. */
export const isOtherLayer = (id: string): boolean => layerKind(id) !== 'linear';

/** Cases of `lora` and `qlora` that are more than LoRA on a [N, K] weight. */
export function isOtherMethod(id: string): boolean {
  const { peft_type, use_dora, fan_in_fan_out } = configOf(id);
  const plain = peft_type === 'LORA' && use_dora !== true && fan_in_fan_out !== true;
  return !plain || isOtherLayer(id);
}
