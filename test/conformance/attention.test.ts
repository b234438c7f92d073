// attention and its gradients against float64: grouped heads, rotation, windows, soft caps, documents, fused
// operands; steps with a cache.
import { describe, expect, it } from 'vitest';
import {
  attention,
  attentionBackward,
  type Device,
  type DType,
  Indices,
  ModelTape,
  scope,
  Tensor,
} from '../../lib/index.js';
import { normalMatrix, positiveMatrix } from '../oracle/inputs.js';
import {
  type AttentionSpec,
  attention64,
  attentionGradients64,
  type Bounded,
  exact,
  type Matrix,
  map,
  matrix,
  nmse,
  U32,
  ulp,
} from '../oracle.js';
import { type Case, caseOf, EVERYTHING, type Fill, type Form } from './attention-case.js';
import { DEVICES, FULL_SWEEP, tensorOf } from './operands.js';

const FORMS: readonly Form[] = [
  { name: 'plain', heads: 2, kvHeads: 2, headDim: 16 },
  { name: 'grouped, rotated', heads: 6, kvHeads: 2, headDim: 32, rot: 32, sequences: 2 },
  { name: 'partly rotated, fused', heads: 4, kvHeads: 1, headDim: 20, rot: 12, fused: true },
  { name: 'window', heads: 2, kvHeads: 1, headDim: 16, rot: 16, window: 20 },
  { name: 'a window of one row', heads: 1, kvHeads: 1, headDim: 8, window: 1 },
  { name: 'soft cap', heads: 2, kvHeads: 2, headDim: 24, rot: 24, softcap: 1.5, scale: 0.4 },
  { name: 'documents', heads: 2, kvHeads: 1, headDim: 16, rot: 16, documents: [5, 1, 40, 19] },
  EVERYTHING,
  {
    name: 'sinks',
    heads: 4,
    kvHeads: 2,
    headDim: 12,
    rot: 12,
    window: 30,
    // Far above and below every score, and between them.
    sinks: [0.3, 40, -Infinity, -2],
  },
  { name: 'two columns', heads: 5, kvHeads: 5, headDim: 2, rot: 2 },
];
/** Heads that a tile holds as they are, and that it fills up with zeros. */
const WIDE: readonly Form[] = [
  { name: 'of 256 columns', heads: 2, kvHeads: 1, headDim: 256, rot: 256 },
  { name: 'of 128 columns', heads: 4, kvHeads: 2, headDim: 128, rot: 64 },
  { name: 'of 96 columns', heads: 3, kvHeads: 1, headDim: 96, rot: 96, fused: true },
  { name: 'of 250 columns', heads: 1, kvHeads: 1, headDim: 250, rot: 6, softcap: 2 },
];
/** Tiles of keys that no row of a tile of queries sees, and the other way round. */
const SPARSE: readonly Form[] = [
  { name: 'a window', heads: 2, kvHeads: 1, headDim: 16, rot: 16, window: 20 },
  { name: 'documents', heads: 2, kvHeads: 2, headDim: 16, rot: 16, documents: [60, 65, 75] },
];

/** |y - y64| <= (of the terms) · what scores and weights are off, and the rounding of y. */
function near(
  name: string,
  actual: ArrayLike<number>,
  expected: Bounded,
  dtype: DType,
  reach: number,
): void {
  // Scores are sums of f32, and in 16 bits turned rows may round to the other side.
  const scores = reach * (32 * U32 + (dtype === 'f32' ? 0 : ulp(dtype, 1)));
  const relative = Math.expm1(scores) + 64 * U32 + (dtype === 'f32' ? 0 : 2 * ulp(dtype, 1));
  expect(actual.length).toBe(expected.value.data.length);
  for (let i = 0; i < actual.length; i++) {
    const y64 = expected.value.data[i] as number;
    const limit = relative * (expected.p.data[i] as number) + ulp(dtype, y64) / 2 + 1e-30;
    const error = Math.abs((actual[i] as number) - y64);
    if (!(error <= limit)) {
      throw new Error(
        `${name}[${i}]: ${actual[i]}, expected ${y64}: off by ${error}, not ${limit}`,
      );
    }
  }
}

/** Columns [first, first + count) of rows. */
function columns(values: Float32Array, rows: number, first: number, count: number): Float32Array {
  const cols = values.length / rows;
  return Float32Array.from({ length: rows * count }, (_, i) => {
    return values[Math.floor(i / count) * cols + first + (i % count)] as number;
  });
}

/** dq, dk and dv of either form. */
async function gradientsOf(c: Case, gradients: object, M: number): Promise<Float32Array[]> {
  const read = await Promise.all(Object.values(gradients).map((t: Tensor) => t.read()));
  if (read.length === 3) return read;
  const widths = [c.q.cols, c.k.cols, c.v.cols];
  return widths.map((width, i) => {
    const first = widths.slice(0, i).reduce((a, b) => a + b, 0);
    return columns(read[0] as Float32Array, M, first, width);
  });
}

async function check(form: Form, T: number, dtype: DType, device: Device, fill?: Fill) {
  await scope(async () => {
    const c = caseOf(form, T, dtype, device, fill);
    const M = c.q.rows;
    const { o, lse } = attention(c.input, { ...c.shape, ...c.sinks });
    expect([o.dtype, o.shape.at(-1), lse?.shape]).toEqual([dtype, c.q.cols, [form.heads, M]]);
    const expected = attention64(c.spec, c.q, c.k, c.v);
    const reach = Math.max(...expected.reach.data);
    const got = await o.read();
    near('o', got, { value: expected.o, p: expected.terms }, dtype, reach);
    const sums = { value: expected.lse, p: map(expected.lse, (value) => 1 + Math.abs(value)) };
    near('lse', await (lse as Tensor).read(), sums, dtype === 'f32' ? 'f32' : dtype, reach);
    const limit = dtype === 'f32' ? 1e-9 : dtype === 'bf16' ? 1e-3 : 1e-5;
    if (reach < 100) nmse('o', got, expected.o.data, limit, { mostlyZeros: 'sparse' });
    const made = attentionBackward(c.dOTensor, c.input, { ...c.shape, o, lse: lse as Tensor });
    const grads = await gradientsOf(c, made, M);
    const wanted = attentionGradients64(c.spec, c.q, c.k, c.v, c.dO);
    for (const [i, name] of (['dq', 'dk', 'dv'] as const).entries()) {
      const actual = grads[i] as Float32Array;
      near(name, actual, wanted[name], dtype, reach);
      // A row that sees only itself has no gradient of its scores.
      const flat = name !== 'dv' && (T === 1 || form.window === 1);
      if (reach < 100 && !flat) {
        nmse(name, actual, wanted[name].value.data, limit, { mostlyZeros: 'sparse' });
      }
    }
  });
}

describe.each(DEVICES.flatMap((device) => FORMS.map((form) => ({ device, ...form }))))(
  '$device, $name',
  ({ device, ...form }) => {
    // The oracle takes seconds of 300 rows: tasks of as many rows are the same whatever else a form has.
    const many = FULL_SWEEP || form.name === 'plain' || form.name === 'window' ? 300 : 130;
    const longest = device === 'cpu' ? many : 65;
    const upTo = (rows: readonly number[]) => rows.filter((T) => T <= longest);
    it.each(upTo([1, 2, 17, 65, 130, 300]))('%i rows, f32', async (T) => {
      await check(form, T, 'f32', device);
    });
    it.each(upTo([1, 65, 130]))('%i rows, bf16', async (T) => {
      await check(form, T, 'bf16', device);
    });
    it('17 rows, f16', async () => {
      await check(form, 17, 'f16', device);
    });
  },
);

describe.each(DEVICES)('%s', (device) => {
  it.each(WIDE)('heads $name', async (form) => {
    for (const dtype of ['f32', 'bf16', 'f16'] as const) await check(form, 67, dtype, device);
  });

  it.each(SPARSE)('$name, with whole tiles hidden', async (form) => {
    for (const dtype of ['f32', 'bf16'] as const) await check(form, 200, dtype, device);
  });

  it('a gradient of another dtype', async () => {
    await scope(async () => {
      for (const form of [FORMS[1], FORMS[2]] as Form[]) {
        const c = caseOf(form, 20, 'bf16', device);
        const { o, lse } = attention(c.input, c.shape);
        const options = { ...c.shape, o, lse: lse as Tensor };
        const expected = Object.values(attentionBackward(c.dOTensor, c.input, options));
        const wide = c.dOTensor.to({ dtype: 'f32' });
        const made = Object.values(attentionBackward(wide, c.input, options));
        for (const [i, gradient] of made.entries()) {
          exact('gradient', await gradient.read(), await (expected[i] as Tensor).read());
        }
      }
    });
  });

  it('values of one sign, and scores of a large range', async () => {
    const form = FORMS[1] as Form;
    await check(form, 130, 'f32', device, (rows, cols, seed) => positiveMatrix(rows, cols, seed));
    await check(form, 65, 'f32', device, (rows, cols, seed) => normalMatrix(rows, cols, seed, 12));
    await check(form, 65, 'bf16', device, (rows, cols, seed) => normalMatrix(rows, cols, seed, 12));
  });

  it('no rows', async () => {
    await scope(async () => {
      const q = Tensor.zeros([0, 8], { device });
      const { o, lse } = attention({ q, k: q, v: q }, { heads: 2 });
      expect([o.shape, lse?.shape]).toEqual([
        [0, 8],
        [2, 0],
      ]);
      const { dq } = attentionBackward(o, { q, k: q, v: q }, { heads: 2, o, lse: lse as Tensor });
      expect(dq.shape).toEqual([0, 8]);
    });
  });

  it.each(['f32', 'bf16'] as const)('steps with a cache are the whole pass, %s', async (dtype) => {
    await scope(async () => {
      const form = { ...(FORMS[1] as Form), window: 70, sinks: [1, -1, 0, 2, 0.5, -3] };
      const T = 150;
      const c = caseOf(form, T, dtype, device);
      const whole = await attention(c.input, { ...c.shape, ...c.sinks }).o.read();
      const { kvHeads, headDim, sequences = 1, heads } = form;
      // Rows that no step has written yet must not be read.
      const cached = (): Tensor => {
        const cols = kvHeads * headDim;
        const nothing = new Float32Array(sequences * (T + 3) * cols).fill(Number.NaN);
        return Tensor.from(nothing, [sequences, T + 3, cols], { dtype, device });
      };
      const cache = { k: cached(), v: cached() };
      const part = (m: Matrix, from: number, to: number): Tensor => {
        const out = matrix(sequences * (to - from), m.cols);
        for (let b = 0; b < sequences; b++) {
          const rows = m.data.subarray((b * T + from) * m.cols, (b * T + to) * m.cols);
          out.data.set(rows, b * (to - from) * m.cols);
        }
        return tensorOf(out, { dtype, device, shape: [sequences, to - from, m.cols] });
      };
      const steps = [100, 1, 1, 1, 30, ...new Array<number>(T - 133).fill(1)];
      let past = 0;
      for (const rows of steps) {
        const to = past + rows;
        const input = { q: part(c.q, past, to), k: part(c.k, past, to), v: part(c.v, past, to) };
        const { o } = attention(input, {
          ...c.shape,
          ...c.sinks,
          keep: false,
          cache: { ...cache, past },
        });
        const got = await o.read();
        const width = heads * headDim;
        for (let b = 0; b < sequences; b++) {
          const expected = whole.subarray((b * T + past) * width, (b * T + to) * width);
          exact(`rows ${past} to ${to}`, got.subarray(b * rows * width, (b + 1) * rows * width), [
            ...expected,
          ]);
        }
        past = to;
      }
    });
  });

  it('documents are sequences of their own', async () => {
    await scope(async () => {
      const form = FORMS[6] as Form;
      const c = caseOf(form, 65, 'f32', device);
      const { documents: _, ...shape } = c.shape;
      const packed = await attention(c.input, c.shape).o.read();
      const begins = c.spec.documents as readonly number[];
      for (const begin of new Set(begins)) {
        const end = begins.lastIndexOf(begin) + 1;
        const rows = (m: Matrix): Tensor =>
          tensorOf(matrix(end - begin, m.cols, m.data.slice(begin * m.cols, end * m.cols)), {
            device,
          });
        const alone = await attention({ q: rows(c.q), k: rows(c.k), v: rows(c.v) }, shape).o.read();
        const width = c.q.cols;
        const { value, p } = {
          value: matrix(end - begin, width, alone),
          p: map(matrix(end - begin, width), () => 4),
        };
        near('o', packed.subarray(begin * width, end * width), { value, p }, 'f32', 10);
      }
    });
  });

  it('documents that do not ascend', async () => {
    await scope(async () => {
      const q = Tensor.zeros([2, 3, 4], { device });
      const input = { q, k: q, v: q };
      const o = Tensor.zeros([2, 3, 4], { device });
      const lse = Tensor.zeros([1, 6], { device });
      for (const [list, entry] of [
        [[0, 0, 1, 0, 0, 0], 2],
        [[0, 1, 0, 0, 0, 0], 2],
        [[0, 0, 0, 0, 2, 2], 4],
        [[0, 0, 0, 2, 2, 2], 3],
      ] as const) {
        const documents = Indices.from(list, { limit: 3, device });
        const refused = {
          code: 'ERR_VALUE',
          message: expect.stringContaining(`documents[${entry}]`),
        };
        await expect(attention(input, { heads: 1, documents }).o.read()).rejects.toMatchObject(
          refused,
        );
        const { dq } = attentionBackward(q, input, { heads: 1, documents, o, lse });
        await expect(dq.read()).rejects.toMatchObject(refused);
      }
      const documents = Indices.from([0, 0, 2, 0, 1, 1], { limit: 3, device });
      expect(await attention(input, { heads: 1, documents }).o.read()).toHaveLength(24);
    });
  });

  it.each([false, true])('the step of a tape, fused: %s', async (fused) => {
    await scope(async () => {
      const c = caseOf({ ...(FORMS[1] as Form), fused }, 20, 'f32', device);
      using t = new ModelTape();
      const named = Object.entries(c.input).map(([name, x]) => [name, t.variable(x)] as const);
      const o = t.attention(Object.fromEntries(named) as never, c.shape);
      const made = t.gradients(
        'test',
        o,
        c.dOTensor,
        named.map(([, value]) => value),
      );
      const direct = attention(c.input, c.shape);
      exact('o', await o.tensor.read(), await direct.o.read());
      const options = { ...c.shape, o: direct.o, lse: direct.lse as Tensor };
      const expected = Object.values(attentionBackward(c.dOTensor, c.input, options));
      for (const [i, gradient] of made.entries()) {
        exact('gradient', await (gradient as Tensor).read(), await (expected[i] as Tensor).read());
      }
    });
  });
});

it.each(FORMS)('the oracle agrees with differences: $name', (form) => {
  scope(() => {
    const { spec, q, k, v, dO } = caseOf(form, 9, 'f32', 'reference');
    const small = { ...spec, documents: spec.documents?.map((begin) => begin) };
    const exactSpec = small as AttentionSpec;
    const made = attentionGradients64(exactSpec, q, k, v, dO);
    const loss = (): number => {
      const { o } = attention64(exactSpec, q, k, v);
      return o.data.reduce((sum, value, i) => sum + value * (dO.data[i] as number), 0);
    };
    for (const [m, { value }] of [
      [q, made.dq],
      [k, made.dk],
      [v, made.dv],
    ] as const) {
      for (let i = 0; i < m.data.length; i += Math.max(13, m.data.length >> 5)) {
        const held = m.data[i] as number;
        const h = 1e-5;
        m.data[i] = held + h;
        const above = loss();
        m.data[i] = held - h;
        const difference = (above - loss()) / (2 * h);
        m.data[i] = held;
        expect(Math.abs(difference - (value.data[i] as number))).toBeLessThan(1e-7);
      }
    }
  });
});
