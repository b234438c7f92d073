/** Sizes, sweeps, ceilings and operands of the harness. */

import { describe, expect, it } from 'vitest';
import {
  element,
  elements,
  expectedProbe,
  probeError,
  probeIndices,
} from '../../lib/bench/data.js';
import {
  benchOps,
  bytesOf,
  coldBytesFor,
  copiesFor,
  flopsOf,
  type Job,
  jobName,
  weightBytesOf,
} from '../../lib/bench/job.js';
import { intensity, roofOf } from '../../lib/bench/roofline.js';
import { layersOf } from '../../lib/bench/shapes.js';
import { defaultGroups, expand, threadSteps } from '../../lib/bench/sweep.js';
import { linearForward, linearInputGrad } from './plain-linear.js';

const job: Job = {
  op: 'lora',
  M: 2,
  K: 64,
  N: 32,
  r: 4,
  format: 'nf4',
  dtype: 'f32',
  threads: 1,
  device: 'cpu',
  coldBytes: 0,
};

describe('jobs', () => {
  it('count operations and bytes', () => {
    const flops = benchOps.map((op) => flopsOf({ ...job, op }));
    // x · wᵀ: 2·2·32·64 = 8192; a factor's two products: 2·2·4·(64 + 32) = 1536.
    expect(flops).toEqual([8192, 8192 + 1536, 8192 + 2 * 1536, 2 * 8192 + 3 * 1536]);
    expect(weightBytesOf(job)).toBe(64 * 32 * 0.5 + 4 * 32); // 32 blocks of 64
    expect(weightBytesOf({ ...job, format: 'int8' })).toBe(64 * 32 + 4 * 8);
    expect(weightBytesOf({ ...job, format: 'none', dtype: 'bf16' })).toBe(2 * 64 * 32);
    expect(weightBytesOf({ ...job, format: 'q4_k', K: 512 })).toBe(2 * 32 * 144);
    expect(bytesOf({ ...job, op: 'matmul' }, 1000)).toBe(1000 + 4 * 2 * 96);
    expect(bytesOf({ ...job, op: 'loraForward' }, 1000)).toBe(1000 + 4 * 2 * 96 + 4 * 4 * 96);
    expect(jobName(job)).toBe('lora M=2 K=64 N=32 r=4 nf4 f32 cpu, 1 thread');
  });

  it('rotate weights of few tokens past the last cache', () => {
    const cache = 32 * 2 ** 20;
    expect(coldBytesFor(1, 9 * 2 ** 20, cache)).toBe(2 * cache);
    expect(coldBytesFor(256, 9 * 2 ** 20, cache)).toBe(0); // bound by arithmetic
    expect(coldBytesFor(1, 2 ** 16, cache)).toBe(0); // a whole model of these fits the cache
    expect(copiesFor({ ...job, coldBytes: 2 * cache }, 9 * 2 ** 20)).toBe(8);
    expect(copiesFor(job, 9 * 2 ** 20)).toBe(1);
  });

  it('are judged by the lower of both ceilings', () => {
    const ceilings = { f32: 200, bf16: 400, read: 30, copy: 30 };
    const few = { ...job, op: 'matmul', M: 1, K: 4096, N: 4096, coldBytes: 1 } as const;
    const weight = weightBytesOf(few);
    expect(intensity(few, weight)).toBeCloseTo(2 / 0.5625, 1);
    const roof = roofOf(few, ceilings, weight, 'f32');
    expect(roof.bound).toBe('memory');
    expect(roof.gflops).toBeCloseTo(30 * intensity(few, weight), 9);
    expect(roofOf({ ...few, M: 64 }, ceilings, weight, 'f32').gflops).toBe(200);
    expect(roofOf({ ...few, coldBytes: 0 }, ceilings, weight, 'bf16').gflops).toBe(400);
    expect(roofOf(few, ceilings, 1, 'int8').gflops).toBe(200); // no such instruction: the f32 peak
  });

  it('come from lists, each combination once', () => {
    const lists = {
      ops: ['matmul', 'lora'] as const,
      shapes: [
        { layer: 'l', K: 8, N: 8 },
        { M: 5, K: 8, N: 8 },
      ],
      M: [1, 2],
      r: [4, 8],
      formats: ['nf4', 'int8'] as const,
      dtypes: ['f32'] as const,
      threads: [1, 2],
      devices: ['cpu', 'reference'] as const,
    };
    // matmul knows no r; devices other than cpu no threads.
    expect(expand(lists, 2 ** 25)).toHaveLength(3 * 2 * (1 + 2) * (2 + 1));
    expect(threadSteps(6)).toEqual([1, 2, 4, 6]);
    expect(threadSteps(1)).toEqual([1]);
    const groups = defaultGroups('cpu', 2, 2 ** 25);
    expect(groups.map(({ jobs }) => jobs.length)).toEqual([2, 4, 1, 1, 2, 2]);
    expect(defaultGroups('cpu', 1, 2 ** 25).flatMap(({ jobs }) => jobs)).toHaveLength(11);
  });

  it('have layers of real models', () => {
    expect(layersOf('llama-3-8b:down')).toEqual({
      model: 'Llama-3-8B',
      layers: [{ name: 'down', K: 14336, N: 4096 }],
    });
    expect(layersOf('Qwen2.5-0.5B')?.layers).toHaveLength(4);
    expect(layersOf('Llama-3-8B:lm_head')).toBeUndefined();
    expect(layersOf('__proto__')).toBeUndefined();
  });
});

describe('operands', () => {
  it('are uniform, and different from each other', () => {
    const x = elements('x', 20_000);
    const mean = x.reduce((sum, value) => sum + value, 0) / x.length;
    const square = x.reduce((sum, value) => sum + value * value, 0) / x.length;
    expect(Math.abs(mean)).toBeLessThan(0.02);
    expect(Math.abs(square - 1 / 3)).toBeLessThan(0.01);
    const dy = elements('dy', x.length);
    const product = x.reduce((sum, value, i) => sum + value * (dy[i] as number), 0) / x.length;
    expect(Math.abs(product)).toBeLessThan(0.02);
    expect(Math.fround(element('w', 7))).toBe(elements('w', 8)[7]);
  });

  it.each(benchOps)('give the %s that a plain loop over whole matrices gives', (op) => {
    const one = { ...job, op };
    const { M, K, N, r } = one;
    const of = (name: 'x' | 'dy' | 'w' | 'loraA' | 'loraB', length: number) =>
      elements(name, length);
    const parts = {
      w: of('w', N * K),
      loraA: op === 'matmul' ? undefined : of('loraA', r * K),
      loraB: of('loraB', N * r),
    };
    const full =
      op === 'matmul' || op === 'loraForward'
        ? linearForward(of('x', M * K), parts, M, K, N, r)
        : linearInputGrad(of('dy', M * N), parts, M, K, N, r);
    const expected = expectedProbe(one);
    probeIndices(one).forEach((index, i) => {
      expect(expected[i]).toBeCloseTo(full[index] as number, 5);
    });
    expect(probeError(expected, expected)).toBe(0);
    expect(probeError([], expected)).toBeNaN();
  });
});
