// The addon itself, without the checks in front of it: it may refuse, and never crash. In processes of their own.
import { spawnSync } from 'node:child_process';
import { expect, it } from 'vitest';
import { bindingPath } from '../../lib/core/binding.js';

const head = `
const { parentPort, Worker, isMainThread, workerData } = require('node:worker_threads');
const raw = require(${JSON.stringify(bindingPath())});
const z = (shape) => raw.createTensor('cpu', 'f32', shape, null);
const outcome = (call) => { try { call(); return 'accepted'; } catch (error) { return error.code; } };
const say = (value) => console.log(JSON.stringify(value));
`;

/** What a program said; fails where it was ended by a signal. */
function run(body: string): unknown {
  const { status, signal, stdout, stderr } = spawnSync(process.execPath, ['-e', head + body], {
    encoding: 'utf8',
    timeout: 50_000,
  });
  if (status !== 0) throw new Error(`ended with ${signal ?? status}: ${stderr.slice(-800)}`);
  return JSON.parse(stdout.trim().split('\n').at(-1) ?? '');
}

it('takes the numbers of a batch before a getter of its list can free them', () => {
  const outcome = run(`
    const n = 200;
    const buffer = new ArrayBuffer(2 * n * 8, { maxByteLength: 1 << 24 });
    const list = [];
    for (let i = 0; i < n; i++) list.push(z([1, 8]), z([8, 1]), null);
    list.push(new Float64Array(buffer));
    Object.defineProperty(list, 0, { get() { buffer.resize(0); return z([1, 8]); } });
    const rows = Int32Array.from({ length: n }, (_, i) => i);
    say(outcome(() => raw.groupedForward(z([n, 8]), z([8, 8]), null, list, rows, 1, null, 1, 0, null, 'exact')));
  `);
  expect(outcome).toBe('accepted');
});

it('reads the rows of a batch once, though another thread writes them', () => {
  const outcome = run(`
    const M = 1 << 14;
    const rows = new Int32Array(new SharedArrayBuffer(4 * M));
    const worker = new Worker(
      'const a = require("node:worker_threads").workerData;' +
        'for (;;) { a[a.length - 1] = 0; a[a.length - 1] = 0x7fff0000; }',
      { eval: true, workerData: rows },
    );
    worker.once('online', () => {
      const [x, w, a, b] = [z([M, 4]), z([4, 4]), z([1, 4]), z([4, 1])];
      const seen = new Set();
      const end = Date.now() + 3000;
      while (Date.now() < end) {
        seen.add(outcome(() => {
          const list = [a, b, null, a, b, null, new Float64Array(4).fill(0.5)];
          for (const handle of raw.groupedForward(x, w, null, list, rows, 1, null, 1, 0, null, 'exact')) raw.dispose(handle);
          raw.flushSync('cpu');
        }));
      }
      say([...seen].filter((code) => code !== 'accepted' && code !== 'ERR_VALUE'));
      process.exit(0);
    });
  `);
  expect(outcome).toEqual([]);
});

it('reads into memory of its own, and refuses a buffer of the caller', () => {
  const outcome = run(`
    const x = z([2048, 64]);
    const buffer = new ArrayBuffer(4 * 2048 * 64, { maxByteLength: 4 * 2048 * 64 });
    const refused = outcome(() => raw.read(x, null, new Float32Array(buffer), () => {}));
    buffer.resize(0);
    raw.read(x, null, 'f32', (code, message, result) => say([refused, code, result.byteLength]));
  `);
  expect(outcome).toEqual(['ERR_TYPE', null, 4 * 2048 * 64]);
});

it('counts the projections of a list once, though a getter makes it longer', () => {
  const outcome = run(`
    const x = z([2, 4]);
    const part = [z([4, 4]), null, null, null, null, 0, 0, 0, 0, null, 'exact'];
    const list = [part];
    Object.defineProperty(list, 0, { get() { for (let i = 0; i < 64; i++) list.push(part); return part; } });
    say([
      outcome(() => raw.loraForwardMany(x, list)),
      outcome(() => raw.loraForwardMany(x, new Array(2 ** 32 - 1))),
    ]);
  `);
  expect(outcome).toEqual(['accepted', 'ERR_VALUE']);
});

it.each([
  [
    'a buffer that can be detached',
    "raw.wrapTensor('cpu', 'f32', [4], new Float32Array(4))",
    'ERR_TYPE',
  ],
  [
    'a shape of 2^32 - 1 dimensions',
    "raw.createTensor('cpu', 'f32', new Array(2 ** 32 - 1), null)",
    'ERR_SHAPE',
  ],
  [
    'a blocksize beyond 64 bits',
    "raw.quantize(z([4, 64]), 'nf4', 1e300, false, false)",
    'ERR_FORMAT',
  ],
  ['a blocksize that is NaN', "raw.quantize(z([4, 64]), 'nf4', NaN, false, false)", 'ERR_FORMAT'],
  ['rows beyond 64 bits', "raw.takeRows(z([4, 64]), 'f32', 0, 1e300)", 'ERR_SHAPE'],
  ['parts that are none', "raw.weightFromParts('cpu', 'nf4', 1, 64, 64, 256, 3)", 'ERR_TYPE'],
  ['a callback that is none', "raw.read(z([4]), null, 'f32', 3)", 'ERR_TYPE'],
  ['elements that are none', "raw.read(z([4]), null, 'f64', () => {})", 'ERR_VALUE'],
])('refuses %s', (_, call, code) => {
  expect(run(`say(outcome(() => ${call}));`)).toBe(code);
});
