/** Sums, gathers and failures of ranks over TCP; every rank is in this process. */

import { createHmac } from 'node:crypto';
import net from 'node:net';
import { afterEach, describe, expect, it } from 'vitest';
import { encodeHeader } from '../../lib/collective/frames.js';
import {
  type Collective,
  type CollectiveError,
  joinWorld,
  TreeSum,
  treeSum,
} from '../../lib/index.js';
import { freePort, worldOf } from './world.js';

let worlds: Collective[] = [];
const make = async (...args: Parameters<typeof worldOf>) => {
  worlds = await worldOf(...args);
  return worlds;
};
afterEach(async () => {
  await Promise.all(worlds.map((world) => world.close()));
  worlds = [];
});

/** Numbers whose sum depends on the order. */
const vector = (n: number, seed: number) =>
  Float32Array.from(
    { length: n },
    (_, i) => Math.sin(seed * 977 + i * 1.7) * 10 ** ((i + seed) % 7),
  );
/** The sum of f32 numbers in the order of the tree, written apart from the library's. */
const tree = (values: number[]): number => {
  if (values.length === 1) return values[0] as number;
  const left = 2 ** (Math.ceil(Math.log2(values.length)) - 1);
  return Math.fround(tree(values.slice(0, left)) + tree(values.slice(left)));
};
const outcome = (promise: Promise<unknown>) =>
  promise.then(
    () => 'no error',
    (error: CollectiveError) => `${error.code} ${error.reason} ${error.rank}: ${error.message}`,
  );

describe('treeSum', () => {
  it('adds in the order of the tree, and an aligned part elsewhere', () => {
    for (let n = 1; n <= 17; n++) {
      const parts = Array.from({ length: n }, (_, i) => vector(33, i));
      const expected = Array.from({ length: 33 }, (_, j) => tree(parts.map((p) => p[j] as number)));
      const copies = parts.map((part) => part.slice());
      expect([...treeSum(parts)]).toEqual(expected);
      expect(parts).toEqual(copies);
    }
    for (const [passes, ranks] of [
      [4, 2],
      [8, 2],
      [8, 4],
      [12, 3],
      [6, 3],
      [5, 5],
    ] as const) {
      const parts = Array.from({ length: passes }, (_, i) => vector(9, i));
      const each = passes / ranks;
      const partial = Array.from({ length: ranks }, (_, r) =>
        treeSum(parts.slice(r * each, (r + 1) * each)),
      );
      expect(treeSum(partial), `${passes} on ${ranks}`).toEqual(treeSum(parts));
    }
    const total = new TreeSum<number>((a, b) => Math.fround(a + b));
    for (let i = 0; i < 7; i++) total.add(Math.fround(0.1 * i));
    expect(total.total()).toBe(tree(Array.from({ length: 7 }, (_, i) => Math.fround(0.1 * i))));
  });
});

describe('ranks over TCP', () => {
  it.each([2, 3, 4, 5])('%i ranks get the bits of treeSum, for any length', async (size) => {
    const ranks = await make(size);
    for (const n of [0, 1, 3, 1000, 100_003]) {
      const parts = ranks.map((_, rank) => vector(n, rank));
      const expected = n === 0 ? new Float32Array() : treeSum(parts);
      await Promise.all(ranks.map((world, rank) => world.sum(parts[rank] as Float32Array)));
      for (const part of parts) expect(part).toEqual(expected);
    }
  });

  it('the order of arrival changes no bit', async () => {
    const ranks = await make(4);
    const expected = treeSum(ranks.map((_, rank) => vector(64, rank)));
    for (const late of [0, 1, 2, 3]) {
      const parts = ranks.map((_, rank) => vector(64, rank));
      await Promise.all(
        ranks.map(async (world, rank) => {
          if (rank === late) await new Promise((resolve) => setTimeout(resolve, 20));
          await world.sum(parts[rank] as Float32Array);
        }),
      );
      for (const part of parts) expect(part).toEqual(expected);
    }
  });

  it('gathers, broadcasts and waits; calls of a rank queue', async () => {
    const ranks = await make(3);
    const found = await Promise.all(
      ranks.map((world, rank) =>
        Promise.all([
          world.gather(new Uint8Array(rank * 2).fill(rank)),
          world.broadcast(rank === 2 ? Uint8Array.of(7, 8) : undefined, 2),
          world.barrier(),
        ]),
      ),
    );
    for (const [all, sent] of found) {
      expect(all.map((bytes) => [...bytes])).toEqual([[], [1, 1], [2, 2, 2, 2]]);
      expect([...sent]).toEqual([7, 8]);
    }
  });

  it('names both sides where ranks make different calls, and changes no buffer', async () => {
    const ranks = await make(2);
    const [a, b] = [vector(10, 1), vector(12, 2)];
    const [first, second] = await Promise.all([
      outcome((ranks[0] as Collective).sum(a)),
      outcome((ranks[1] as Collective).sum(b)),
    ]);
    expect(`${first} ${second}`).toMatch(/ERR_COLLECTIVE mismatch/);
    expect(`${first} ${second}`).toMatch(/sum of 10 values.*sum of 12 values|12 values.*10 values/);
    expect(a).toEqual(vector(10, 1));
    expect(b).toEqual(vector(12, 2));
    expect(await outcome((ranks[0] as Collective).barrier())).toBe(first);
  });

  it('names a rank that left, on every other rank', async () => {
    const ranks = await make(3);
    await (ranks[1] as Collective).close();
    const [x, y] = [vector(5, 1), vector(5, 2)];
    const found = await Promise.all([
      outcome((ranks[0] as Collective).sum(x)),
      outcome((ranks[2] as Collective).sum(y)),
    ]);
    for (const text of found) expect(text).toMatch(/^ERR_COLLECTIVE lost 1: .*rank 1 has left/);
    expect(x).toEqual(vector(5, 1));
  });

  it('gives up on a rank that is late, unless it shows that it lives', async () => {
    const ranks = await make(2, { timeoutSeconds: 0.4 });
    // Heartbeats come while rank 1 does something else.
    const late = new Promise((resolve) => setTimeout(resolve, 1200));
    await Promise.all([
      (ranks[0] as Collective).barrier(),
      late.then(() => (ranks[1] as Collective).barrier()),
    ]);
    const port = await freePort();
    const alone = joinWorld({
      rank: 0,
      size: 2,
      address: `127.0.0.1:${port}`,
      timeoutSeconds: 0.3,
    });
    expect(await outcome(alone)).toMatch(
      /^ERR_COLLECTIVE timeout 1: .*rank 1 must join within 0.3 s/,
    );
  });

  it('lets nobody in with another token, size or rank', async () => {
    const address = `127.0.0.1:${await freePort()}`;
    const own = { size: 2, address, timeoutSeconds: 2, token: 'a' };
    const first = joinWorld({ ...own, rank: 0 });
    const strange = await outcome(joinWorld({ ...own, rank: 1, token: 'b' }));
    expect(strange).toMatch(/^ERR_COLLECTIVE refused .*token/);
    const larger = await outcome(joinWorld({ ...own, rank: 1, size: 3 }));
    expect(larger).toMatch(
      /^ERR_COLLECTIVE refused .*number of ranks must be 2 as on rank 0, got 3/,
    );
    worlds = await Promise.all([first, joinWorld({ ...own, rank: 1 })]);
    await Promise.all(worlds.map((world) => world.barrier()));
  });

  it('rejects settings that cannot work', async () => {
    const code = (options: object) => outcome(joinWorld(options as never));
    expect(await code({ size: 2, address: ':7700' })).toMatch(/^ERR_VALUE .*LOWRANK_WORLD_TOKEN/);
    expect(await code({ size: 17, address: '127.0.0.1:1' })).toMatch(
      /^ERR_UNSUPPORTED .*at most 16/,
    );
    expect(await code({ size: 2, rank: 2, address: '127.0.0.1:1' })).toMatch(/^ERR_VALUE .*rank/);
    expect(await code({ size: 2, address: 'nowhere' })).toMatch(/^ERR_VALUE .*HOST:PORT/);
    expect(await code({ size: 2, transport: 'pigeon' })).toMatch(/^ERR_VALUE .*transport/);
  });
});

describe('hostile peers', () => {
  it('a listener survives bytes of any kind, and still lets its ranks in', async () => {
    const port = await freePort();
    const address = `127.0.0.1:${port}`;
    const first = joinWorld({ rank: 0, size: 2, address, timeoutSeconds: 20, token: 't' });
    let seed = 1;
    const random = () => {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      return seed;
    };
    const before = process.memoryUsage().rss;
    for (let i = 0; i < 400; i++) {
      const header = Buffer.from(
        encodeHeader({
          kind: 'hello',
          operation: '',
          sequence: 0,
          total: 0,
          length: random() % 200,
        }),
      );
      if (i % 3 === 0) header[random() % header.length] = random() & 255;
      if (i % 3 === 1) header.writeUInt32LE(random(), 20);
      const body = Buffer.from(createHmac('sha256', String(i)).update('x').digest());
      await new Promise<void>((resolve) => {
        const socket = net.connect(port, '127.0.0.1', () =>
          socket.end(Buffer.concat([header, body, body, body])),
        );
        socket.on('error', () => {});
        socket.on('close', () => resolve());
        socket.resume();
      });
    }
    // A length that no hello has ends the connection before its payload comes.
    const large = encodeHeader({
      kind: 'hello',
      operation: '',
      sequence: 0,
      total: 0,
      length: 2 ** 30,
    });
    const began = performance.now();
    await new Promise<void>((resolve) => {
      const socket = net.connect(port, '127.0.0.1', () => socket.write(large));
      socket.on('end', () => resolve());
      socket.resume();
    });
    expect(performance.now() - began).toBeLessThan(3000);
    expect(process.memoryUsage().rss - before).toBeLessThan(200e6);
    worlds = await Promise.all([
      first,
      joinWorld({ rank: 1, size: 2, address, timeoutSeconds: 20, token: 't' }),
    ]);
    await Promise.all(worlds.map((world) => world.barrier()));
  });
});
