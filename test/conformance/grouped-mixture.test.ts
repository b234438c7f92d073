// GroupedLora with several adapters a row: what changes no bit, and the gradients of the gates.
import { describe, expect, it } from 'vitest';
import { type GroupedRow, LoraAdapter, scope, Tensor } from '../../lib/index.js';
import { exact } from '../oracle.js';
import { groupedCase, nameOf } from './grouped-case.js';
import { DEVICES, operand, WEIGHTS } from './operands.js';

const PARTS = ['dLoraA', 'dLoraB', 'dLoraBias'] as const;

describe.each(DEVICES)('%s', (device) => {
  const spec = WEIGHTS.find(({ name }) => name === 'nf4') as (typeof WEIGHTS)[number];

  it('a mixture is a set: places, empty ones and lists of one change no bit', async () => {
    await scope(async () => {
      const shape = { M: 35, N: 20, K: 64, ranks: [4, 8, 3], loraBias: true, bias: true };
      const c = groupedCase({ ...shape, slots: 2, rowScale: true }, spec, 'f32', device, 6);
      const gates = await (c.options.rowScale as Tensor).read();
      const outputs = async (rows: readonly GroupedRow[], values: readonly number[]) => {
        const dims = Array.isArray(rows[0]) ? [35, (rows[0] as string[]).length] : [35];
        const rowScale = Tensor.from(values, dims, { device });
        const { y, saved } = c.group.forward(c.x, c.w, rows, { ...c.options, rowScale });
        const { dx, dRowScale, adapters } = c.group.backward(c.dy, saved);
        const parts = [...adapters.keys()]
          .sort()
          .flatMap((name) => PARTS.flatMap((part) => adapters.get(name)?.[part] ?? []));
        const all = [y, dx as Tensor, ...parts].map((tensor) => tensor.readSync());
        return { all, dRowScale: (dRowScale as Tensor).readSync() };
      };
      const same = (what: string, mine: Float32Array[], want: Float32Array[]): void => {
        expect(mine.length).toBe(want.length);
        mine.forEach((values, i) => {
          exact(`${what} ${i}`, values, want[i] as Float32Array);
        });
      };
      const lists = c.rows as (string | null)[][];
      const pair = await outputs(lists, [...gates]);
      // The other way round, with an empty place between.
      const turned = await outputs(
        lists.map(([a, b]) => [b as string, null, a as string]),
        lists.flatMap((_, m) => [gates[2 * m + 1] as number, 9, gates[2 * m] as number]),
      );
      same('turned', turned.all, pair.all);
      lists.forEach((_, m) => {
        const [a, b] = pair.dRowScale.subarray(2 * m, 2 * m + 2);
        expect([...turned.dRowScale.subarray(3 * m, 3 * m + 3)]).toEqual([b, 0, a]);
      });
      const firsts = lists.map(([a]) => a as string);
      const weights = lists.map((_, m) => gates[2 * m] as number);
      const single = await outputs(firsts, weights);
      const listed = await outputs(
        firsts.map((name) => [name]),
        weights,
      );
      same('lists of one', listed.all, single.all);
      exact('their gates', listed.dRowScale, single.dRowScale);
      const padded = await outputs(
        firsts.map((name) => [null, name]),
        weights.flatMap((weight) => [Number.NaN, weight]),
      );
      same('padded', padded.all, single.all);
    });
  });

  it('gates have a gradient of frozen adapters too, added to what is there', async () => {
    await scope(async () => {
      const shape = { M: 6, N: 20, K: 64, ranks: [4, 8], slots: 2, rowScale: true, loraBias: true };
      const c = groupedCase({ ...shape, nullEvery: 5 }, spec, 'f32', device, 4);
      const all = c.group.backward(c.dy, c.group.forward(c.x, c.w, c.rows, c.options).saved);
      for (const [e, { loraA, loraB, loraAlpha, rslora, loraBias }] of c.adapters.entries()) {
        const frozen = { trainA: false, trainB: false, ...(loraBias ? { loraBias } : {}) };
        c.group.update(nameOf(e), new LoraAdapter({ loraA, loraB, loraAlpha, rslora, ...frozen }));
      }
      const { saved } = c.group.forward(c.x, c.w, c.rows, c.options);
      expect(saved.x).toBeUndefined();
      const only = c.group.backward(c.dy, saved, { needs: ['dRowScale'], keep: true });
      expect([Object.keys(only).sort(), only.adapters.size]).toEqual([
        ['adapters', 'dRowScale'],
        0,
      ]);
      const gates = await (only.dRowScale as Tensor).read();
      exact('frozen', gates, await (all.dRowScale as Tensor).read());
      const start = operand(6, 2, { seed: 8, dtype: 'f32', device });
      const sum = c.group.backward(c.dy, saved, {
        needs: ['dRowScale'],
        accumulateInto: { dRowScale: start.tensor },
      });
      expect(sum.dRowScale).toBe(start.tensor);
      const held = start.matrix.data;
      (await start.tensor.read()).forEach((v, i) => {
        if (c.inputs.adapterOf[i] === -1) expect(v, 'an empty slot').toBe(held[i]);
        else expect(v).toBeCloseTo((held[i] as number) + (gates[i] as number), 4);
      });
    });
  });
});
