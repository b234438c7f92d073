/** What gpu:test and gpu:bench share: building, asking for the device, and running programs. */
import { spawn, spawnSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';

export const root = resolve(import.meta.dirname, '..', '..');
/** Where the addon lies and what is built beside it. */
export const output = process.env.LOWRANK_BINDING
  ? dirname(resolve(process.env.LOWRANK_BINDING))
  : join(root, 'build', 'Release');
export const binding = join(output, 'lowrank.node');
export const beside = (file) => join(output, file);

/** Runs a step of the build; ends this program with status 2 where it fails. */
function buildStep(what, ...options) {
  console.log(`building ${what} ...`);
  const script = join(root, 'native', 'build.mjs');
  const { status, stdout, stderr } = spawnSync(process.execPath, [script, 'build', ...options], {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });
  if (status === 0) return;
  console.error(`${stdout}${stderr}`.split('\n').slice(-40).join('\n'));
  console.error(`${what} could not be built`);
  process.exit(2);
}

/** The addon with its kernels, and a target of test/gpu/gpu.cmake. */
export function buildPrograms(target) {
  buildStep('the addon and its kernels', '--silent');
  buildStep('the programs', '--silent', '--target', target);
}

/**
 * The row of `devices()`. Where the device is not available this says why, and what to do about it, and
 * ends with status 2.
 */
export function requireDevice(device) {
  const script = 'console.log(JSON.stringify(require(process.argv[1]).devices()))';
  const { stdout, stderr } = spawnSync(process.execPath, ['-e', script, binding], {
    encoding: 'utf8',
  });
  if (!stdout) {
    console.error(`the addon does not load: ${stderr}`);
    process.exit(2);
  }
  const row = JSON.parse(stdout).find((one) => one.device === device);
  if (row?.available) return row;
  console.error(`${device} is not available: ${row?.reason ?? 'this build does not know it'}`);
  if (row?.reason?.includes('lowrank.fatbin')) {
    console.error(
      'The kernels are not built: that takes nvcc (CUDA 12.4 or later is best) on the PATH, in ' +
        'CUDA_PATH or in CUDA_HOME; then run this again.',
    );
  }
  process.exit(2);
}

/** A name for a file. */
export const slug = (text) =>
  text
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '-')
    .replace(/^-|-$/g, '');

/** Runs a program that prints a line of JSON a result; `onRow` sees each as it comes. */
export function jsonLines(command, args, { env = {}, onRow = () => {}, timeout, input } = {}) {
  return new Promise((done) => {
    const started = Date.now();
    const child = spawn(command, args, {
      cwd: root,
      env: { ...process.env, LOWRANK_BINDING: binding, ...env },
      stdio: ['pipe', 'pipe', 'pipe'],
      timeout,
    });
    // A program that died early is told of by its status.
    child.stdin.on('error', () => {});
    child.stdin.end(input);
    const rows = [];
    let rest = '';
    let err = '';
    child.stdout.setEncoding('utf8').on('data', (text) => {
      const lines = (rest + text).split('\n');
      rest = lines.pop();
      for (const line of lines.filter((one) => one.startsWith('{'))) {
        const row = JSON.parse(line);
        rows.push(row);
        onRow(row);
      }
    });
    child.stderr.setEncoding('utf8').on('data', (text) => {
      err = (err + text).slice(-8000);
    });
    child.on('error', (error) => {
      err += error.message;
    });
    child.on('close', (status, signal) =>
      done({
        rows,
        err: err.trim(),
        status: signal ?? status,
        seconds: (Date.now() - started) / 1000,
      }),
    );
  });
}

/** The commit that is tested, where this is a clone. */
export function commit() {
  const { status, stdout } = spawnSync('git', ['rev-parse', 'HEAD'], {
    cwd: root,
    encoding: 'utf8',
  });
  return status === 0 ? stdout.trim() : undefined;
}

export function writeText(file, text) {
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, text);
  console.log(`written: ${file}`);
}
