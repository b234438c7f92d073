// LLM.int8: codes with one scale a row, and layers of them, against bitsandbytes.
import { describe, expect, it } from 'vitest';
import {
  type Device,
  dequantize,
  matmul,
  matmulInputGrad,
  multiplyAdd,
  QuantizedWeight,
  quantize,
  scope,
  splitBitsandbytes,
  Tensor,
} from '../../lib/index.js';
import { caseIds, type GoldenCase, loadCase } from './case-file.js';
import { bytesOf, tensorOf } from './library.js';
import { RuleBook } from './rules.js';

const DEVICES = ['cpu', 'reference'] as const;
const ids = (pattern: RegExp): string[] => caseIds('quant').filter((id) => pattern.test(id));

/** Codes and scales of a rowwise weight. */
async function rowsOf(weight: QuantizedWeight) {
  const { weight: codes, SCB } = await weight.toBitsandbytes();
  return { codes: codes?.data as Int8Array, scales: SCB?.data as Float32Array };
}

/** Columns of A with a value of at least the case's threshold, and A without such values. */
function outliersOf(golden: GoldenCase): { columns: number[]; without: Float32Array } {
  const threshold = golden.params.threshold as number;
  const [, K = 0] = golden.tensor('in.A').shape;
  const found = new Set<number>();
  const without = Float32Array.from(golden.numbers('in.A'), (v, i) => {
    if (threshold === 0 || Math.abs(v) < threshold) return v;
    found.add(i % K);
    return 0;
  });
  return { columns: [...found].sort((p, q) => p - q), without };
}

/** Rows of K filled up with zeros to a multiple of 32, which neither their codes nor their products see. */
function padded(values: ArrayLike<number>, K: number, device: Device): Tensor {
  const [rows, wide] = [values.length / K, Math.ceil(K / 32) * 32];
  const all = Float32Array.from({ length: rows * wide }, (_, i) =>
    i % wide < K ? (values[Math.floor(i / wide) * K + (i % wide)] as number) : 0,
  );
  return Tensor.from(all, [rows, wide], { device });
}

const rowwise = (golden: GoldenCase, name: string, device: Device): QuantizedWeight =>
  quantize(tensorOf(golden.tensor(name), device), { format: 'int8', rowwise: true });

describe.each(DEVICES)('LLM.int8 on %s', (device: Device) => {
  it.each(ids(/int8_.*thr/))('%s', async (id) => {
    await scope(async () => {
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      // Columns with an outlier are multiplied apart; scales are of what is no outlier, in those too.
      const { columns, without } = outliersOf(golden);
      const [, K = 0] = golden.tensor('in.A').shape;
      const whole = padded(golden.numbers('in.A'), K, device);
      const wide = whole.shape[1] as number;
      const mask = (kept: boolean): Tensor => {
        const row = Float32Array.from({ length: wide }, (_, k) =>
          Number(columns.includes(k) === kept),
        );
        return Tensor.from(row, [wide], { device });
      };
      const options = { format: 'int8', rowwise: true } as const;
      const a = quantize(padded(without, K, device), options);
      const b = quantize(padded(golden.numbers('in.B'), K, device), options);
      const [A, B] = [await rowsOf(a), await rowsOf(b)];
      const own = (codes: Int8Array) => codes.filter((_, i) => i % wide < K);
      rules.check(
        'out.CA',
        own(A.codes).map((code, i) => (columns.includes(i % K) ? 0 : code)),
      );
      rules.check('out.SCA', bytesOf(A.scales));
      rules.check('out.CB', own(B.codes));
      rules.check('out.SCB', bytesOf(B.scales));
      // Integers below 2^24: products of the peer's codes are exact in f32.
      const codesOf = (name: string): Tensor => {
        const { shape } = golden.tensor(name);
        return Tensor.from(Float32Array.from(golden.numbers(name)), shape, { device });
      };
      const sums = await matmul(codesOf('out.CA'), codesOf('out.CB')).read();
      rules.check('out.acc_i32', bytesOf(Int32Array.from(sums)));
      // With both operands decoded, the product and the bias are one call.
      const bias = tensorOf(golden.tensor('in.bias'), device);
      const x = multiplyAdd({ a: dequantize(a, { dtype: 'f32' }), b: mask(false) });
      const y = await matmul(x, b, { bias: bias.to({ dtype: 'f32' }) }).read();
      rules.check('out.y_scaled', y);
      if (columns.length === 0) {
        const coded = await matmul(whole, b, { bias, compute: 'int8' }).read();
        rules.check('out.y_scaled', coded);
      }
      if (rules.has('out.y_mixed')) {
        rules.check('out.outlier_cols', bytesOf(BigInt64Array.from(columns, BigInt)));
        const apart = await matmul(multiplyAdd({ a: whole, b: mask(true) }), b).read();
        rules.check(
          'out.y_mixed',
          y.map((v, i) => v + (apart[i] as number)),
        );
      }
      rules.finish();
    });
  });

  it('quant/int8_zero_row', async () => {
    await scope(async () => {
      const golden = loadCase('quant/int8_zero_row');
      const rules = new RuleBook(golden);
      const { codes, scales } = await rowsOf(rowwise(golden, 'in.A', device));
      rules.check('out.CA', codes);
      const zero = golden.params.zero_row as number;
      expect([...codes.subarray(zero * 32, (zero + 1) * 32)]).toEqual(new Array(32).fill(0));
      expect(scales[zero]).toBe(0);
      expect(bytesOf(scales)).toEqual(golden.tensor('out.SCA').bytes);
      rules.finish();
    });
  });

  it.each(ids(/linear8bit/))('%s', async (id) => {
    await scope(async () => {
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      const w = rowwise(golden, 'in.W', device);
      const { codes, scales } = await rowsOf(w);
      expect([...codes]).toEqual([...golden.numbers('out.weight_int8')]);
      expect(bytesOf(scales)).toEqual(golden.tensor('out.SCB').bytes);
      const { weight_format: format } = await w.toBitsandbytes();
      expect(bytesOf(format?.data as Uint8Array)).toEqual(golden.tensor('out.weight_format').bytes);
      for (const tensor of ['out.weight_int8', 'out.SCB', 'out.weight_format']) {
        if (rules.has(tensor)) rules.waive(tensor, 'compared above, exactly');
      }
      const x = tensorOf(golden.tensor('in.x'), device);
      const bias = tensorOf(golden.tensor('in.bias'), device);
      const y = await matmul(x, w, { bias }).read();
      rules.check('out.y_train', y);
      // The peer rounds activations to int8 here, which its rule allows for.
      rules.check('out.y_eval', y);
      rules.check('out.y_eval', await matmul(x, w, { bias, compute: 'int8' }).read());
      const dy = tensorOf(golden.tensor('in.grad_out'), device);
      rules.check('grad.x', await matmulInputGrad(dy, w).read());
      rules.finish();
    });
  });
});

it('reads a checkpoint of Linear8bitLt layers, and writes it back byte for byte', async () => {
  await scope(async () => {
    const { tensors } = loadCase('quant/state_dict_int8');
    const raw = new Map(
      [...tensors].map(([name, { dtype, shape, bytes }]) => {
        const data =
          dtype === 'I8'
            ? new Int8Array(bytes.buffer)
            : dtype === 'F32'
              ? new Float32Array(bytes.buffer)
              : dtype === 'F16'
                ? new Uint16Array(bytes.buffer)
                : bytes;
        return [name, { dtype: dtype as 'I8', shape, data }] as const;
      }),
    );
    const { layers, rest } = splitBitsandbytes(raw);
    expect([...layers.keys()]).toEqual(['fc1', 'fc2']);
    expect([...rest.keys()]).toEqual(['fc1.bias']);
    const weight = QuantizedWeight.fromBitsandbytes(layers.get('fc1') ?? {}, { device: 'cpu' });
    expect(weight).toMatchObject({ format: 'int8', rowwise: true, shape: [48, 64], blocksize: 64 });
    const back = await weight.toBitsandbytes();
    expect(Object.keys(back).sort()).toEqual(Object.keys(layers.get('fc1') ?? {}).sort());
    for (const [key, { dtype, shape, data }] of Object.entries(back)) {
      expect([dtype, shape]).toEqual([raw.get(`fc1.${key}`)?.dtype, raw.get(`fc1.${key}`)?.shape]);
      expect(bytesOf(data)).toEqual(tensors.get(`fc1.${key}`)?.bytes);
    }
    const codes = raw.get('fc1.weight')?.data as Int8Array;
    const scales = raw.get('fc1.SCB')?.data as Float32Array;
    const values = await dequantize(weight, { dtype: 'f32' }).read();
    values.forEach((v, i) => {
      const expected = ((codes[i] as number) * (scales[Math.floor(i / 64)] as number)) / 127;
      expect(Math.abs(v - expected)).toBeLessThanOrEqual(2 ** -22 * Math.abs(expected));
    });
    // Rows of 48 have blocks of 16.
    const second = QuantizedWeight.fromBitsandbytes(layers.get('fc2') ?? {}, { device: 'cpu' });
    expect(second).toMatchObject({ rowwise: true, shape: [24, 48], blocksize: 16 });
    const own = raw.get('fc2.weight')?.data as Int8Array;
    const rowScales = raw.get('fc2.SCB')?.data as Float32Array;
    (await dequantize(second, { dtype: 'f32' }).read()).forEach((v, i) => {
      const expected = ((own[i] as number) * (rowScales[Math.floor(i / 48)] as number)) / 127;
      expect(Math.abs(v - expected)).toBeLessThanOrEqual(2 ** -22 * Math.abs(expected));
    });
  });
});
