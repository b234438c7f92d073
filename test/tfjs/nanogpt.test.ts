/** A trainer of somebody else, `@genai-fi/nanogpt` as npm has it: the same losses and weights with this library. */

import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { backends } from '../finetune/setup.js';
import { expectClose } from './setup.js';

const root = join(import.meta.dirname, '..', '..');
const size = '--width 32 --layers 2 --batch 4 --block 32 --rank 4 --steps 6 --weights'.split(' ');

interface Run {
  readonly losses: number[];
  readonly weights: number[][];
}

function train(backend: string, lowrank: string): Run {
  const file = join(root, 'examples', 'nanogpt', 'train.mjs');
  const out = execFileSync(
    process.execPath,
    [file, '--backend', backend, '--lowrank', lowrank, ...size],
    { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] },
  );
  return JSON.parse(out.trim().split('\n').at(-1) as string);
}

/**
 * The norm of the difference, relative to that of the values. The largest element says little: Adam divides by the size of
 * a gradient, so that one of nearly zero moves its weight by rounding alone.
 */
function distance(actual: readonly number[], expected: readonly number[]): number {
  let [difference, size] = [0, 0];
  expected.forEach((value, i) => {
    difference += ((actual[i] as number) - value) ** 2;
    size += value ** 2;
  });
  return Math.sqrt(difference / size);
}

describe.each(backends)('on the %s backend', (backend) => {
  it('losses and weights are those of the trainer without us', () => {
    const theirs = train(backend, 'none');
    expect(theirs.losses.length).toBe(6);
    expect(theirs.losses[5]).toBeLessThan(theirs.losses[0] as number);
    // The fused layers, beside everything that register() replaces.
    const ours = train(backend, 'lora');
    expectClose(ours.losses, theirs.losses, 1e-6, 'losses');
    expect(ours.weights.length).toBe(16);
    ours.weights.forEach((weight, i) => {
      const expected = theirs.weights[i] as number[];
      expect(distance(weight, expected), `weight ${i}`).toBeLessThan(3e-6);
    });
  });
});
