/** Child processes for tests that end, starve or crash the process they run in. */
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { build } from 'esbuild';
import { afterAll, beforeAll } from 'vitest';
import { bindingPath } from '../../lib/core/binding.js';

const sources = join(import.meta.dirname, 'programs');

/** How much longer than on a plain build things may take; the sanitizer runs set it. */
export const TIME_SCALE = Number(process.env.LOWRANK_TIME_SCALE ?? 1);

/**
 * A count for the quick suite, the full one where LOWRANK_RELIABILITY=full, or the one of a sanitizer's smoke
 * run where it is `few`: a sanitizer reports a bug the first time.
 */
export function repetitions(quick: number, full: number, few = quick): number {
  const wanted = process.env.LOWRANK_RELIABILITY;
  return wanted === 'full' ? full : wanted === 'few' ? few : quick;
}

export interface Ended {
  status: number | null;
  signal: NodeJS.Signals | null;
  out: string;
  err: string;
  /** `Date.now()` when the process was gone. */
  endedAt: number;
}

/** A sanitizer run looks for leaks in programs only: the test runner's own modules have some. */
function leakChecks(): Record<string, string> {
  const options = process.env.ASAN_OPTIONS;
  return options === undefined ? {} : { ASAN_OPTIONS: `${options}:detect_leaks=1` };
}

let folder = '';
const bundles = new Map<string, Promise<string>>();

/** Makes room for the programs in a temporary folder; call at the top of a test file. */
export function usePrograms(): void {
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'lowrank-programs-'));
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
}

/** The program with the library in one file, which is made when a test first asks for it. */
function bundled(name: string): Promise<string> {
  const made = bundles.get(name) ?? bundle(name);
  bundles.set(name, made);
  return made;
}

/** Three programs start a worker with this one, which lies beside them. */
const WORKER = 'long-kernel';

async function bundle(name: string): Promise<string> {
  await build({
    entryPoints: [...new Set([name, WORKER])].map((file) => join(sources, `${file}.ts`)),
    outdir: folder,
    outExtension: { '.js': '.mjs' },
    bundle: true,
    platform: 'node',
    packages: 'external',
    format: 'esm',
    target: 'node20',
    logLevel: 'warning',
  });
  return join(folder, `${name}.mjs`);
}

/** Runs a program to its end. `whenReady` is called once it has printed a line `ready`. */
export async function runProgram(
  name: string,
  args: readonly string[],
  options: {
    env?: Record<string, string>;
    nodeArgs?: readonly string[];
    whenReady?: (pid: number) => void;
    timeout?: number;
    /** Look for leaks at the end, in an address sanitizer run; not where it ends in mid-flight. */
    leakCheck?: boolean;
  } = {},
): Promise<Ended> {
  const program = await bundled(name);
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [...(options.nodeArgs ?? []), program, ...args], {
      env: {
        ...process.env,
        LOWRANK_BINDING: bindingPath(),
        ...(options.leakCheck === false ? {} : leakChecks()),
        ...options.env,
      },
    });
    const limit = setTimeout(() => child.kill('SIGKILL'), options.timeout ?? 50_000 * TIME_SCALE);
    let out = '';
    let err = '';
    let told = false;
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      out += text;
      if (!told && /^ready$/m.test(out)) {
        told = true;
        options.whenReady?.(child.pid as number);
      }
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      err += text;
    });
    let endedAt = 0;
    child.on('exit', () => {
      endedAt = Date.now();
    });
    child.on('error', reject);
    child.on('close', (status, signal) => {
      clearTimeout(limit);
      resolve({ status, signal, out, err, endedAt });
    });
  });
}

/** The JSON that a program printed as its last line; fails with what it said where it failed. */
export function reportOf<T>(ended: Ended): T {
  if (ended.status !== 0) {
    throw new Error(
      `the program ended with ${ended.signal ?? ended.status}:\n${ended.err.slice(-4000)}`,
    );
  }
  return JSON.parse(ended.out.trimEnd().split('\n').at(-1) ?? '') as T;
}

/** The smallest value that at least the share `p` of the values does not exceed. */
export function percentile(values: readonly number[], p: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(Math.ceil(sorted.length * p) - 1, 0)] ?? 0;
}
