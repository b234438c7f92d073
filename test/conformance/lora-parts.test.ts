// The halves of a LoRA layer and weightGrad: within c · u · P of the float64 formulas, and in turn
// the bits of loraForward and loraBackward.
import { describe, expect, it } from 'vitest';
import {
  type DType,
  dequantize,
  loraBackward,
  loraExpand,
  loraExpandBackward,
  loraForward,
  loraShrink,
  loraShrinkBackward,
  type QuantizedWeight,
  quantize,
  scope,
  type Tensor,
  weightGrad,
} from '../../lib/index.js';
import { INT8_DEVICES } from '../../lib/ops/compute.js';
import {
  type Bounded,
  bound,
  exact,
  expand64,
  expandBackward64,
  matrix,
  promisedOf,
  shrink64,
  shrinkBackward64,
  weightGrad64,
} from '../oracle.js';
import { type LoraShape, type LoraVariant, loraCase } from './lora-case.js';
import { DEVICES, DTYPES, mixes, operand, seeded, WEIGHTS } from './operands.js';

const SCALING = 1.75;
const CASES: readonly (LoraShape & LoraVariant)[] = [
  { M: 1, N: 1, K: 1, r: 1 },
  { M: 0, N: 6, K: 10, r: 4, bias: true },
  { M: 1, N: 65, K: 172, r: 8, bias: true },
  { M: 3, N: 31, K: 63, r: 3 },
  { M: 3, N: 64, K: 64, r: 8, sameDType: true },
  { M: 17, N: 33, K: 65, r: 8, dropout: 0.25, bias: true },
  { M: 17, N: 15, K: 31, r: 64, dropout: 0.5, maskGiven: true },
  { M: 64, N: 13, K: 33, r: 1, sameDType: true, dropout: 0.1 },
  { M: 65, N: 63, K: 172, r: 128, bias: true },
  { M: 6, N: 40, K: 24, r: 5, leading: [2, 3], dropout: 0.3, bias: true },
  { M: 130, N: 70, K: 90, r: 16 },
];

const SPECS = WEIGHTS.filter(({ name }) => /^dense|^nf4 with/.test(name));
const GROUPS = DEVICES.flatMap((device) =>
  DTYPES.flatMap((dtype) =>
    SPECS.filter((spec) => mixes(spec, dtype)).map((spec) => ({ device, dtype, spec })),
  ),
);

describe.each(GROUPS)('$device, $dtype x, $spec.name', ({ device, dtype, spec }) => {
  it('each half, and its gradients', async () => {
    for (const [index, test] of CASES.entries()) {
      await scope(async () => {
        const { M, N, K, r, leading = [M] } = test;
        const c = loraCase(test, test, spec, dtype, device, index + 1);
        const { loraA, loraB } = c.adapter;
        const { inputs, dy64, name } = c;
        const gate = inputs.gate;
        const adapterType: DType = test.sameDType ? dtype : 'f32';
        // Operands of their own, so that no half leans on the other.
        const fill = (i: number) => ({ seed: seeded(index, 10 + i), device });
        const h = operand(M, r, { ...fill(1), shape: [...leading, r] });
        const dh = operand(M, r, { ...fill(2), shape: [...leading, r] });
        const empty = M === 0 ? { mostlyZeros: 'no tokens' } : {};
        const check = async (
          part: string,
          tensor: Tensor | undefined,
          type: DType,
          shape: readonly number[],
          expected: Bounded,
        ): Promise<void> => {
          expect(tensor?.shape).toEqual(shape);
          expect(tensor?.dtype).toBe(type);
          const values = await (tensor as Tensor).read();
          const limit = promisedOf(device, part, test, dtype);
          bound(`${part} ${name}`, values, expected, { dtype: type, c: limit, ...empty });
        };

        const { bias: baseBias, ...options } = c.options;
        const drop = { ...options, dropout: c.adapter.dropout, scaling: SCALING };
        const shrunk = loraShrink(c.x, loraA, drop);
        const shape = [...leading, r];
        await check('h', shrunk, 'f32', shape, shrink64(inputs.x, inputs.loraA, SCALING, gate));

        const bias = baseBias === undefined ? {} : { bias: baseBias };
        const y = loraExpand(c.x, c.w, h.tensor, loraB, { scaling: SCALING, ...bias });
        const y64 = expand64(inputs.x, inputs.w, h.matrix, inputs.loraB, SCALING, inputs.bias);
        await check('y', y, dtype, [...leading, N], y64);

        const over = loraExpandBackward(c.dy, h.tensor, loraB, { scaling: SCALING });
        const over64 = expandBackward64(dy64, h.matrix, inputs.loraB, SCALING);
        await check('dh', over.dh, 'f32', shape, over64.dh);
        await check('dLoraB', over.dLoraB, adapterType, [N, r], over64.dLoraB);
        await check('dBias', over.dBias, dtype, [N], over64.dBias);

        const under = loraShrinkBackward(c.dy, c.w, dh.tensor, loraA, { x: c.x, ...drop });
        const under64 = shrinkBackward64(
          dy64,
          inputs.w,
          dh.matrix,
          inputs.x,
          inputs.loraA,
          SCALING,
          gate,
        );
        await check('dx', under.dx, dtype, [...leading, K], under64.dx);
        await check('dLoraA', under.dLoraA, adapterType, [r, K], under64.dLoraA);
      });
    }
  });

  it('in turn they give the bits of loraForward and loraBackward', async () => {
    for (const [index, test] of CASES.entries()) {
      await scope(async () => {
        const c = loraCase(test, test, spec, dtype, device, index + 1);
        const { loraA, loraB, scaling } = c.adapter;
        const { y, saved } = loraForward(c.x, c.w, c.adapter, c.options);
        const { bias: baseBias, ...options } = c.options;
        const drop = { ...options, dropout: c.adapter.dropout };
        const h = loraShrink(c.x, loraA, drop);
        const bias = baseBias === undefined ? {} : { bias: baseBias };
        exact(`h ${c.name}`, await h.read(), await (saved.h as Tensor).read());
        const halves = loraExpand(c.x, c.w, h, loraB, { scaling, ...bias });
        exact(`y ${c.name}`, await halves.read(), await y.read());
        const whole = loraBackward(c.dy, saved, { needs: ['dx', 'dLoraA', 'dLoraB', 'dBias'] });
        const over = loraExpandBackward(c.dy, h, loraB, { scaling });
        const under = loraShrinkBackward(c.dy, c.w, over.dh as Tensor, loraA, { x: c.x, ...drop });
        const parts = { ...over, ...under };
        for (const part of ['dx', 'dLoraA', 'dLoraB', 'dBias'] as const) {
          const expected = await (whole[part] as Tensor).read();
          exact(`${part} ${c.name}`, await (parts[part] as Tensor).read(), expected);
        }
      });
    }
  });
});

const PAIRS = DEVICES.flatMap((device) => DTYPES.map((dtype) => ({ device, dtype })));

describe.each(PAIRS)('$device, $dtype', ({ device, dtype }) => {
  it('only what is needed is computed, and alone it has the same bits', async () => {
    await scope(async () => {
      const shape = { M: 17, N: 33, K: 65, r: 8 };
      const spec = SPECS[0] as (typeof SPECS)[number];
      const c = loraCase(shape, { dropout: 0.25 }, spec, dtype, device, 3);
      const { loraA, loraB } = c.adapter;
      const h = operand(17, 8, { seed: 1, device }).tensor;
      const drop = { ...c.options, dropout: 0.25 };
      const over = loraExpandBackward(c.dy, h, loraB);
      for (const part of ['dh', 'dLoraB', 'dBias'] as const) {
        const given = part === 'dLoraB' ? h : undefined;
        const alone = loraExpandBackward(c.dy, given, loraB, { needs: [part] });
        expect(Object.keys(alone)).toEqual([part]);
        const expected = await (over[part] as Tensor).read();
        const values = await (alone[part] as Tensor).read();
        exact(`${part} alone`, values, expected);
      }
      const under = loraShrinkBackward(c.dy, c.w, h, loraA, { x: c.x, ...drop });
      for (const part of ['dx', 'dLoraA'] as const) {
        const options = part === 'dLoraA' ? { x: c.x, ...drop } : drop;
        const alone = loraShrinkBackward(c.dy, c.w, h, loraA, { ...options, needs: [part] });
        expect(Object.keys(alone)).toEqual([part]);
        const expected = await (under[part] as Tensor).read();
        exact(`${part} alone`, await (alone[part] as Tensor).read(), expected);
      }
      const off = await loraShrink(c.x, loraA, { ...drop, training: false }).read();
      exact('training: false', off, await loraShrink(c.x, loraA).read());
    });
  });

  it("compute: 'int8' gives the bits of loraForward, where there is such a product", async () => {
    await scope(async () => {
      const spec = SPECS.find(({ format }) => format === 'nf4') as (typeof SPECS)[number];
      const c = loraCase({ M: 17, N: 33, K: 128, r: 8 }, {}, spec, dtype, device, 3);
      const compute = 'int8';
      const byRows = quantize(dequantize(c.w as QuantizedWeight), {
        format: 'int8',
        rowwise: true,
      });
      for (const w of INT8_DEVICES.includes(device) ? [c.w, byRows] : [byRows]) {
        const { y, saved } = loraForward(c.x, w, c.adapter, { compute });
        const { scaling, loraB } = c.adapter;
        const half = loraExpand(c.x, w, saved.h as Tensor, loraB, { scaling, compute });
        exact('y', await half.read(), await y.read());
        const plain = await loraExpand(c.x, w, saved.h as Tensor, loraB, { scaling }).read();
        expect(plain).not.toEqual(await y.read());
      }
    });
  });

  it('adds to what is there, and returns it', async () => {
    await scope(async () => {
      const shape = { M: 17, N: 33, K: 65, r: 8 };
      const spec = SPECS[0] as (typeof SPECS)[number];
      const c = loraCase(shape, { dropout: 0.25 }, spec, dtype, device, 3);
      const { inputs, dy64 } = c;
      const { loraA, loraB } = c.adapter;
      const h = operand(17, 8, { seed: 1, device });
      const at = (i: number, rows: number, cols: number, type: DType) =>
        operand(rows, cols, { seed: i, dtype: type, device });
      const targets = {
        dh: at(2, 17, 8, 'f32'),
        dLoraB: at(3, 33, 8, dtype),
        dBias: at(4, 1, 33, 'f32'),
        dx: at(5, 17, 65, dtype),
        dLoraA: at(6, 8, 65, 'f32'),
        dW: at(7, 33, 65, dtype),
      };
      const { dh, dLoraB, dBias, dx, dLoraA, dW } = targets;
      const over = loraExpandBackward(c.dy, h.tensor, loraB, {
        scaling: SCALING,
        accumulateInto: { dh: dh.tensor, dLoraB: dLoraB.tensor, dBias: dBias.tensor },
      });
      const under = loraShrinkBackward(c.dy, c.w, h.tensor, loraA, {
        ...c.options,
        x: c.x,
        dropout: 0.25,
        scaling: SCALING,
        accumulateInto: { dx: dx.tensor, dLoraA: dLoraA.tensor },
      });
      const grad = { dW: weightGrad(c.dy, c.x, { accumulateInto: dW.tensor }) };
      const got = { ...over, ...under, ...grad };
      const sums = {
        ...expandBackward64(dy64, h.matrix, inputs.loraB, SCALING),
        ...shrinkBackward64(dy64, inputs.w, h.matrix, inputs.x, inputs.loraA, SCALING, inputs.gate),
        dW: weightGrad64(dy64, inputs.x),
      };
      for (const [part, target] of Object.entries(targets)) {
        const name = part as keyof typeof targets;
        expect(got[name]).toBe(target.tensor);
        const { value, p } = sums[name];
        const sum = {
          value: matrix(
            value.rows,
            value.cols,
            value.data.map((v, i) => v + (target.matrix.data[i] ?? 0)),
          ),
          p: matrix(
            p.rows,
            p.cols,
            p.data.map((v, i) => v + Math.abs(target.matrix.data[i] ?? 0)),
          ),
        };
        const limit = promisedOf(device, name, shape, dtype);
        bound(name, await target.tensor.read(), sum, { dtype: target.tensor.dtype, c: limit });
      }
    });
  });

  it('weightGrad, in every dtype of dy, x and the result', async () => {
    const shapes = [
      [0, 5, 7],
      [1, 1, 1],
      [3, 65, 172],
      [17, 8, 8],
      [64, 3, 33],
      [65, 128, 31],
      [300, 64, 64],
    ] as const;
    for (const [index, [M, N, K]] of shapes.entries()) {
      for (const other of DTYPES) {
        await scope(async () => {
          const dy = operand(M, N, { seed: seeded(index, 1), dtype: other, device });
          const x = operand(M, K, { seed: seeded(index, 2), dtype, device });
          const dw = weightGrad(dy.tensor, x.tensor, index % 2 === 0 ? {} : { dtype: other });
          const type = index % 2 === 0 ? 'f32' : other;
          expect([dw.shape, dw.dtype]).toEqual([[N, K], type]);
          bound(
            `dW [${M}, ${N}, ${K}] ${other}`,
            await dw.read(),
            weightGrad64(dy.matrix, x.matrix),
            {
              dtype: type,
              c: promisedOf(device, 'dW', { M, N, K, r: 0 }, dtype),
              ...(M === 0 ? { mostlyZeros: 'no tokens' } : {}),
            },
          );
        });
      }
    }
  });
});
