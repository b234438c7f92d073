// GGUF files that gguf-py and llama.cpp's converters wrote: what they hold, the way back byte for byte, and the rows of a
// converted Llama.
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join, sep } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  encodeGguf,
  type GgufFile,
  ggufToFloat32,
  ggufToHf,
  hfToGguf,
  openGguf,
  permuteGgufRows,
} from '../../lib/index.js';
import { type GoldenTensor, numbersOf, readTensors } from './case-file.js';

const kFolder = join(import.meta.dirname, 'formats');
const kManifest = JSON.parse(readFileSync(join(kFolder, 'gguf_file', 'manifest.json'), 'utf8')) as {
  cases: { id: string; files: { path: string; kind?: string; sha256: string }[] }[];
};
const files = kManifest.cases.flatMap((row) => row.files);
const gguf = files.filter(({ kind }) => kind === 'gguf').map(({ path }) => path);
const bytesAt = (path: string) => Uint8Array.from(readFileSync(join(kFolder, path)));
const open = (path: string) => openGguf(join(kFolder, path));
const tensorsAt = (path: string) => readTensors(`formats/${path}`);
const headsOf = (file: GgufFile, key: string) => file.metadata.get(key)?.value as number;

describe('recorded GGUF files', () => {
  it('have the digests that their manifest lists, and nothing is beside them', () => {
    for (const { path, sha256 } of files) {
      expect(createHash('sha256').update(bytesAt(path)).digest('hex'), path).toBe(sha256);
    }
    const listed = new Set(files.map(({ path }) => path));
    const names = (readdirSync(join(kFolder, 'gguf_file'), { recursive: true }) as string[])
      .map((name) => `gguf_file/${name.split(sep).join('/')}`)
      .filter((name) => statSync(join(kFolder, name)).isFile() && !name.endsWith('manifest.json'));
    expect(names.filter((name) => !listed.has(name))).toEqual([]);
    expect(gguf).toHaveLength(4);
  });

  it.each(gguf)('%s: write(read(x)) = x', (path) => {
    const file = open(path);
    const { version, metadata } = file;
    const again = encodeGguf({ version, metadata, tensors: file.tensors() });
    expect(Buffer.compare(again, bytesAt(path))).toBe(0);
    // The same from memory.
    const inMemory = openGguf(bytesAt(path));
    expect(inMemory.metadata).toEqual(metadata);
    const third = encodeGguf({ metadata, tensors: inMemory.tensors() });
    expect(Buffer.compare(third, again)).toBe(0);
  });

  it('mixed: every kind of value, every type of tensor', () => {
    const expected = JSON.parse(
      readFileSync(join(kFolder, 'gguf_file/mixed/expected.json'), 'utf8'),
    ) as { metadata: Record<string, unknown>; types: Record<string, string> };
    const file = open('gguf_file/mixed/model.gguf');
    expect([file.version, file.alignment]).toEqual([3, 32]);
    const plain = [...file.metadata].map(([key, { value }]) => [
      key,
      typeof value === 'bigint' ? String(value) : typeof value === 'object' ? [...value] : value,
    ]);
    expect(Object.fromEntries(plain)).toEqual(expected.metadata);
    const kinds = [...file.metadata].map(([key, value]) => [
      key,
      value.type === 'array' ? `${value.type} of ${value.of}` : value.type,
    ]);
    expect(Object.fromEntries(kinds)).toMatchObject({
      't.u64': 'u64',
      't.i64': 'i64',
      't.yes': 'bool',
      't.strings': 'array of string',
      't.ints': 'array of i32',
      't.floats': 'array of f32',
      't.bools': 'array of bool',
    });
    const types = file.names().map((name) => [name, file.info(name)?.type]);
    expect(Object.fromEntries(types)).toEqual(expected.types);
    const tensors = tensorsAt('gguf_file/mixed.safetensors');
    for (const [name, { shape }] of tensors) {
      expect(file.info(name.replace('out.', ''))?.shape, name).toEqual(shape);
    }
    for (const name of ['blk.0.f32.weight', 'blk.0.f16.weight', 'blk.0.bf16.weight', 'one_dim']) {
      const values = numbersOf(tensors.get(`out.${name}`) as GoldenTensor);
      expect(Float64Array.from(ggufToFloat32(file.read(name))), name).toEqual(values);
    }
    expect(() => ggufToFloat32(file.read('three_dim'))).toThrow(
      'ggufToFloat32: tensor must be F32, F16 or BF16, got Q8_0',
    );
  });
});

/** Q8_0: an f16 scale and 32 codes. */
function decodeQ8(data: Uint8Array): Float64Array {
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const blocks = data.length / 34;
  const out = new Float64Array(blocks * 32);
  for (let block = 0; block < blocks; block++) {
    const bytes = data.slice(block * 34, block * 34 + 2);
    const [scale] = ggufToFloat32({ type: 'F16', shape: [1], data: bytes }) as Float32Array;
    for (let i = 0; i < 32; i++) {
      out[block * 32 + i] = Math.fround((scale as number) * view.getInt8(block * 34 + 2 + i));
    }
  }
  return out;
}

describe('a converted Llama', () => {
  const file = open('gguf_file/llama_q8_0/model.gguf');
  const expected = tensorsAt('gguf_file/llama_q8_0.safetensors');

  it('has the weights of the Hugging Face folder under its names, rows of q and k in its order', () => {
    let permuted = 0;
    const seen = new Set<string>();
    for (const name of file.names()) {
      const place = ggufToHf('llama', name);
      if (place === undefined) throw new Error(name);
      expect(hfToGguf('llama', place.name)).toEqual({ ...place, name });
      const golden = expected.get(`out.${place.name}`);
      // The norms of the layer are not recorded.
      if (golden === undefined) continue;
      seen.add(`out.${place.name}`);
      const { type, shape, data } = file.read(name);
      expect(shape).toEqual(golden.shape);
      let bytes = data;
      if (place.permuted !== undefined) {
        const heads = headsOf(file, `llama.${place.permuted}`);
        const rows = shape[0] as number;
        bytes = permuteGgufRows(data, { rows, heads, to: 'hf' });
        expect(Buffer.compare(bytes, data)).not.toBe(0);
        const back = permuteGgufRows(bytes, { rows, heads, to: 'gguf' });
        expect(Buffer.compare(back, data)).toBe(0);
        permuted++;
      }
      const values =
        type === 'Q8_0'
          ? decodeQ8(bytes)
          : Float64Array.from(ggufToFloat32({ type, shape, data: bytes }));
      expect(values, name).toEqual(numbersOf(golden));
    }
    expect(permuted).toBe(2);
    expect([...seen].sort()).toEqual([...expected.keys()].sort());
  });

  it.each([
    ['adapter_f32', 'F32'],
    ['adapter_f16', 'F16'],
  ])('%s: lora_b has its rows in the order of the base', (name, type) => {
    const adapter = open(`gguf_file/${name}/adapter.gguf`);
    const peft = tensorsAt(`gguf_file/${name}/adapter_model.safetensors`);
    const heads = { 'attention.head_count': 4, 'attention.head_count_kv': 2 };
    expect(adapter.names()).toHaveLength(peft.size);
    for (const key of adapter.names()) {
      const [, base = '', side = ''] = /^(.*)\.lora_([ab])$/.exec(key) ?? [];
      const place = ggufToHf('llama', base);
      const module = place?.name.replace(/\.weight$/, '') ?? '';
      const golden = peft.get(`base_model.model.${module}.lora_${side.toUpperCase()}.weight`);
      const tensor = adapter.read(key);
      expect(tensor.type).toBe(type);
      const rows = tensor.shape[0] as number;
      const data =
        side === 'b' && place?.permuted !== undefined
          ? permuteGgufRows(tensor.data, { rows, heads: heads[place.permuted], to: 'hf' })
          : tensor.data;
      const values = ggufToFloat32({ ...tensor, data });
      const wanted = Float32Array.from(numbersOf(golden as GoldenTensor));
      if (type === 'F32') expect(values, key).toEqual(wanted);
      // The converter rounds to f16: to 11 bits.
      else {
        const off = values.filter(
          (v, i) => Math.abs(v - (wanted[i] as number)) > 2 ** -11 * Math.abs(wanted[i] as number),
        );
        expect(off, key).toHaveLength(0);
      }
    }
  });
});
