/** Reads the golden cases that are copied into this folder: a manifest and safetensors files. */
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type DiskTensor, numbersOf } from '../oracle/formats/tensors.js';

export { numbersOf };

const FOLDER = dirname(fileURLToPath(import.meta.url));

/** One tolerance rule, as the manifest has it. */
export interface Rule {
  readonly tensor: string;
  readonly rule:
    | 'absolute'
    | 'relative'
    | 'bytes'
    | 'bits'
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
  /** Of `bytes`: where the expected code is a NaN, any NaN will do. */
  readonly nan?: string;
  /** Of `quantised`: rms error of the peer, and how many times as much is allowed. */
  readonly peerRmsErr?: number;
  readonly factor?: number;
}

/** A tensor of a case file: raw little-endian bytes. */
export type GoldenTensor = DiskTensor;

interface ManifestCase {
  readonly id: string;
  readonly params: Readonly<Record<string, unknown>>;
  readonly files: readonly {
    readonly path: string;
    readonly sha256: string;
    readonly kind?: string;
    readonly tensors?: Readonly<Record<string, Pick<GoldenTensor, 'dtype' | 'shape'>>>;
  }[];
  readonly compare?: readonly Rule[];
  readonly notes?: string;
}

/** The cases of a folder with a manifest of its own; ids and paths from this folder on. */
function casesBelow(folder: string): ManifestCase[] {
  const text = readFileSync(join(FOLDER, folder, 'manifest.json'), 'utf8');
  const { cases } = JSON.parse(text) as { cases: ManifestCase[] };
  return cases.map((row) => ({
    ...row,
    id: `${folder}${row.id}`,
    files: row.files.map((file) => ({ ...file, path: `${folder}${file.path}` })),
  }));
}

const CASES: readonly ManifestCase[] = [...casesBelow(''), ...casesBelow('formats/')];

/** Every file of every case. */
export const goldenFiles = CASES.flatMap(({ files }) => files);

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

export class GoldenCase {
  readonly id: string;
  readonly params: Readonly<Record<string, unknown>>;
  readonly rules: readonly Rule[];
  readonly notes: string;
  readonly tensors: Map<string, GoldenTensor>;
  readonly #files: ManifestCase['files'];

  constructor(row: ManifestCase) {
    this.id = row.id;
    this.params = row.params;
    this.rules = row.compare ?? [];
    this.notes = row.notes ?? '';
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

  /** Tensors and config of the checkpoint folder beside the case. */
  checkpoint(): { config: Record<string, unknown>; tensors: Map<string, GoldenTensor> } {
    const folder = `${this.id}/`;
    const paths = this.#files.map(({ path }) => path).filter((path) => path.startsWith(folder));
    const shards = paths.filter((path) => path.endsWith('.safetensors'));
    return {
      config: JSON.parse(readFileSync(join(FOLDER, folder, 'config.json'), 'utf8')),
      tensors: new Map(shards.flatMap((path) => [...readTensors(path)])),
    };
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
  return CASES.map(({ id }) => id).filter((id) => id.startsWith(`${group}/`));
}

export function loadCase(id: string): GoldenCase {
  return new GoldenCase(rowOf(id));
}

const rowOf = (id: string): ManifestCase => {
  const row = CASES.find((candidate) => candidate.id === id);
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
