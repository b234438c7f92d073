// loraForward and loraBackward within c · u · P of the float64 pass, every gradient: the second step
// of the gradient check, whose first is test/oracle/lora.test.ts.
import { describe, expect, it } from 'vitest';
import { type DType, loraBackward, loraForward, scope, type Tensor } from '../../lib/index.js';
import { bound, loraBackward64, loraForward64, promisedOf } from '../oracle.js';
import { type LoraShape, type LoraVariant, loraCase } from './lora-case.js';
import { PRODUCTS } from './operands.js';

// Every M, r and edge of N and K of the list at least once, spread over the variants.
const CASES: readonly (LoraShape & LoraVariant)[] = [
  { M: 1, N: 1, K: 1, r: 1 },
  { M: 0, N: 6, K: 10, r: 4, bias: true },
  { M: 1, N: 65, K: 172, r: 8, bias: true },
  { M: 3, N: 31, K: 63, r: 3, rslora: true },
  { M: 3, N: 64, K: 64, r: 8, sameDType: true, loraBias: true },
  { M: 17, N: 33, K: 65, r: 8, dropout: 0.25, bias: true },
  { M: 17, N: 15, K: 31, r: 64, dropout: 0.5, maskGiven: true },
  { M: 64, N: 13, K: 33, r: 1, sameDType: true, dropout: 0.1 },
  { M: 65, N: 63, K: 32, r: 128, rslora: true, bias: true },
  { M: 6, N: 14, K: 15, r: 512, loraBias: true },
  { M: 65, N: 32, K: 172, r: 3, loraAlpha: -1.5, bias: true, loraBias: true },
  { M: 6, N: 40, K: 24, r: 5, leading: [2, 3], dropout: 0.3, bias: true },
  { M: 130, N: 70, K: 90, r: 16 },
];

const worst = new Map<string, number>();

describe.each(PRODUCTS)('$device, $dtype x, $spec.name', ({ device, dtype, spec }) => {
  it('forward and every gradient', async () => {
    for (const [index, test] of CASES.entries()) {
      await scope(async () => {
        const { name, x, dy, w, adapter, options, inputs, dy64 } = loraCase(
          test,
          test,
          spec,
          dtype,
          device,
          index + 1,
        );
        const { y, saved } = loraForward(x, w, adapter, options);
        expect(y.shape).toEqual([...x.shape.slice(0, -1), test.N]);
        const note = (part: string, value: number): void => {
          worst.set(part, Math.max(worst.get(part) ?? 0, value));
        };
        const c = (part: string) => promisedOf(device, part, test, dtype);
        const forward = bound(`y ${name}`, await y.read(), loraForward64(inputs), {
          dtype,
          c: c('y'),
        });
        note('y', forward.worst / c('y'));
        const gradients = loraBackward(dy, saved);
        const expected = loraBackward64(inputs, dy64);
        const adapterType: DType = test.sameDType ? dtype : 'f32';
        const check = async (part: keyof typeof gradients, type: DType): Promise<void> => {
          const gradient = gradients[part] as Tensor;
          expect(gradient.dtype).toBe(type);
          // A sum over no tokens is a gradient of zeros.
          const empty = test.M === 0 ? { mostlyZeros: 'no tokens' } : {};
          const values = await gradient.read();
          const report = bound(`${part} ${name}`, values, expected[part], {
            dtype: type,
            c: c(part),
            ...empty,
          });
          note(part, report.worst / c(part));
        };
        await check('dx', dtype);
        await check('dLoraA', adapterType);
        await check('dLoraB', adapterType);
        expect(gradients.dBias === undefined).toBe(!test.bias);
        expect(gradients.dLoraBias === undefined).toBe(!test.loraBias);
        if (test.bias) await check('dBias', dtype);
        if (test.loraBias) await check('dLoraBias', 'f32');
        expect(gradients.dx?.shape).toEqual(x.shape);
        expect(gradients.dLoraA?.shape).toEqual([test.r, test.K]);
        expect(gradients.dLoraB?.shape).toEqual([test.N, test.r]);
        expect(saved.disposed).toBe(true);
      });
    }
  });
});

describe('margins', () => {
  it('the worst error over all cases is under the promise', () => {
    expect([...worst.keys()].sort()).toEqual(['dBias', 'dLoraA', 'dLoraB', 'dLoraBias', 'dx', 'y']);
    for (const [part, value] of worst) {
      console.info(`worst ${part}: ${value.toFixed(2)} of the promise`);
      expect(value).toBeLessThan(1);
    }
  });
});
