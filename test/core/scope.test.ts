// Scopes: what is made inside and not returned is freed, in synchronous and async bodies.

import { setTimeout } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import {
  LoraAdapter,
  loraForward,
  memoryUsage,
  quantize,
  scope,
  synchronize,
  Tensor,
} from '../../lib/index.js';

const live = async (): Promise<[number, number]> => {
  await synchronize('cpu');
  const { liveBytes, liveTensors } = memoryUsage('cpu');
  return [liveBytes, liveTensors];
};
const zeros = (): Tensor => Tensor.zeros([8, 8], { device: 'cpu' });

describe('scope', () => {
  it('frees what is not returned', async () => {
    const before = await live();
    let inner: Tensor | undefined;
    const kept = scope(() => {
      inner = zeros();
      zeros();
      return zeros();
    });
    expect([inner?.disposed, kept.disposed]).toEqual([true, false]);
    kept.dispose();
    expect(await live()).toEqual(before);
  });

  it('keeps what is returned inside arrays, maps and objects', () => {
    const result = scope(() => ({
      list: [zeros(), zeros()],
      map: new Map([['a', zeros()]]),
      nested: { deep: [{ t: zeros() }] },
      number: 3,
    }));
    const all = [
      ...result.list,
      result.map.get('a') as Tensor,
      (result.nested.deep[0] as { t: Tensor }).t,
    ];
    expect(all.map((t) => t.disposed)).toEqual([false, false, false, false]);
    for (const t of all) t.dispose();
  });

  it('frees weights, adapters and saved states too, and keeps those returned', async () => {
    const before = await live();
    const make = () => {
      const w = quantize(zeros(), { format: 'nf4' });
      const adapter = LoraAdapter.init({
        inFeatures: 8,
        outFeatures: 8,
        r: 2,
        loraAlpha: 2,
        seed: 1,
        device: 'cpu',
      });
      return { w, adapter, ...loraForward(zeros(), w, adapter) };
    };
    let seen: ReturnType<typeof make> | undefined;
    scope(() => {
      seen = make();
    });
    expect([seen?.w.disposed, seen?.adapter.disposed, seen?.saved.disposed]).toEqual([
      true,
      true,
      true,
    ]);
    expect(await live()).toEqual(before);
    const kept = scope(make);
    expect([kept.w.disposed, kept.adapter.disposed, kept.saved.disposed]).toEqual([
      false,
      false,
      false,
    ]);
    expect(kept.adapter.loraA.disposed).toBe(false);
    expect(kept.saved.h?.disposed).toBe(false);
    for (const part of [kept.w, kept.adapter, kept.saved, kept.y]) part.dispose();
    expect(await live()).toEqual(before);
  });

  it('what is returned belongs to the scope around it', () => {
    let middle: Tensor | undefined;
    scope(() => {
      middle = scope(() => zeros());
      expect(middle.disposed).toBe(false);
    });
    expect(middle?.disposed).toBe(true);
  });

  it('a failing body frees everything', async () => {
    const before = await live();
    expect(() =>
      scope(() => {
        zeros();
        throw new Error('stop');
      }),
    ).toThrow('stop');
    await expect(
      scope(async () => {
        zeros();
        await setTimeout(1);
        zeros();
        throw new Error('later');
      }),
    ).rejects.toThrow('later');
    expect(await live()).toEqual(before);
  });

  it('async bodies run at the same time without mixing what they own', async () => {
    const before = await live();
    const outside: Tensor[] = [];
    const run = (delay: number): Promise<Tensor> =>
      scope(async () => {
        const first = zeros();
        await setTimeout(delay);
        const second = zeros();
        await setTimeout(delay);
        expect([first.disposed, second.disposed]).toEqual([false, false]);
        outside.push(first);
        return second;
      });
    const kept = await Promise.all([run(3), run(1), run(2)]);
    expect(kept.every((t) => !t.disposed)).toBe(true);
    expect(outside.every((t) => t.disposed)).toBe(true);
    for (const t of kept) t.dispose();
    expect(await live()).toEqual(before);
  });

  it('leaves alone what was made outside, and what was already freed', () => {
    const outer = zeros();
    scope(() => {
      zeros().dispose();
      return outer.size;
    });
    expect(outer.disposed).toBe(false);
    outer.dispose();
  });
});
