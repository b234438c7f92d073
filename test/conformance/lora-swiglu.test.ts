// Gate, up and silu(gate) ⊙ up in one call: the bits of loraForwardMany and swiglu in turn on the same device, and both
// steps within their bounds of the float64 formulas.
import { describe, expect, it } from 'vitest';
import {
  checkGradients,
  type Device,
  type DType,
  LoraAdapter,
  LoraManySaved,
  type LoraProjection,
  loraBackwardMany,
  loraBackwardSwiglu,
  loraForwardMany,
  loraForwardSwiglu,
  memoryUsage,
  quantize,
  scope,
  setThreads,
  swiglu,
  swigluBackward,
  synchronize,
  Tensor,
} from '../../lib/index.js';
import { INT8_DEVICES } from '../../lib/ops/compute.js';
import { bound, exact, loraForward64, matmul64 } from '../oracle.js';
import { DEVICES, DTYPES, operand, seeded, WEIGHTS, weightOperand } from './operands.js';
import { within, y64 } from './swiglu-bounds.js';

interface Part {
  readonly weight: string;
  /** 0: no adapter. */
  readonly r: number;
  readonly bias?: boolean;
  readonly dropout?: number;
  readonly mask?: boolean;
  readonly int8?: boolean;
  readonly trainA?: boolean;
}
interface Case {
  readonly M: number;
  readonly N: number;
  readonly K: number;
  readonly gate: Part;
  readonly up: Part;
}
const NF4: Part = { weight: 'nf4', r: 0 };
const ADAPTED: Part = { weight: 'nf4', r: 8, bias: true };
const DROPPED: Part = { weight: 'nf4', r: 3, dropout: 0.25, trainA: false };
const CASES: readonly Case[] = [
  { M: 1, N: 300, K: 256, gate: ADAPTED, up: DROPPED },
  { M: 3, N: 17, K: 64, gate: DROPPED, up: ADAPTED },
  { M: 17, N: 65, K: 192, gate: ADAPTED, up: NF4 },
  { M: 70, N: 272, K: 256, gate: NF4, up: { ...ADAPTED, dropout: 0.5, mask: true } },
  { M: 0, N: 20, K: 64, gate: ADAPTED, up: NF4 },
  { M: 5, N: 33, K: 128, gate: { weight: 'int8', r: 4 }, up: { weight: 'int8', r: 0, bias: true } },
  { M: 9, N: 48, K: 63, gate: { weight: 'dense f32', r: 0 }, up: { weight: 'dense f32', r: 5 } },
  { M: 40, N: 31, K: 128, gate: { weight: 'fp4', r: 2 }, up: { weight: 'dense f32', r: 0 } },
  { M: 33, N: 40, K: 256, gate: ADAPTED, up: { ...NF4, int8: true } },
  { M: 20, N: 96, K: 256, gate: { ...ADAPTED, int8: true }, up: { ...NF4, int8: true } },
];

function projectionOf(part: Part, i: number, shape: Case, dtype: DType, device: Device) {
  const { M, N, K } = shape;
  const fill = (j: number, std = 1) => ({ seed: seeded(i + 3, j), device, std });
  const spec = WEIGHTS.find(({ name }) => name === part.weight);
  if (spec === undefined) throw new Error(part.weight);
  const { w, matrix: w64 } = weightOperand(spec, N, K, dtype, fill(1, 0.2));
  const { r, dropout = 0, mask, trainA, int8 } = part;
  const bias = part.bias ? operand(1, N, { ...fill(2), shape: [N] }) : undefined;
  const bits = Float32Array.from({ length: M * K }, (_, j) => (j % 3 === 0 ? 0 : 1));
  const seen = mask ? { dropoutMask: Tensor.from(bits, [M, K], { device }) } : { seed: 11 + i };
  const base: LoraProjection = {
    w,
    ...(int8 ? { compute: 'int8' } : {}),
    ...(bias === undefined ? {} : { bias: bias.tensor }),
    ...(dropout > 0 ? seen : {}),
  };
  const oracle = { w: w64, bias: bias?.matrix };
  if (r === 0) return { projection: base, oracle, factors: undefined };
  const loraA = operand(r, K, { ...fill(3, 0.2), dtype });
  const loraB = operand(N, r, fill(4, 0.5));
  const adapter = new LoraAdapter({
    loraA: loraA.tensor,
    loraB: loraB.tensor,
    loraAlpha: 2 * r,
    dropout,
    ...(trainA === undefined ? {} : { trainA }),
  });
  const factors = { loraA: loraA.matrix, loraB: loraB.matrix, scaling: 2 };
  return { projection: { ...base, adapter }, oracle, factors };
}

const values = async (tensor: Tensor | undefined): Promise<Float32Array> =>
  (tensor as Tensor).read();
const GROUPS = DEVICES.flatMap((device) => DTYPES.map((dtype) => ({ device, dtype })));

describe.each(GROUPS)('$device, $dtype', ({ device, dtype }) => {
  const cases = CASES.filter(
    ({ gate, up }) => INT8_DEVICES.includes(device) || !(gate.int8 || up.int8),
  );
  it.each(cases)('[$M, $N, $K] gate $gate.weight, up $up.weight', async (shape) => {
    const { M, N, K } = shape;
    await scope(async () => {
      const x = operand(M, K, { seed: 1, dtype, device });
      const sides = [shape.gate, shape.up].map((part, i) =>
        projectionOf(part, i, shape, dtype, device),
      );
      const [gate, up] = sides.map(({ projection }) => projection) as [
        LoraProjection,
        LoraProjection,
      ];
      const { y, saved } = loraForwardSwiglu(x.tensor, gate, up);
      expect([y.shape, y.dtype, y.device]).toEqual([[M, N], dtype, device]);
      const apart = loraForwardMany(x.tensor, [gate, up]);
      const [g, u] = apart.ys as [Tensor, Tensor];
      exact('gate', await values(saved.gate), await g.read());
      exact('up', await values(saved.up), await u.read());
      exact('y', await y.read(), await swiglu(g, u).read());

      const plain = loraForwardSwiglu(x.tensor, gate, up, { training: false });
      expect([plain.saved.gate, plain.saved.up]).toEqual([undefined, undefined]);
      const { ys } = loraForwardMany(x.tensor, [gate, up], { training: false });
      const [g0, u0] = ys as [Tensor, Tensor];
      exact('y, nothing kept', await plain.y.read(), await swiglu(g0, u0).read());

      // Without dropout, against the formulas: each product, and the gate of what was rounded.
      for (const [i, { oracle, factors }] of sides.entries()) {
        if ([shape.gate, shape.up][i]?.int8) continue;
        const inputs = { x: x.matrix, ...oracle };
        const expected =
          factors === undefined
            ? matmul64(inputs.x, inputs.w, inputs.bias)
            : loraForward64({ ...inputs, ...factors });
        bound(i === 0 ? 'gate' : 'up', await values(ys[i]), expected, { dtype });
      }
      const [gs, us, ps] = await Promise.all([g0.read(), u0.read(), plain.y.read()]);
      for (let i = 0; i < ps.length; i++) {
        const [gi, ui] = [gs[i] as number, us[i] as number];
        within(`y(${gi}, ${ui})`, dtype, ps[i] as number, y64(gi, ui), Math.abs(gi * ui));
      }

      const dy = operand(M, N, { seed: 50, dtype, device }).tensor;
      const both = swigluBackward(dy, g, u);
      const expected = loraBackwardMany([both.dGate, both.dUp], apart.saved);
      const got = loraBackwardSwiglu(dy, saved);
      exact('dx', await values(got.dx), await values(expected.dx));
      for (const [i, gradients] of expected.gradients.entries()) {
        const mine = got.gradients[i as 0 | 1];
        expect(Object.keys(mine)).toEqual(Object.keys(gradients));
        for (const [name, tensor] of Object.entries(gradients)) {
          exact(`${i} ${name}`, await values(mine[name as 'dLoraA']), await tensor.read());
        }
      }
    });
  });

  it('keeps what was asked for, and frees the rest', async () => {
    await scope(async () => {
      const shape: Case = { M: 5, N: 20, K: 64, gate: ADAPTED, up: NF4 };
      const { M, N, K } = shape;
      const x = operand(M, K, { seed: 1, dtype, device }).tensor;
      const dy = operand(M, N, { seed: 2, dtype, device }).tensor;
      const { projection: gate } = projectionOf(ADAPTED, 0, shape, dtype, device);
      const { projection: up } = projectionOf(NF4, 1, shape, dtype, device);
      await synchronize(device);
      const before = memoryUsage(device).liveBytes;
      const live = async (): Promise<number> => {
        await synchronize(device);
        return memoryUsage(device).liveBytes - before;
      };
      const bytes = M * N * (dtype === 'f32' ? 4 : 2);
      const plain = loraForwardSwiglu(x, gate, up, { training: false });
      expect(await live()).toBe(bytes);
      expect(() => loraBackwardSwiglu(dy, plain.saved)).toThrow(/saved must be of a training step/);
      plain.y.dispose();
      const { y, saved } = loraForwardSwiglu(x, gate, up);
      expect(saved.projections).toBeInstanceOf(LoraManySaved);
      y.dispose();
      const first = loraBackwardSwiglu(dy, saved, { needs: ['dLoraB'], keep: true });
      expect(first.dx).toBeUndefined();
      expect(first.gradients.map((one) => Object.keys(one))).toEqual([['dLoraB'], []]);
      const target = first.gradients[0].dLoraB as Tensor;
      const once = await target.read();
      const again = loraBackwardSwiglu(dy, saved, {
        needs: ['dLoraB'],
        accumulateInto: [{ dLoraB: target }],
      });
      expect(again.gradients[0].dLoraB).toBe(target);
      const twice = await target.read();
      for (const [i, value] of twice.entries()) expect(value).toBeCloseTo(2 * (once[i] ?? 0), 4);
      target.dispose();
      expect([saved.disposed, await live()]).toEqual([true, 0]);
      using unused = loraForwardSwiglu(x, gate, up).saved;
      unused.dispose();
    });
  });

  it('a weight with zero-points', async () => {
    await scope(async () => {
      const [M, N, K] = [6, 24, 128];
      const x = operand(M, K, { seed: 1, dtype, device }).tensor;
      const dy = operand(M, N, { seed: 2, dtype, device }).tensor;
      const weight = (seed: number) =>
        quantize(operand(N, K, { seed, device }).tensor, { format: 'int4', zeroPoints: true });
      const gate: LoraProjection = { w: weight(3) };
      const up: LoraProjection = {
        w: quantize(operand(N, K, { seed: 4, device }).tensor, { format: 'nf4' }),
      };
      for (const training of [true, false]) {
        const { ys, saved } = loraForwardMany(x, [gate, up], { training });
        const [g, u] = ys as [Tensor, Tensor];
        const mine = loraForwardSwiglu(x, gate, up, { training });
        exact('y', await mine.y.read(), await swiglu(g, u).read());
        expect(mine.saved.gate?.disposed).toBe(training ? false : undefined);
        if (!training) continue;
        const { dGate, dUp } = swigluBackward(dy, g, u);
        const expected = loraBackwardMany([dGate, dUp], saved).dx;
        exact('dx', await values(loraBackwardSwiglu(dy, mine.saved).dx), await values(expected));
      }
    });
  });
});

// More rows than one chunk has, columns of several tasks and a rest.
it('the same bits on any number of threads, over several chunks of rows', async () => {
  await scope(async () => {
    const shape: Case = { M: 1100, N: 520, K: 96, gate: ADAPTED, up: DROPPED };
    for (const [dtype, other] of [
      ['f32', 'nf4'],
      ['bf16', 'nf4'],
      ['bf16', 'dense f32'],
    ] as const) {
      const x = operand(shape.M, shape.K, { seed: 1, dtype, device: 'cpu' }).tensor;
      const { projection: gate } = projectionOf(ADAPTED, 0, shape, dtype, 'cpu');
      const part = { ...DROPPED, weight: other };
      const { projection: up } = projectionOf(part, 1, shape, dtype, 'cpu');
      const [g, u] = loraForwardMany(x, [gate, up], { training: false }).ys as [Tensor, Tensor];
      const expected = await swiglu(g, u).read();
      for (const threads of [1, 2, 5]) {
        setThreads(threads);
        const { y } = loraForwardSwiglu(x, gate, up, { training: false });
        exact(`${threads} threads, ${dtype}, ${other}`, await y.read(), expected);
      }
    }
  });
});

it('the gradients are those that differences give', () => {
  scope(() => {
    const [M, N, K, r] = [4, 6, 8, 2];
    const at = (rows: number, cols: number, seed: number, std = 0.5): Tensor =>
      operand(rows, cols, { seed, device: 'reference', std }).tensor;
    const [wGate, wUp] = [at(N, K, 1), at(N, K, 2)];
    const run = (given: Record<string, Tensor>) => {
      const side = (w: Tensor, name: string): LoraProjection => ({
        w,
        adapter: new LoraAdapter({
          loraA: given[`${name}A`] as Tensor,
          loraB: given[`${name}B`] as Tensor,
          loraAlpha: 2 * r,
          dropout: 0.25,
        }),
        seed: 7,
      });
      return loraForwardSwiglu(given.x as Tensor, side(wGate, 'gate'), side(wUp, 'up'));
    };
    const reports = checkGradients({
      inputs: {
        x: at(M, K, 3),
        gateA: at(r, K, 4),
        gateB: at(N, r, 5),
        upA: at(r, K, 6),
        upB: at(N, r, 7),
      },
      forward: (inputs) => run(inputs).y,
      backward: (dy, inputs) => {
        const { dx, gradients } = loraBackwardSwiglu(dy, run(inputs).saved);
        const [gate, up] = gradients;
        return {
          x: dx as Tensor,
          gateA: gate.dLoraA as Tensor,
          gateB: gate.dLoraB as Tensor,
          upA: up.dLoraA as Tensor,
          upB: up.dLoraB as Tensor,
        };
      },
    });
    expect(reports.map(({ name, passed }) => [name, passed])).toEqual(
      ['x', 'gateA', 'gateB', 'upA', 'upB'].map((name) => [name, true]),
    );
  });
});
