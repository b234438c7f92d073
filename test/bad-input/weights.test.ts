// Bad input to quantize, dequantize and QuantizedWeight.fromBitsandbytes.
import { describe, expect, it } from 'vitest';
import {
  type Device,
  dequantize,
  QuantizedWeight,
  quantize,
  scope,
  Tensor,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import {
  type BadCase,
  bad,
  callWith,
  checkCases,
  covered,
  hostile,
  impostors,
  resizable,
} from './harness.js';

type State = Awaited<ReturnType<QuantizedWeight['toBitsandbytes']>>;
type Part = State[string];

const kinds = (cases: readonly BadCase[]): number => covered(cases).size;

/** A state with one part replaced; `undefined` leaves it out. */
const withPart = (state: State, key: string, part: unknown): State => {
  const { [key]: _, ...rest } = state;
  return part === undefined ? rest : { ...rest, [key]: part as Part };
};

const withData = (state: State, key: string, data: unknown): State => {
  const part = state[key] as Part;
  const length = (data as { length?: number } | null)?.length ?? 0;
  return withPart(state, key, { ...part, shape: [length], data });
};

/** The quant_state JSON of a state with fields replaced. */
function withJson(state: State, fields: Record<string, unknown>, raw?: string): State {
  const key = Object.keys(state).find((name) => name.includes('quant_state')) as string;
  const old = JSON.parse(
    new TextDecoder().decode((state[key] as Part & { data: Uint8Array }).data),
  );
  const text = raw ?? JSON.stringify({ ...old, ...fields });
  return withData(state, key, new TextEncoder().encode(text));
}

/** Every way in which a checkpoint's state can be wrong. `take` is the call that reads it. */
function badStates(state: State, nested: State, take: (state: unknown) => unknown): BadCase[] {
  const format = (kind: BadCase['kind'], what: string, value: unknown): BadCase =>
    bad(kind, what, 'ERR_FORMAT', () => take(value));
  const json = (kind: BadCase['kind'], what: string, fields: Record<string, unknown>): BadCase =>
    format(kind, `quant_state: ${what}`, withJson(state, fields));
  const absmax = state['weight.absmax']?.data as Float32Array;
  const spoilt = (value: number): Float32Array => Float32Array.from(absmax, () => value);
  const detached = new Float32Array(absmax);
  structuredClone(detached.buffer, { transfer: [detached.buffer] });
  const parts = Object.keys(nested).map((key) =>
    format(2, `${key} missing`, withPart(nested, key, undefined)),
  );
  return [
    ...parts,
    format(2, 'weight: null', withPart(state, 'weight', null)),
    format(3, 'weight: a number', withPart(state, 'weight', 3)),
    format(3, 'weight: without data', withPart(state, 'weight', { dtype: 'U8', shape: [16, 1] })),
    format(
      4,
      'absmax: BF16',
      withPart(state, 'weight.absmax', {
        dtype: 'BF16',
        shape: [1],
        data: new Uint16Array(1),
      }),
    ),
    format(
      4,
      'codes: of I64',
      withPart(state, 'weight', {
        dtype: 'I64',
        shape: [2],
        data: new BigInt64Array(2),
      }),
    ),
    format(
      5,
      'data: a proxy',
      withPart(state, 'weight.absmax', {
        dtype: 'F32',
        shape: [absmax.length],
        data: new Proxy(absmax, {}),
      }),
    ),
    format(5, 'data: an array-like', withData(state, 'weight.absmax', { length: 1, 0: 1 })),
    format(
      6,
      'data: detached',
      withPart(state, 'weight.absmax', {
        dtype: 'F32',
        shape: [absmax.length],
        data: detached,
      }),
    ),
    format(11, 'codes: one short', withData(state, 'weight', new Uint8Array(15))),
    format(12, 'codes: one long', withData(state, 'weight', new Uint8Array(17))),
    format(11, 'quant_map: 15 levels', withData(state, 'weight.quant_map', new Float32Array(15))),
    format(12, 'absmax: two', withData(state, 'weight.absmax', new Float32Array(2))),
    format(13, 'absmax: none', withData(state, 'weight.absmax', new Float32Array())),
    format(13, 'codes: none', withData(state, 'weight', new Uint8Array())),
    format(
      24,
      'codes claimed to be F64',
      withPart(state, 'weight', {
        ...(state.weight as Part),
        dtype: 'F64',
      }),
    ),
    json(14, 'a dimension of 0', { shape: [4, 0] }),
    json(15, 'a negative dimension', { shape: [-4, 8] }),
    json(15, 'a negative blocksize', { blocksize: -64 }),
    json(16, 'a fractional dimension', { shape: [4, 7.5] }),
    json(16, 'a fractional blocksize', { blocksize: 64.5 }),
    json(17, 'null for infinity', { shape: [4, Number.POSITIVE_INFINITY] }),
    format(17, 'quant_state: NaN in the JSON', withJson(state, {}, '{"blocksize": NaN}')),
    json(18, 'a dimension of 2^40', { shape: [2 ** 40, 8] }),
    json(19, 'a product of 2^40', { shape: [2 ** 20, 2 ** 20] }),
    json(20, 'a product of 2^56', { shape: [2 ** 28, 2 ** 28] }),
    json(21, 'a product of 2^64', { shape: [2 ** 32, 2 ** 32] }),
    json(21, 'a product of 2^64 + 32', { shape: [2 ** 33, 2 ** 31, 1] }),
    json(22, 'another size', { shape: [4, 9] }),
    json(23, 'no dimensions', { shape: [] }),
    json(23, 'seventeen dimensions', { shape: new Array(17).fill(1) }),
    json(25, 'blocksize 0', { blocksize: 0 }),
    json(25, 'blocksize 48', { blocksize: 48 }),
    json(25, 'blocksize 16', { blocksize: 16 }),
    json(25, 'blocksize 8192', { blocksize: 8192 }),
    json(25, 'blocksize "64"', { blocksize: '64' }),
    json(24, 'dtype float13', { dtype: 'float13' }),
    json(24, 'dtype os', { dtype: 'os' }),
    json(3, 'quant_type a number', { quant_type: 4 }),
    json(24, 'quant_type of another key', { quant_type: 'fp4' }),
    json(24, 'quant_type unknown', { quant_type: 'nf5' }),
    format(3, 'quant_state: not JSON', withJson(state, {}, '{"blocksize":')),
    format(3, 'quant_state: an array', withJson(state, {}, '[1]')),
    format(29, 'absmax: NaN', withData(state, 'weight.absmax', spoilt(Number.NaN))),
    format(29, 'absmax: infinite', withData(state, 'weight.absmax', spoilt(1 / 0))),
    format(29, 'absmax: negative', withData(state, 'weight.absmax', spoilt(-1))),
    format(29, 'nested_offset: infinite', withJson(nested, { nested_offset: '1e999' })),
    format(
      29,
      'quant_map: NaN',
      withData(state, 'weight.quant_map', new Float32Array(16).fill(0 / 0)),
    ),
    format(
      29,
      'quant_map: not ascending',
      withData(state, 'weight.quant_map', new Float32Array(16)),
    ),
    bad(1, 'no arguments', 'ERR_TYPE', () => callWith(take)),
    bad(2, 'null', 'ERR_TYPE', () => take(null)),
    bad(3, 'a string', 'ERR_TYPE', () => take('nf4')),
    bad(33, 'a part that throws', 'HOSTILE', () =>
      take(
        Object.defineProperty({ ...state }, 'weight', {
          enumerable: true,
          get: () => Reflect.get(hostile('weight'), 'weight'),
        }),
      ),
    ),
  ];
}

describe.each(DEVICES)('bad input on %s', (device: Device) => {
  it('quantize', async () => {
    await scope(async () => {
      const w = Tensor.randn([4, 8], { seed: 1, device });
      const gone = Tensor.zeros([4, 8], { device });
      gone.dispose();
      const call = (options: unknown) => () => callWith(quantize, w, options);
      const block = (kind: BadCase['kind'], blocksize: unknown, code = 'ERR_FORMAT'): BadCase =>
        bad(kind, `blocksize: ${String(blocksize)}`, code, call({ format: 'nf4', blocksize }));
      const poisoned = (at: number, value: number, format: 'nf4' | 'fp4' | 'int8') => async () => {
        const values = new Float32Array(500).fill(1);
        values[at] = value;
        const q = quantize(Tensor.from(values, [500], { device }), { format });
        await dequantize(q).read();
      };
      const cases = [
        bad(1, 'no arguments', 'ERR_TYPE', () => callWith(quantize)),
        bad(1, 'no options', 'ERR_TYPE', () => callWith(quantize, w)),
        ...impostors(w).map(([kind, what, value]) =>
          bad(kind, `w: ${what}`, 'ERR_TYPE', () => callWith(quantize, value, { format: 'nf4' })),
        ),
        bad(2, 'options: null', 'ERR_TYPE', call(null)),
        bad(3, 'options: a string', 'ERR_TYPE', call('nf4')),
        bad(3, 'format: a number', 'ERR_TYPE', call({ format: 4 })),
        bad(24, 'format: unknown', 'ERR_FORMAT', call({ format: 'nf5' })),
        bad(24, 'format: toString', 'ERR_FORMAT', call({ format: 'toString' })),
        bad(24, 'format: NF4', 'ERR_FORMAT', call({ format: 'NF4' })),
        bad(3, 'doubleQuant: 1', 'ERR_TYPE', call({ format: 'nf4', doubleQuant: 1 })),
        block(13, 0),
        block(15, -64),
        block(16, 64.5),
        block(17, Number.NaN),
        block(17, Number.POSITIVE_INFINITY),
        block(18, 2 ** 32),
        block(18, 2 ** 32 + 64),
        block(20, 2 ** 53),
        block(21, 2 ** 64),
        block(25, 1),
        block(25, 31),
        block(25, 63),
        block(25, 96),
        block(25, 8192),
        block(3, '64', 'ERR_TYPE'),
        bad(29, 'NaN first', 'ERR_NON_FINITE', poisoned(0, Number.NaN, 'nf4')),
        bad(29, 'NaN last', 'ERR_NON_FINITE', poisoned(499, Number.NaN, 'fp4')),
        bad(29, 'infinity in the middle', 'ERR_NON_FINITE', poisoned(250, 1 / 0, 'int8')),
        bad(29, 'its state', 'ERR_NON_FINITE', async () => {
          const nan = Tensor.from(new Float32Array(40).fill(Number.NaN), [40], { device });
          await quantize(nan, { format: 'nf4', doubleQuant: true }).toBitsandbytes();
        }),
        bad(31, 'w: disposed', 'ERR_DISPOSED', () => quantize(gone, { format: 'nf4' })),
        bad(32, 'to: an unknown device', 'ERR_DEVICE', () =>
          quantize(w, { format: 'nf4' }).to({ device: 'gpu' as Device }),
        ),
        bad(33, 'options: a getter that throws', 'HOSTILE', call(hostile('format'))),
      ];
      await checkCases('quantize', device, {
        watched: [w],
        cases,
        valid: () => scope(async () => [await dequantize(quantize(w, { format: 'nf4' })).read()]),
      });
      expect(kinds(cases)).toBeGreaterThanOrEqual(20);
    });
  });

  it('fromBitsandbytes and dequantize', async () => {
    await scope(async () => {
      const w = Tensor.randn([4, 8], { seed: 1, device });
      const weight = quantize(w, { format: 'nf4' });
      const state = await weight.toBitsandbytes();
      const nested = await quantize(w, { format: 'nf4', doubleQuant: true }).toBitsandbytes();
      const gone = quantize(w, { format: 'nf4' });
      gone.dispose();
      const read = (value: unknown): unknown =>
        QuantizedWeight.fromBitsandbytes(value as State, { device });
      const states = badStates(state, nested, read);
      await checkCases('fromBitsandbytes', device, {
        watched: [w],
        cases: [
          ...states,
          bad(10, 'codes over shared memory, one short', 'ERR_FORMAT', () =>
            read(withData(state, 'weight', new Uint8Array(new SharedArrayBuffer(15)))),
          ),
          bad(8, 'codes over a resizable buffer, one long', 'ERR_FORMAT', () =>
            read(withData(state, 'weight', new Uint8Array(resizable(17, 64)))),
          ),
          bad(32, 'an unknown device', 'ERR_DEVICE', () =>
            QuantizedWeight.fromBitsandbytes(state, { device: 'gpu' as Device }),
          ),
          bad(3, 'options: a number', 'ERR_TYPE', () =>
            callWith(QuantizedWeight.fromBitsandbytes, state, 3),
          ),
        ],
        valid: () => scope(async () => [await dequantize(read(state) as QuantizedWeight).read()]),
      });
      expect(kinds(states)).toBeGreaterThanOrEqual(20);

      const cases = [
        // What dequantize is given by way of a file.
        ...badStates(state, nested, (value) => dequantize(read(value) as QuantizedWeight)),
        ...impostors(weight).map(([kind, what, value]) =>
          bad(kind, `w: ${what}`, 'ERR_TYPE', () => callWith(dequantize, value)),
        ),
        bad(3, 'w: a dense tensor', 'ERR_TYPE', () => callWith(dequantize, w)),
        bad(3, 'dtype: a number', 'ERR_TYPE', () => callWith(dequantize, weight, { dtype: 16 })),
        bad(24, 'dtype: int8', 'ERR_DTYPE', () => callWith(dequantize, weight, { dtype: 'int8' })),
        bad(3, 'options: a string', 'ERR_TYPE', () => callWith(dequantize, weight, 'f32')),
        bad(31, 'w: disposed', 'ERR_DISPOSED', () => dequantize(gone)),
        bad(33, 'options: a getter that throws', 'HOSTILE', () =>
          callWith(dequantize, weight, hostile('dtype')),
        ),
      ];
      await checkCases('dequantize', device, {
        watched: [w],
        cases,
        valid: () => scope(async () => [await dequantize(weight).read()]),
      });
      expect(kinds(cases)).toBeGreaterThanOrEqual(20);
    });
  });

  it('a weight that holds NaN says so at the first read, not before, and stays refused', async () => {
    await scope(async () => {
      const nan = Tensor.from([Number.NaN, 1], [1, 2], { device });
      const weight = quantize(nan, { format: 'nf4' });
      const y = dequantize(weight);
      await expect(y.read()).rejects.toMatchObject({ code: 'ERR_NON_FINITE' });
      expect(() => y.readSync()).toThrow(expect.objectContaining({ code: 'ERR_NON_FINITE' }));
      await expect(y.to({ dtype: 'bf16' }).read()).rejects.toMatchObject({
        code: 'ERR_NON_FINITE',
      });
      await expect(weight.toBitsandbytes()).rejects.toMatchObject({ code: 'ERR_NON_FINITE' });
      // The source is as good as it was.
      expect(Number.isNaN((await nan.read())[0])).toBe(true);
    });
  });
});
