/**
 * What a call costs beside its arithmetic: ns to enqueue an op, µs for a `read()`.
 * Median over many rounds of one loraForward of a tiny shape; prints a table, and JSON as its last
 * line.
 *
 *   npm run bench:overhead -- [DEVICE [ROUNDS]]
 */
import { pathToFileURL } from 'node:url';
import {
  type Device,
  LoraAdapter,
  loraForward,
  matmul,
  scope,
  synchronize,
  Tensor,
} from '../lib/index.js';

export interface CallOverhead {
  /** ns of JavaScript time per loraForward (y, h and saved state made), op not awaited. */
  enqueueNs: number;
  /** The same inside scope(). */
  enqueueInScopeNs: number;
  /** ns per matmul. */
  matmulNs: number;
  /** ns per dispose(). */
  disposeNs: number;
  /** µs from read() to its values, nothing queued. */
  readUs: number;
  /** µs per readSync(). */
  readSyncUs: number;
  /** µs of a bare `await` of a resolved promise over one turn of the event loop, for comparison. */
  turnUs: number;
}

function median(values: number[]): number {
  values.sort((a, b) => a - b);
  return values[values.length >> 1] ?? 0;
}

/** Measures on `device`. */
export async function measureCallOverhead(device: Device, rounds = 2000): Promise<CallOverhead> {
  const [M, K, N, r] = [1, 16, 16, 2];
  const x = Tensor.randn([M, K], { seed: 1, device });
  const w = Tensor.randn([N, K], { seed: 2, device });
  const adapter = LoraAdapter.init({
    inFeatures: K,
    outFeatures: N,
    r,
    loraAlpha: 4,
    seed: 3,
    device,
  });
  const CALLS = 64;
  const samples: Record<keyof CallOverhead, number[]> = {
    enqueueNs: [],
    enqueueInScopeNs: [],
    matmulNs: [],
    disposeNs: [],
    readUs: [],
    readSyncUs: [],
    turnUs: [],
  };
  for (let round = 0; round < rounds; round++) {
    const made = [];
    let start = performance.now();
    for (let i = 0; i < CALLS; i++) made.push(loraForward(x, w, adapter));
    samples.enqueueNs.push(((performance.now() - start) * 1e6) / CALLS);
    await synchronize(device);

    start = performance.now();
    for (const { y, saved } of made) {
      y.dispose();
      saved.dispose();
    }
    // y, h and the hold on x: three handles a call.
    samples.disposeNs.push(((performance.now() - start) * 1e6) / CALLS / 3);

    scope(() => {
      start = performance.now();
      for (let i = 0; i < CALLS; i++) loraForward(x, w, adapter);
      samples.enqueueInScopeNs.push(((performance.now() - start) * 1e6) / CALLS);
    });
    await synchronize(device);

    scope(() => {
      start = performance.now();
      for (let i = 0; i < CALLS; i++) matmul(x, w);
      samples.matmulNs.push(((performance.now() - start) * 1e6) / CALLS);
    });
    await synchronize(device);

    start = performance.now();
    for (let i = 0; i < 16; i++) await x.read();
    samples.readUs.push(((performance.now() - start) * 1e3) / 16);
    start = performance.now();
    for (let i = 0; i < 16; i++) x.readSync();
    samples.readSyncUs.push(((performance.now() - start) * 1e3) / 16);
    start = performance.now();
    for (let i = 0; i < 16; i++) await new Promise((resolve) => setImmediate(resolve));
    samples.turnUs.push(((performance.now() - start) * 1e3) / 16);
    // The first half is for the compiler.
    if (round === rounds >> 1) for (const values of Object.values(samples)) values.length = 0;
  }
  for (const value of [x, w, adapter]) value.dispose();
  const names = Object.keys(samples) as Array<keyof CallOverhead>;
  return Object.fromEntries(
    names.map((name) => [name, median(samples[name])]),
  ) as unknown as CallOverhead;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const [device = 'cpu', rounds = '2000'] = process.argv.slice(2);
  const result = await measureCallOverhead(device as Device, Number(rounds));
  for (const [name, value] of Object.entries(result))
    console.log(name.padEnd(18), value.toFixed(2));
  console.log(JSON.stringify(result));
}
