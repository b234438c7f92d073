// Mutated folders of quantised layers, on disk: a typed error, or a model whose layers are read.
import fs from 'node:fs';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  LowrankError,
  LowrankTypeError,
  openHfModel,
  planarToFloat32,
  quantizedLayers,
} from '../../../lib/index.js';
import { temporaryFolder } from '../../finetune/setup.js';
import { caseIds } from '../../golden/case-file.js';
import { cpu_ms, generator, kFuzzSeed } from '../fuzz.js';
import { folderCases } from './cases.js';
import { changed, kFields, kValues, pick, type Random, type Raw } from './mutated-layer.js';

const kFull = process.env.LOWRANK_SWEEP === 'full';
/** Of all folders together. */
const kInputs = kFull ? 100_000 : 600;
const kMostGrowth_bytes = 512 * 2 ** 20;

const FOLDERS = path.join(import.meta.dirname, '../../golden/formats/folder');
// This folder holds the experts of gpt-oss without a model around them. layer-fuzz.test.ts mutates their tensors.
const NAMES = caseIds('formats/folder')
  .map((id) => id.split('/').at(-1) as string)
  .filter((name) => name !== 'gptoss_mxfp4');

/** A copy of a folder, of which some files get other bytes for a while. */
class Copy {
  readonly folder = path.join(temporaryFolder(), 'model');
  readonly files: readonly string[];
  readonly bytes: ReadonlyMap<string, Buffer>;

  constructor(source: string) {
    fs.cpSync(source, this.folder, { recursive: true });
    const all = fs.readdirSync(source);
    this.files = all.filter((name) => /\.(json|safetensors)$/.test(name));
    this.bytes = new Map(all.map((name) => [name, fs.readFileSync(path.join(source, name))]));
  }

  write(name: string, bytes: Uint8Array | string): void {
    fs.writeFileSync(path.join(this.folder, name), bytes);
  }

  restore(name: string): void {
    this.write(name, this.bytes.get(name) as Buffer);
  }
}

const kCharacters = Buffer.from('0123456789-"[]{},:eE.null F8_I32U');

/** Some bytes of a file replaced, or the file cut; in a safetensors file mostly its header. */
function mutated(random: Random, name: string, bytes: Buffer): Buffer {
  const copy = Buffer.from(bytes);
  const end = name.endsWith('.json') ? copy.length : 8 + Number(copy.readBigUInt64LE(0));
  if (random(12) === 0) return copy.subarray(0, random(copy.length));
  for (let n = 1 + random(3); n > 0; n--) {
    const header = random(8) !== 0;
    copy[random(header ? end : copy.length)] = header
      ? pick(random, [...kCharacters])
      : random(256);
  }
  return copy;
}

/** config.json with another value of a field, of its own or of its quantisation. */
function otherConfig(random: Random, bytes: Buffer): string {
  const config = JSON.parse(bytes.toString('utf8'));
  const quantisation = random(3) === 0 ? config : config.quantization_config;
  const keys = [...Object.keys(quantisation), ...kFields];
  quantisation[pick(random, keys)] = pick(random, kValues);
  return JSON.stringify(config);
}

describe('fuzzed folders', () => {
  it(`${kInputs} of seed ${kFuzzSeed} end in a typed error or are read`, {
    timeout: 3_600_000,
  }, () => {
    const random = generator(kFuzzSeed);
    const copies = NAMES.map((name) => new Copy(path.join(FOLDERS, name)));
    const before_bytes = process.memoryUsage().rss;
    const codes = new Map<string, number>();
    let [accepted, slowest_ms] = [0, 0];
    for (let input = 0; input < kInputs; input++) {
      const copy = pick(random, copies);
      const name = pick(random, copy.files);
      const bytes = copy.bytes.get(name) as Buffer;
      const field = name === 'config.json' && random(2) === 0;
      copy.write(name, field ? otherConfig(random, bytes) : mutated(random, name, bytes));
      const start = cpu_ms();
      try {
        const model = openHfModel(copy.folder);
        const module = 'model.layers.0.self_attn.q_proj';
        if (model.layoutOf(module) !== undefined) {
          const { weight } = model.readQuantized(module);
          if (planarToFloat32(weight).length !== weight.rows * weight.columns) {
            throw new Error('another size');
          }
        }
        accepted++;
      } catch (error) {
        if (!(error instanceof LowrankError || error instanceof LowrankTypeError)) {
          throw new Error(`${copy.folder}, ${name}, input ${input}`, { cause: error });
        }
        codes.set(error.code, (codes.get(error.code) ?? 0) + 1);
      }
      slowest_ms = Math.max(slowest_ms, cpu_ms() - start);
      copy.restore(name);
    }
    expect(slowest_ms).toBeLessThan(4000);
    expect(process.memoryUsage().rss - before_bytes).toBeLessThan(kMostGrowth_bytes);
    expect(accepted).toBeGreaterThan(kInputs * 0.05);
    expect(accepted).toBeLessThan(kInputs * 0.9);
    expect(codes.get('ERR_FORMAT') ?? 0).toBeGreaterThan(0);
  });

  it(`${kInputs} lists of tensors of seed ${kFuzzSeed} are split into layers, or end in a typed error`, {
    timeout: 3_600_000,
  }, () => {
    const random = generator(kFuzzSeed);
    const folders = folderCases();
    let [accepted, slowest_ms] = [0, 0];
    for (let input = 0; input < kInputs; input++) {
      const { id, tensors, config } = pick(random, folders);
      const all = new Map(tensors);
      const names = [...all.keys()];
      for (let n = 1 + random(3); n > 0; n--) {
        const name = pick(random, names);
        const tensor = all.get(name) as Raw | undefined;
        if (tensor === undefined) continue;
        if (random(4) === 0) all.delete(name);
        if (random(4) === 0)
          all.set(pick(random, names).replace(/\w+$/, pick(random, kFields)), tensor);
        else all.set(name, changed(random, tensor));
      }
      const fields = random(3) === 0 ? { [pick(random, kFields)]: pick(random, kValues) } : {};
      const start = cpu_ms();
      try {
        const { layers, rest } = quantizedLayers(all, { ...config, ...fields });
        const own = [...layers.values()].map((layer) => Object.keys(layer.tensors).length);
        // No tensor is lost, and none is in two places.
        expect(own.reduce((a, b) => a + b, rest.size)).toBe(all.size);
        accepted++;
      } catch (error) {
        if (!(error instanceof LowrankError || error instanceof LowrankTypeError)) {
          throw new Error(`${id}, input ${input}`, { cause: error });
        }
      }
      slowest_ms = Math.max(slowest_ms, cpu_ms() - start);
    }
    expect(slowest_ms).toBeLessThan(2000);
    expect(accepted).toBeGreaterThan(kInputs * 0.1);
    expect(accepted).toBeLessThan(kInputs * 0.95);
  });
});
