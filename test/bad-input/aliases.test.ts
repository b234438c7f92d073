// Outputs that lie over an operand, or over one another, in memory that two tensors wrap.
import { describe, expect, it } from 'vitest';
import {
  type Device,
  GroupedLora,
  LoraAdapter,
  loraBackward,
  loraBackwardMany,
  loraExpandBackward,
  loraForward,
  loraForwardMany,
  loraShrinkBackward,
  putRows,
  scope,
  synchronize,
  Tensor,
  weightGrad,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';

const [M, N, K, r] = [5, 6, 8, 2];

type Tensors = Readonly<Record<string, Tensor>>;

/** A call that writes to tensors of the caller's. */
interface InPlaceOp {
  readonly op: string;
  readonly operands: Readonly<Record<string, readonly number[]>>;
  readonly targets: Readonly<Record<string, readonly number[]>>;
  readonly call: (t: Tensors) => unknown;
}

const only = (t: Tensors, names: readonly string[]): Record<string, Tensor> =>
  Object.fromEntries(names.map((name) => [name, t[name] as Tensor]));

const adapterOf = ({ loraA, loraB }: Tensors) =>
  new LoraAdapter({ loraA: loraA as Tensor, loraB: loraB as Tensor, loraAlpha: 2 });

const loraTargets = { dx: [M, K], dLoraA: [r, K], dLoraB: [N, r], dBias: [N] };

const OPS: readonly InPlaceOp[] = [
  {
    op: 'putRows',
    operands: { source: [3, K] },
    targets: { y: [M, K] },
    call: ({ y, source }) => putRows(y as Tensor, source as Tensor, 1),
  },
  {
    op: 'weightGrad',
    operands: { dy: [M, N], x: [M, K] },
    targets: { dW: [N, K] },
    call: ({ dy, x, dW }) =>
      weightGrad(dy as Tensor, x as Tensor, { accumulateInto: dW as Tensor }),
  },
  {
    op: 'loraExpandBackward',
    operands: { dy: [M, N], h: [M, r], loraB: [N, r] },
    targets: { dh: [M, r], dLoraB: [N, r], dBias: [N] },
    call: (t) =>
      loraExpandBackward(t.dy as Tensor, t.h as Tensor, t.loraB as Tensor, {
        needs: ['dh', 'dLoraB', 'dBias'],
        accumulateInto: only(t, ['dh', 'dLoraB', 'dBias']),
      }),
  },
  {
    op: 'loraShrinkBackward',
    operands: { dy: [M, N], w: [N, K], dh: [M, r], loraA: [r, K], x: [M, K] },
    targets: { dx: [M, K], dLoraA: [r, K] },
    call: (t) =>
      loraShrinkBackward(t.dy as Tensor, t.w as Tensor, t.dh as Tensor, t.loraA as Tensor, {
        x: t.x as Tensor,
        needs: ['dx', 'dLoraA'],
        accumulateInto: only(t, ['dx', 'dLoraA']),
      }),
  },
  {
    op: 'loraBackward',
    operands: { dy: [M, N], x: [M, K], w: [N, K], loraA: [r, K], loraB: [N, r] },
    targets: loraTargets,
    call: (t) => {
      const { saved } = loraForward(t.x as Tensor, t.w as Tensor, adapterOf(t));
      return loraBackward(t.dy as Tensor, saved, {
        needs: ['dx', 'dLoraA', 'dLoraB', 'dBias'],
        accumulateInto: only(t, Object.keys(loraTargets)),
      });
    },
  },
  {
    op: 'GroupedLora.backward',
    operands: { dy: [M, N], x: [M, K], w: [N, K], loraA: [r, K], loraB: [N, r] },
    targets: loraTargets,
    call: (t) => {
      const group = new GroupedLora({
        inFeatures: K,
        outFeatures: N,
        device: (t.x as Tensor).device,
      });
      group.add('a', adapterOf(t));
      const rows = ['a', null, 'a', 'a', null];
      const { saved } = group.forward(t.x as Tensor, t.w as Tensor, rows);
      return group.backward(t.dy as Tensor, saved, {
        needs: ['dx', 'dBias', 'adapters'],
        accumulateInto: {
          ...only(t, ['dx', 'dBias']),
          adapters: new Map([['a', only(t, ['dLoraA', 'dLoraB'])]]),
        },
      });
    },
  },
];

const sizeOf = (shape: readonly number[]): number => shape.reduce((size, dim) => size * dim, 1);

/** Every tensor of an op in memory of its own, one behind the other, but for `over`, which begins in the last element of `under`. */
function wrapAll(
  { operands, targets }: InPlaceOp,
  device: Device,
  over?: readonly [name: string, under: string],
): { tensors: Tensors; bytes: () => string } {
  const shapes = Object.entries({ ...operands, ...targets });
  const total = shapes.reduce((sum, [, shape]) => sum + sizeOf(shape), 0);
  const longest = Math.max(...shapes.map(([, shape]) => sizeOf(shape)));
  const memory = new SharedArrayBuffer(4 * (total + longest));
  const values = new Float32Array(memory);
  values.forEach((_, i) => {
    values[i] = Math.sin(i + 1);
  });
  const begin = new Map<string, number>();
  let at = 0;
  for (const [name, shape] of shapes) {
    begin.set(name, at);
    at += sizeOf(shape);
  }
  if (over !== undefined) {
    const [name, under] = over;
    const size = sizeOf((operands[under] ?? targets[under]) as readonly number[]);
    begin.set(name, (begin.get(under) as number) + size - 1);
  }
  const tensors = Object.fromEntries(
    shapes.map(([name, shape]) => {
      const part = new Float32Array(memory, 4 * (begin.get(name) as number), sizeOf(shape));
      return [name, Tensor.wrap(part, shape, { device })];
    }),
  );
  return { tensors, bytes: () => Buffer.from(values.slice().buffer).toString('base64') };
}

describe.each(DEVICES)('overlapping wraps on %s', (device) => {
  it.each(OPS)('$op', async (each) => {
    const names = Object.keys(each.targets);
    const pairs = names.flatMap((target, i) =>
      [...Object.keys(each.operands), ...names.slice(0, i)].map(
        (other) => [target, other] as const,
      ),
    );
    for (const pair of pairs) {
      await scope(async () => {
        const { tensors, bytes } = wrapAll(each, device, pair);
        const before = bytes();
        expect(() => each.call(tensors), pair.join(' over ')).toThrow(
          expect.objectContaining({ code: 'ERR_ALIAS' }),
        );
        await synchronize(device);
        expect(bytes() === before, `${pair.join(' over ')} changed`).toBe(true);
      });
    }
    // Neighbours do not overlap.
    await scope(async () => {
      const { tensors, bytes } = wrapAll(each, device);
      const before = bytes();
      each.call(tensors);
      await synchronize(device);
      expect(bytes()).not.toBe(before);
    });
  });

  it('one tensor for the gradients of two projections is given their sum', async () => {
    await scope(async () => {
      const draw = (shape: number[], seed: number) => Tensor.randn(shape, { seed, device });
      const [x, w, dy] = [draw([M, K], 1), draw([N, K], 2), draw([M, N], 3)];
      const tied = [4, 6].map((seed) =>
        adapterOf({ loraA: draw([r, K], seed), loraB: draw([N, r], seed + 1) }),
      );
      const { saved } = loraForwardMany(
        x,
        tied.map((adapter) => ({ w, adapter })),
      );
      const sum = Tensor.zeros([r, K], { device });
      loraBackwardMany([dy, dy], saved, {
        needs: ['dLoraA'],
        accumulateInto: [{ dLoraA: sum }, { dLoraA: sum }],
      });
      // Added to in turn, with the bits of two calls.
      const expected = Tensor.zeros([r, K], { device });
      for (const adapter of tied) {
        loraBackward(dy, loraForward(x, w, adapter).saved, {
          needs: ['dLoraA'],
          accumulateInto: { dLoraA: expected },
        });
      }
      expect(await sum.read()).toEqual(await expected.read());
    });
  });
});
