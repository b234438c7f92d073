/**
 * Mutated GGUF models: each opens, or gives one typed error that is safe to print, in bounded time. `LOWRANK_SWEEP=full` takes 100,000;
 * a failure prints the seed and the number of the input.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  encodeGguf,
  type GgufTensorSource,
  type GgufValue,
  openGguf,
  openGgufModel,
} from '../../../lib/index.js';
import { moduleOf, tensorShapes } from '../../../lib/model/decoder-tensors.js';
import { ggufTokenizer } from '../../../lib/text/gguf-tokenizer.js';
import { generator, kFuzzSeed } from '../../checkpoint/fuzz.js';
import { codeOf, tempFolder } from '../../checkpoint/raw-file.js';
import {
  f32,
  flags,
  folderOf,
  type GgufCase,
  ggufCases,
  text,
  u32,
  writeModel,
} from './made-model.js';
import { f32s, i32s, sentencePieces, texts } from './made-vocabulary.js';

const kInputs = process.env.LOWRANK_SWEEP === 'full' ? 100_000 : 600;
/** Real files of this size open in a few milliseconds. */
const kMost_ms = 5000;
const kCodes = new Set(['no error', 'ERR_FILE', 'ERR_UNSUPPORTED']);

type Random = (below: number) => number;
const pick = <T>(random: Random, list: readonly T[]): T => list[random(list.length)] as T;

interface Seed {
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, GgufTensorSource>;
}

function seeds(): Seed[] {
  const ids = [
    'llama/gqa_llama3_tied',
    'phi3/partial_longrope_short',
    'gemma3/two_bases_linear',
    'qwen2/window_layers_rslora',
  ];
  const pairs: [string, GgufValue][] = [
    ['tokenizer.ggml.model', text('gpt2')],
    ['tokenizer.ggml.pre', text('qwen2')],
    ['tokenizer.ggml.tokens', texts(['a', 'b', 'ab', '<s>'])],
    ['tokenizer.ggml.token_type', i32s([1, 1, 1, 3])],
    ['tokenizer.ggml.merges', texts(['a b'])],
    ['tokenizer.ggml.eos_token_id', u32(3)],
  ];
  const pieces = sentencePieces([
    ['ab', 0],
    ['a', -1],
    ['b', -2],
  ]);
  return ids.map((id, i) => {
    const each = ggufCases.find((one) => one.id === id) as GgufCase;
    const file = join(tempFolder(), 'model.gguf');
    writeModel(file, folderOf(each), each, () => 'F32', i % 2 === 0 ? pairs : pieces);
    const opened = openGguf(readFileSync(file));
    const tensors = opened.names().map((name) => [name, opened.read(name)] as const);
    return { metadata: opened.metadata, tensors: new Map<string, GgufTensorSource>(tensors) };
  });
}

const kValues: readonly GgufValue[] = [
  ...[0, 1, 2, 3, 7, 8, 64, 10_000, 2 ** 31, 2 ** 32 - 1].map(u32),
  ...[0, -1, 0.5, 1e30, Number.NaN, Number.POSITIVE_INFINITY].map(f32),
  { type: 'u64', value: 2n ** 64n - 1n },
  { type: 'i64', value: -(2n ** 63n) },
  { type: 'i32', value: -5 },
  { type: 'bool', value: true },
  { type: 'string', value: Uint8Array.of(0xff, 0, 27) },
  { type: 'array', of: 'u64', value: BigUint64Array.of(1n, 2n ** 60n) },
  { type: 'array', of: 'array', value: [i32s([1]) as never] },
  ...['', 'yarn', 'llama', 'gpt2', '\u001b[2J', 'none', 'longrope'].map(text),
  i32s([]),
  i32s([4, 4, 4]),
  f32s([0, Number.NaN]),
  flags([true, false, true]),
  texts(['a', 'a', 'b']),
  texts([]),
];

const kKeys = [
  'rope.scaling.type',
  'rope.scaling.factor',
  'rope.scaling.attn_factor',
  'rope.scale_linear',
  'attention.sliding_window_pattern',
  'attention.sliding_window',
  'attention.causal',
  'attention.value_length',
  'expert_count',
  'rope.freq_base_swa',
  'final_logit_softcapping',
];

function mutated(seed: Seed, random: Random): Uint8Array {
  const metadata = new Map(seed.metadata);
  const tensors = new Map(seed.tensors);
  const architecture = String(metadata.get('general.architecture')?.value);
  for (let n = random(3); n >= 0; n--) {
    const key =
      random(4) === 0
        ? `${architecture}.${pick(random, kKeys)}`
        : pick(random, [...metadata.keys()]);
    const name = pick(random, [...tensors.keys()]);
    const tensor = tensors.get(name) as GgufTensorSource;
    switch (random(7)) {
      case 0:
        metadata.delete(key);
        break;
      case 1:
        tensors.delete(name);
        break;
      case 2: {
        const shape = pick(random, [[], [1], [2, 2], [...tensor.shape].reverse(), [32], [1, 1, 4]]);
        const size = shape.reduce((a, b) => a * b, 1);
        tensors.set(name, { type: 'F32', shape, data: new Float32Array(size).fill(random(2)) });
        break;
      }
      case 3: {
        const other = pick(random, [
          'blk.0.attn_q.scale',
          'rope_freqs.weight',
          'output.weight',
          'blk.9.x.weight',
          'blk.0.attn_k.bias',
        ]);
        tensors.set(other, tensor);
        break;
      }
      default:
        metadata.set(key, pick(random, kValues));
    }
  }
  const bytes = encodeGguf({
    metadata: metadata.has('general.alignment') ? seed.metadata : metadata,
    tensors,
  });
  if (random(4) === 0) {
    const at = random(bytes.length);
    bytes[at] = (bytes[at] as number) ^ (1 << random(8));
  }
  return bytes;
}

/** Opens a file, and reads all that it has. */
function readAll(file: string): void {
  const model = openGgufModel(file);
  for (const name of tensorShapes(model.places).keys()) {
    const module = moduleOf(name);
    if (model.layoutOf(module) === undefined) model.read(name);
    else model.readQuantized(module);
  }
}

describe('mutated GGUF models', () => {
  it(`${kInputs} of seed ${kFuzzSeed} open or give a typed error`, { timeout: 1_800_000 }, () => {
    const random = generator(kFuzzSeed);
    const all = seeds();
    const file = join(tempFolder(), 'mutant.gguf');
    const found = new Map<string, number>();
    for (let i = 0; i < kInputs; i++) {
      writeFileSync(file, mutated(pick(random, all), random));
      const started = performance.now();
      for (const call of [() => readAll(file), () => ggufTokenizer('test', openGguf(file))]) {
        const code = codeOf(call);
        if (!kCodes.has(code)) throw new Error(`input ${i} of seed ${kFuzzSeed}: ${code}`);
        found.set(code, (found.get(code) ?? 0) + 1);
      }
      const took_ms = performance.now() - started;
      if (took_ms > kMost_ms) throw new Error(`input ${i} of seed ${kFuzzSeed}: ${took_ms} ms`);
    }
    // Each outcome is reached.
    for (const code of kCodes) expect(found.get(code), code).toBeGreaterThan(kInputs / 50);
  });
});
