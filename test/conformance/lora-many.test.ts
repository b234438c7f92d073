// Several projections over one x: the bits of the single ops, which have an oracle of their own, and dx
// within c · u · P of the float64 sum.
import { describe, expect, it } from 'vitest';
import {
  type ComputePrecision,
  type Device,
  type DType,
  LoraAdapter,
  type LoraGradient,
  type LoraProjection,
  loraBackward,
  loraBackwardMany,
  loraForward,
  loraForwardMany,
  matmul,
  matmulInputGrad,
  memoryUsage,
  quantize,
  scope,
  synchronize,
  type Tensor,
} from '../../lib/index.js';
import { INT8_DEVICES } from '../../lib/ops/compute.js';
import { type Bounded, bound, exact, matrix } from '../oracle.js';
import { DEVICES, DTYPES, operand, seeded, WEIGHTS, weightOperand } from './operands.js';

interface Part {
  readonly weight: string;
  /** An int8 weight as LLM.int8 has it. */
  readonly rowwise?: boolean;
  readonly N: number;
  /** 0: no adapter. */
  readonly r: number;
  readonly bias?: boolean;
  readonly dropout?: number;
  readonly compute?: ComputePrecision;
  readonly trainA?: boolean;
}
const QKV: readonly Part[] = [
  { weight: 'nf4', N: 64, r: 8, bias: true },
  { weight: 'nf4', N: 17, r: 0, bias: true },
  { weight: 'nf4', N: 33, r: 3, dropout: 0.25 },
];
const MIXED: readonly Part[] = [
  { weight: 'int8 with double quantisation', N: 20, r: 4 },
  { weight: 'nf4 with double quantisation', N: 40, r: 4, dropout: 0.5, trainA: false },
  { weight: 'fp4', N: 65, r: 16 },
  { weight: 'dense f32', N: 10, r: 0 },
  { weight: 'dense f32', N: 31, r: 5, bias: true },
];
const ROWS: readonly Part[] = [
  { weight: 'int8', rowwise: true, N: 48, r: 4, bias: true, compute: 'int8' },
  { weight: 'int8', rowwise: true, N: 33, r: 0, compute: 'int8' },
  { weight: 'int8', rowwise: true, N: 20, r: 2, dropout: 0.25, compute: 'int8' },
  { weight: 'nf4', N: 20, r: 2 },
];
const INT8: readonly Part[] = [
  { weight: 'nf4', N: 48, r: 4, compute: 'int8' },
  { weight: 'nf4', N: 33, r: 0, compute: 'int8' },
  { weight: 'nf4', N: 20, r: 2 },
];
// K on both sides of the least that sums in lanes; M from one pass of dots to several panels.
const CASES: readonly { M: number; K: number; parts: readonly Part[] }[] = [
  { M: 1, K: 256, parts: QKV },
  { M: 3, K: 64, parts: QKV },
  { M: 17, K: 192, parts: QKV },
  { M: 70, K: 256, parts: QKV },
  { M: 0, K: 64, parts: QKV },
  { M: 5, K: 128, parts: MIXED },
  { M: 130, K: 63, parts: MIXED },
  { M: 9, K: 256, parts: [QKV[0] as Part] },
  { M: 6, K: 128, parts: INT8 },
  { M: 40, K: 256, parts: INT8 },
  { M: 6, K: 96, parts: ROWS },
  { M: 40, K: 256, parts: ROWS },
];

function projectionOf(part: Part, i: number, K: number, dtype: DType, device: Device) {
  const fill = (j: number, std = 1) => ({ seed: seeded(i + 3, j), device, std });
  const spec = WEIGHTS.find(({ name }) => name === part.weight);
  if (spec === undefined) throw new Error(part.weight);
  const w = part.rowwise
    ? quantize(operand(part.N, K, fill(1)).tensor, { format: 'int8', rowwise: true })
    : weightOperand(spec, part.N, K, dtype, fill(1)).w;
  const { N, r, dropout = 0, trainA, bias, compute } = part;
  const projection: LoraProjection = {
    w,
    ...(compute === undefined ? {} : { compute }),
    ...(bias ? { bias: operand(1, N, { ...fill(2), shape: [N] }).tensor } : {}),
    ...(dropout > 0 ? { seed: 11 + i } : {}),
  };
  if (r === 0) return { projection, adapter: undefined };
  const adapter = new LoraAdapter({
    loraA: operand(r, K, { ...fill(3, 0.2), dtype }).tensor,
    loraB: operand(N, r, fill(4, 0.5)).tensor,
    loraAlpha: 2 * r,
    dropout,
    ...(trainA === undefined ? {} : { trainA }),
  });
  return { projection: { ...projection, adapter }, adapter };
}

const GROUPS = DEVICES.flatMap((device) => DTYPES.map((dtype) => ({ device, dtype })));

describe.each(GROUPS)('$device, $dtype', ({ device, dtype }) => {
  const cases = CASES.filter(
    ({ parts }) =>
      INT8_DEVICES.includes(device) ||
      parts.every(({ compute, rowwise }) => compute === undefined || rowwise),
  );
  it.each(cases)('$M rows, K $K, $parts.length projections', async ({ M, K, parts }) => {
    await scope(async () => {
      const x = operand(M, K, { seed: 1, dtype, device }).tensor;
      const built = parts.map((part, i) => projectionOf(part, i, K, dtype, device));
      const { ys, saved } = loraForwardMany(
        x,
        built.map(({ projection }) => projection),
      );
      const dys = parts.map(({ N }, i) => operand(M, N, { seed: 50 + i, dtype, device }));
      const many = loraBackwardMany(
        dys.map(({ tensor }) => tensor),
        saved,
        { keep: true },
      );
      const sum: Bounded = { value: matrix(M, K), p: matrix(M, K) };
      const add = async (dx: Tensor): Promise<void> => {
        const values = await dx.read();
        for (let i = 0; i < values.length; i++) {
          (sum.value.data as Float64Array)[i] = (sum.value.data[i] ?? 0) + (values[i] ?? 0);
          (sum.p.data as Float64Array)[i] = (sum.p.data[i] ?? 0) + Math.abs(values[i] ?? 0);
        }
      };
      for (const [i, { projection }] of built.entries()) {
        const name = `projection ${i}`;
        const { w, adapter, bias, seed, compute } = projection;
        const options = {
          ...(bias === undefined ? {} : { bias }),
          ...(compute === undefined ? {} : { compute }),
        };
        const dy = dys[i]?.tensor as Tensor;
        if (adapter === undefined) {
          exact(name, await (ys[i] as Tensor).read(), await matmul(x, w, options).read());
          expect(many.gradients[i]).toEqual({});
          await add(matmulInputGrad(dy, w));
          continue;
        }
        const single = loraForward(x, w, adapter, {
          ...options,
          ...(seed === undefined ? {} : { seed }),
        });
        exact(name, await (ys[i] as Tensor).read(), await single.y.read());
        const { dx, ...others } = loraBackward(dy, single.saved);
        expect(Object.keys(many.gradients[i] ?? {})).toEqual(Object.keys(others));
        for (const [gradient, tensor] of Object.entries(others)) {
          const got = many.gradients[i]?.[gradient as LoraGradient] as Tensor;
          exact(`${name} ${gradient}`, await got.read(), await tensor.read());
        }
        await add(dx as Tensor);
      }
      // The terms and each partial sum are rounded once to the dtype.
      const dx = await (many.dx as Tensor).read();
      const unit = { f32: 2 ** -24, bf16: 2 ** -8, f16: 2 ** -11 }[dtype];
      expect(dx.length).toBe(M * K);
      for (let i = 0; i < dx.length; i++) {
        const error = Math.abs((dx[i] ?? Number.NaN) - (sum.value.data[i] ?? Number.NaN));
        expect(error).toBeLessThanOrEqual(parts.length * unit * (sum.p.data[i] ?? 0) + 2 ** -24);
      }
      if (dtype === 'f32' && M > 0) bound('dx', dx, sum, { dtype });
    });
  });

  it('adds to gradients, computes what is needed, and frees what it kept', async () => {
    await scope(async () => {
      const [M, K] = [5, 64];
      const x = operand(M, K, { seed: 1, dtype, device }).tensor;
      const built = QKV.map((part, i) => projectionOf(part, i, K, dtype, device).projection);
      const dys = QKV.map(({ N }, i) => operand(M, N, { seed: 50 + i, dtype, device }).tensor);
      await synchronize(device);
      const before = memoryUsage(device).liveBytes;
      const fresh = loraForwardMany(x, built);
      const { gradients } = loraBackwardMany(dys, fresh.saved, { needs: ['dLoraB'], keep: true });
      expect(gradients.map((one) => Object.keys(one))).toEqual([['dLoraB'], [], ['dLoraB']]);
      const target = gradients[2]?.dLoraB as Tensor;
      const once = await target.read();
      const again = loraBackwardMany(dys, fresh.saved, {
        needs: ['dLoraB'],
        accumulateInto: [undefined, undefined, { dLoraB: target }],
      });
      expect(again.dx).toBeUndefined();
      expect(again.gradients[2]?.dLoraB).toBe(target);
      const twice = await target.read();
      for (const [i, value] of twice.entries()) expect(value).toBeCloseTo(2 * (once[i] ?? 0), 5);
      expect(fresh.saved.disposed).toBe(true);
      gradients[0]?.dLoraB?.dispose();
      again.gradients[0]?.dLoraB?.dispose();
      target.dispose();
      for (const y of fresh.ys) y.dispose();
      await synchronize(device);
      expect(memoryUsage(device).liveBytes).toBe(before);
      const { saved } = loraForwardMany(x, built, { training: false });
      expect(() => loraBackwardMany(dys, saved, { needs: ['dLoraB'] })).toThrow(/projections\[0\]/);
    });
  });
});
