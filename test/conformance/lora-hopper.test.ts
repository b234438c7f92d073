// h and dh of up to 64 ranks beside the products of an emulated card of sm_90, in the launch that multiplies, against
// the float64 pass.
import { describe, expect, it } from 'vitest';
import { loraBackward, loraForward, scope, type Tensor } from '../../lib/index.js';
import { bound, loraBackward64, loraForward64, loraShrink64, promisedOf } from '../oracle.js';
import { available, DEVICE, launched, useSmallCard } from './grouped-segments.js';
import { type LoraShape, type LoraVariant, loraCase } from './lora-case.js';
import { WEIGHTS } from './operands.js';

useSmallCard(90);

type Case = LoraShape & LoraVariant & { weight: string; dtype: 'bf16' | 'f16' };

/** Weights of a megabyte, and columns enough for h beside the products. */
const FORWARD: readonly Case[] = [
  { M: 385, N: 1032, K: 520, r: 32, dtype: 'f16', weight: 'dense f16' },
  { M: 401, N: 1064, K: 1000, r: 17, dtype: 'bf16', weight: 'int8', bias: true },
  {
    M: 390,
    N: 1032,
    K: 520,
    r: 32,
    dtype: 'bf16',
    weight: 'dense bf16',
    sameDType: true,
    dropout: 0.5,
  },
  { M: 385, N: 2056, K: 264, r: 64, dtype: 'bf16', weight: 'dense bf16', sameDType: true },
  {
    M: 393,
    N: 2056,
    K: 520,
    r: 48,
    dtype: 'bf16',
    weight: 'int8 with double quantisation',
    sameDType: true,
  },
];
/** The same of dh, whose product has K columns. */
const BACKWARD: readonly Case[] = [
  { M: 385, N: 520, K: 1032, r: 32, dtype: 'f16', weight: 'dense f16', dropout: 0.25 },
  { M: 385, N: 264, K: 2056, r: 64, dtype: 'bf16', weight: 'dense bf16', sameDType: true },
  { M: 401, N: 520, K: 2056, r: 33, dtype: 'bf16', weight: 'int8', sameDType: true, dropout: 0.25 },
];

function drawn(test: Case, seed: number) {
  const spec = WEIGHTS.find(({ name }) => name === test.weight) as (typeof WEIGHTS)[number];
  return loraCase(test, test, spec, test.dtype, DEVICE, seed);
}

/** What the body launches of the products by wgmma and of passes for h or dh alone. */
async function launches(body: () => Promise<void>): Promise<string[]> {
  const before = launched().length;
  await body();
  return launched()
    .slice(before)
    .map((kernel) => /^(gemm_wgmma_128|lora_shrink|lora_grad)/.exec(kernel)?.[0] ?? '')
    .filter((kernel, i, all) => kernel !== '' && all.indexOf(kernel) === i);
}

describe.runIf(available())('adapters of up to 64 ranks on sm_90', () => {
  it.each(FORWARD)(
    'y and h, $dtype, $weight, [$M, $N, $K] r $r',
    async (test) => {
      await scope(async () => {
        const { name, x, w, adapter, options, inputs } = drawn(test, test.r);
        const own = await launches(async () => {
          const { y, saved } = loraForward(x, w, adapter, options);
          const c = (part: string) => promisedOf(DEVICE, part, test, test.dtype);
          const h = await (saved.h as Tensor).read();
          bound(`h ${name}`, h, loraShrink64(inputs), { c: c('h') });
          bound(`y ${name}`, await y.read(), loraForward64(inputs), {
            dtype: test.dtype,
            c: c('y'),
          });
        });
        expect(own).toEqual(['gemm_wgmma_128']);
      });
    },
    120_000,
  );

  it.each(BACKWARD)(
    'dx, $dtype, $weight, [$M, $N, $K] r $r',
    async (test) => {
      await scope(async () => {
        const { name, x, dy, w, adapter, options, inputs, dy64 } = drawn(test, test.r);
        const { y, saved } = loraForward(x, w, adapter, options);
        await y.read();
        const own = await launches(async () => {
          const { dx } = loraBackward(dy, saved, { needs: ['dx'] });
          bound(`dx ${name}`, await (dx as Tensor).read(), loraBackward64(inputs, dy64).dx, {
            dtype: test.dtype,
            c: promisedOf(DEVICE, 'dx', test, test.dtype),
          });
        });
        expect(own).toEqual(['gemm_wgmma_128']);
      });
    },
    120_000,
  );
});
