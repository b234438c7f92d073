/**
 * Mutated tensors, planar weights and adapter files: a typed error, or a result that an independent decoder confirms.
 * `LOWRANK_SWEEP=full` takes 100,000 of each; a failure prints the seed and the number of the input.
 */

import { describe, expect, it } from 'vitest';
import { type GgufBlockType, ggufBlockTypes } from '../../../lib/checkpoint/gguf/blocks/parts.js';
import { ggufToPlanar, planarToGguf } from '../../../lib/checkpoint/gguf/blocks/planar.js';
import type { PlanarWeight } from '../../../lib/checkpoint/planar/planar-weight.js';
import {
  adapterToGguf,
  encodeGguf,
  GGUF_TYPES,
  type GgufTensor,
  ggufToAdapter,
  LowrankError,
  openGguf,
} from '../../../lib/index.js';
import { decodeGguf } from '../../oracle/formats/gguf.js';
import { generator, kFuzzSeed } from '../fuzz.js';
import { kLlama, made, throughPeft } from './made-adapter.js';
import { planarValues } from './planar-values.js';

const kInputs = process.env.LOWRANK_SWEEP === 'full' ? 100_000 : 2000;

type Random = (below: number) => number;

/** Runs `check` on every input. It says whether the input was accepted; only these codes may be thrown. */
function fuzz(codes: readonly string[], check: (random: Random) => void): void {
  const random = generator(kFuzzSeed);
  let accepted = 0;
  for (let input = 0; input < kInputs; input++) {
    try {
      check(random);
      accepted++;
    } catch (error) {
      if (error instanceof LowrankError && codes.includes(error.code)) continue;
      throw new Error(`seed ${kFuzzSeed}, input ${input}`, { cause: error });
    }
  }
  expect(accepted).toBeGreaterThan(kInputs * 0.02);
  expect(accepted).toBeLessThan(kInputs * 0.98);
}

const typeOf = (random: Random): GgufBlockType =>
  ggufBlockTypes[random(ggufBlockTypes.length)] as GgufBlockType;

function tensorOf(type: GgufBlockType, random: Random): GgufTensor {
  const { elements, bytes } = GGUF_TYPES[type];
  const [rows, blocks] = [1 + random(3), 1 + random(2)];
  return {
    type,
    shape: [rows, blocks * elements],
    data: Uint8Array.from({ length: rows * blocks * bytes }, () => random(256)),
  };
}

const sameNumber = (a: number, b: number): boolean =>
  a === b || (Number.isNaN(a) && Number.isNaN(b));

function requireSame(mine: ArrayLike<number>, wanted: ArrayLike<number>): void {
  let differs = mine.length === wanted.length ? -1 : 0;
  for (let i = 0; i < mine.length && differs < 0; i++) {
    if (!sameNumber(mine[i] as number, wanted[i] as number)) differs = i;
  }
  if (differs >= 0) throw new Error(`element ${differs}: ${mine[differs]}, ${wanted[differs]}`);
}

/** A value in the place of a number: its neighbours, nothing, much, no number. */
const odd = (value: number, random: Random): number =>
  [value, value + 1, value - 1, 0, value * 2, value / 2, 2 ** 31, Number.NaN][random(8)] as number;

/** Another length, or another number in one place. */
function oddArray<T extends Uint8Array | Uint16Array | Float32Array>(data: T, random: Random): T {
  const copy = data.slice() as T;
  if (random(3) === 0) return copy.subarray(0, Math.max(0, copy.length - 1 - random(2))) as T;
  if (copy.length > 0) copy[random(copy.length)] = random(256);
  return copy;
}

/** One thing of a weight is another. */
function mutated(weight: PlanarWeight, random: Random): PlanarWeight {
  const { scale } = weight;
  const { values, outer } = scale;
  switch (random(9)) {
    case 0:
      return { ...weight, rows: odd(weight.rows, random) };
    case 1:
      return { ...weight, columns: odd(weight.columns, random) };
    case 2:
      return { ...weight, codes: oddArray(weight.codes, random) };
    case 3:
      return { ...weight, levels: oddArray(weight.levels, random), bits: odd(weight.bits, random) };
    case 4:
      return { ...weight, grid: { kind: 'tiles', rows: odd(1, random), columns: 32 } };
    case 5:
      return {
        ...weight,
        scale: {
          ...scale,
          values: { ...values, data: oddArray(values.data, random) } as typeof values,
        },
      };
    case 6:
      return outer === undefined
        ? weight
        : { ...weight, scale: { ...scale, outer: { ...outer, span: odd(outer.span, random) } } };
    case 7: {
      const { min: _, ...rest } = weight;
      return random(2) === 0 ? rest : { ...weight, min: scale };
    }
    default:
      return weight;
  }
}

describe('fuzzing of blocks', () => {
  it(`tensors, ${kInputs} of seed ${kFuzzSeed}`, { timeout: 600_000 }, () => {
    fuzz(['ERR_SHAPE', 'ERR_DTYPE'], (random) => {
      const tensor = tensorOf(typeOf(random), random);
      const type = random(4) === 0 ? typeOf(random) : tensor.type;
      const shape = random(4) === 0 ? tensor.shape.map((dim) => odd(dim, random)) : tensor.shape;
      const data = random(4) === 0 ? oddArray(tensor.data, random) : tensor.data;
      const weight = ggufToPlanar({ type, shape, data });
      requireSame(planarValues(weight), decodeGguf(type, data));
      requireSame(planarToGguf(weight, type as GgufBlockType).tensor.data, data);
    });
  });

  it(`planar weights, ${kInputs} of seed ${kFuzzSeed}`, { timeout: 600_000 }, () => {
    fuzz(['ERR_SHAPE', 'ERR_FORMAT', 'ERR_VALUE'], (random) => {
      const own = typeOf(random);
      const weight = mutated(ggufToPlanar(tensorOf(own, random)), random);
      const type = random(8) === 0 ? typeOf(random) : own;
      const { tensor } = planarToGguf(weight, type);
      requireSame(decodeGguf(type, tensor.data), planarValues(weight));
    });
  });
});

describe('fuzzing of adapters', () => {
  const file = encodeGguf(adapterToGguf(throughPeft(made()), kLlama));
  const words = [
    'lora_a',
    'lora_b',
    'token_embd',
    'attn_q',
    'ffn_up',
    'adapter',
    'lora',
    'llama',
  ].map((word) => new TextEncoder().encode(word));

  it(`files, ${kInputs} of seed ${kFuzzSeed}`, { timeout: 600_000 }, () => {
    fuzz(['ERR_FILE', 'ERR_UNSUPPORTED', 'ERR_VALUE', 'ERR_SHAPE'], (random) => {
      const bytes = file.slice();
      for (let n = random(3); n >= 0; n--) {
        const at = random(1000);
        if (random(2) === 0) bytes[at] = (bytes[at] as number) ^ (1 << random(8));
        else bytes.set(words[random(words.length)] as Uint8Array, at);
      }
      const { config, modules } = ggufToAdapter(openGguf(bytes), random(8) === 0 ? {} : kLlama);
      for (const { module, loraA, loraB } of modules) {
        const r = config.rankPattern?.get(module) ?? config.r;
        if (loraA.shape[0] !== r || loraB.shape[1] !== r) throw new Error(`rank of ${module}`);
        for (const { shape, data } of [loraA, loraB]) {
          const [rows = 0, columns = 0] = shape;
          if (data.byteLength % (rows * columns) !== 0) throw new Error(`bytes of ${module}`);
        }
      }
    });
  });
});
