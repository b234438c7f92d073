/**
 * Programs that `lowrank bench` runs beside itself: the roofline, and PyTorch.
 */

import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { BenchOp, BenchShape } from './bench-subjects.js';
import { packageFolder } from './package-folder.js';

const kTimeout_ms = 600_000;

/**
 * Peak f32 multiply-add rate with this many threads in GFLOP/s, compiled and measured now.
 * @returns why there is none, as text, where no compiler is found
 */
export function measureRoofline(threads: number): number | string {
  const source = path.join(packageFolder(), 'bench', 'roofline.cpp');
  if (!existsSync(source)) return 'its source is not installed';
  const folder = mkdtempSync(path.join(os.tmpdir(), 'lowrank-roofline-'));
  try {
    const program = path.join(folder, 'roofline');
    const flags = ['-O3', '-march=native', '-std=c++17', '-pthread', source, '-o', program];
    const compiled = spawnSync(process.env.CXX ?? 'c++', flags, { encoding: 'utf8' });
    if (compiled.status !== 0) return 'no C++ compiler';
    const run = spawnSync(program, [String(threads)], { encoding: 'utf8', timeout: kTimeout_ms });
    const value = Number(run.stdout);
    return run.status === 0 && value > 0 ? value : 'it could not be measured';
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Times of PyTorch in milliseconds. */
export interface TorchTimes {
  readonly version: string;
  readonly times: Readonly<Record<BenchOp, readonly number[]>>;
}

/** @returns `undefined` where there is no python3 with torch */
export function measureTorch(
  { M, K, N, r }: BenchShape,
  threads: number,
  repeats: number,
): TorchTimes | undefined {
  const script = path.join(packageFolder(), 'bench', 'torch_peer.py');
  const args = [script, ...[M, K, N, r, threads, repeats].map(String)];
  // A distribution's torch belongs to its own python3, which need not be the first on the PATH.
  const pythons = [process.env.PYTHON, 'python3', '/usr/bin/python3'];
  const has = (python: string) =>
    spawnSync(python, ['-c', 'import torch'], { stdio: 'ignore' }).status === 0;
  const python = pythons.find((name) => name !== undefined && has(name));
  if (python === undefined) return undefined;
  const run = spawnSync(python, args, { encoding: 'utf8', timeout: kTimeout_ms });
  if (run.status !== 0) return undefined;
  const { version, ...times } = JSON.parse(run.stdout) as Record<string, unknown>;
  return { version: String(version), times: times as TorchTimes['times'] };
}
