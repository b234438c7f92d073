/** The peers of the harness: whatever of them is on this machine computes the right thing. */

import { readFileSync } from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { removePrograms } from '../../lib/bench/foreign.js';
import type { Job } from '../../lib/bench/job.js';
import { type FoundPeer, measureCase } from '../../lib/bench/measure.js';
import { kPeers } from '../../lib/bench/peers/index.js';
import { torchSettings } from '../../lib/bench/peers/torch.js';
import { requireBuilt } from '../finetune/command.js';

const root = path.resolve(import.meta.dirname, '..', '..');
const job: Job = {
  op: 'loraForward',
  M: 5,
  K: 128,
  N: 96,
  r: 4,
  format: 'nf4',
  dtype: 'f32',
  threads: 1,
  device: 'cpu',
  coldBytes: 1000,
};
const plan = { trials: 1, repeats: 1, seconds: 0.01, sample_ms: 0, roofline: false };
const found: FoundPeer[] = [];

beforeAll(async () => {
  requireBuilt();
  for (const peer of kPeers) {
    const result = await peer.find();
    if ('version' in result) found.push({ peer, version: result.version });
    else console.log(`not checked: ${peer.name} is not here: ${result.missing}`);
  }
});

// A signal ends the process of a test file, which has no exit event then.
afterAll(removePrograms);

describe('torch', () => {
  it('is tried with threads that wait and with threads that spin, or as the user has set it', () => {
    const policies = torchSettings(2, {}).map(({ env }) => env.OMP_WAIT_POLICY);
    expect(policies).toEqual(['passive', undefined]);
    for (const { env, settings } of torchSettings(2, {})) {
      expect(env).toMatchObject({ OMP_NUM_THREADS: '2', OPENBLAS_NUM_THREADS: '2' });
      expect(env.GLIBC_TUNABLES === undefined).toBe(process.platform !== 'linux');
      expect(settings).toContain('OMP_WAIT_POLICY');
    }
    const [own, ...others] = torchSettings(2, {
      OMP_WAIT_POLICY: 'active',
      GLIBC_TUNABLES: 'glibc.malloc.arena_max=1',
    });
    expect(others).toEqual([]);
    // What is not named here is the user's.
    expect(own?.env).not.toHaveProperty('OMP_WAIT_POLICY');
    expect(own?.env).not.toHaveProperty('GLIBC_TUNABLES');
    expect(own?.settings).toBe('OMP_WAIT_POLICY=active');
  });

  it('names its BLAS, and the settings that were the fastest', async () => {
    const torch = found.filter(({ peer }) => peer.name === 'torch');
    if (torch.length === 0) return console.log('not checked: no torch with a tuned BLAS');
    const { rows } = await measureCase({ ...job, op: 'lora' }, torch, plan, '', () => {});
    expect(rows[0]?.note).toMatch(/^dense f32, eager; (OpenBLAS [\d.]+, |MKL).*; OMP_WAIT_POLICY/);
  }, 60_000);
});

describe('peers', () => {
  it('have names of their own, and stand in the documentation', () => {
    const names = kPeers.map(({ name }) => name);
    expect(new Set(names).size).toBe(names.length);
    const text = readFileSync(path.join(root, 'docs', 'benchmarks.md'), 'utf8');
    for (const name of names.slice(1)) expect(text).toContain(`| \`${name}\` |`);
    expect(found.map(({ peer }) => peer.name)).toEqual(
      expect.arrayContaining(['lowrank', 'unfused', 'base', 'tfjs']),
    );
  });

  it.each(['matmul', 'lora'] as const)(
    'that are here compute %s, or say before that they do not',
    async (op) => {
      const one = { ...job, op };
      const { rows, skipped } = await measureCase(one, found, plan, '', () => {});
      // Whoever takes the job must finish it.
      const expected = found.filter(({ peer }) => peer.refuses?.(one) === undefined);
      expect(rows.map(({ subject }) => subject)).toEqual(expected.map(({ peer }) => peer.name));
      expect(skipped.length).toBe(found.length - expected.length);
      for (const { subject, error, copies } of rows) {
        if (error !== undefined) expect([subject, error < 0.2]).toEqual([subject, true]);
        // 6912 bytes of four bits with scales are enough: one copy. No dense weight is smaller.
        expect([subject, copies]).toEqual([subject, 1]);
      }
    },
    120_000,
  );

  // The error says whether a type got its own bits.
  it.each([
    ['q8_0', 0.02],
    ['q5_k', 0.08],
    ['nvfp4', 0.2],
  ] as const)(
    'compute %s, as a type of GGUF',
    async (format, most) => {
      const one = { ...job, op: 'matmul', K: 256, format } as const;
      const { rows } = await measureCase(one, found, plan, '', () => {});
      expect(rows.map(({ subject }) => subject)).toContain('lowrank');
      for (const { subject, error } of rows) {
        const own = ['lowrank', 'ggml'].includes(subject);
        if (own) expect([subject, (error as number) < most]).toEqual([subject, true]);
      }
      const short = { ...one, K: 128 };
      const lowrank = found.filter(({ peer }) => peer.name === 'lowrank');
      const { skipped } = await measureCase(short, lowrank, plan, '', () => {});
      expect(skipped.map(({ reason }) => reason)).toEqual(
        format === 'q5_k' ? ['only K of a multiple of 256'] : [],
      );
    },
    120_000,
  );

  it('take bf16 where they say so', async () => {
    const one = { ...job, dtype: 'bf16', coldBytes: 40_000 } as const;
    const { rows, skipped } = await measureCase(one, found, plan, '', () => {});
    expect(skipped.map(({ reason }) => reason).filter((reason) => !/only/.test(reason))).toEqual(
      [],
    );
    expect(rows[0]?.copies).toBe(Math.ceil(40_000 / 6912));
    for (const { error } of rows) if (error !== undefined) expect(error).toBeLessThan(0.2);
  }, 120_000);
});
