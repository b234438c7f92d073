// attention and its gradients: the same bits again, for any number of threads, and for a sequence alone.
import { afterAll, describe, it } from 'vitest';
import {
  attention,
  attentionBackward,
  getThreads,
  scope,
  setThreads,
  type Tensor,
} from '../../lib/index.js';
import { exact, type Matrix, matrix } from '../oracle.js';
import { type Case, caseOf, EVERYTHING, type Form } from './attention-case.js';
import { DEVICES, tensorOf } from './operands.js';

const threadsBefore = getThreads();
afterAll(() => setThreads(threadsBefore));

const GROUPED: Form = { name: 'grouped', heads: 6, kvHeads: 2, headDim: 32, rot: 32, sequences: 2 };

describe.each(['f32', 'bf16'] as const)('the same bits, %s', (dtype) => {
  /** o, lse and gradients. */
  async function results(c: Case): Promise<Float32Array[]> {
    const { o, lse } = attention(c.input, c.shape);
    const made = attentionBackward(c.dOTensor, c.input, { ...c.shape, o, lse: lse as Tensor });
    const tensors = [o, lse as Tensor, ...Object.values(made)];
    return Promise.all(tensors.map((tensor) => tensor.read()));
  }

  it('cpu, 1, 2, 3 and 8 threads', async () => {
    await scope(async () => {
      for (const form of [GROUPED, EVERYTHING]) {
        const c = caseOf(form, 200, dtype, 'cpu');
        setThreads(1);
        const expected = await results(c);
        for (const threads of [2, 3, 8]) {
          setThreads(threads);
          for (const [i, got] of (await results(c)).entries()) {
            exact(`${threads} threads`, got, expected[i] as Float32Array);
          }
        }
      }
    });
  });

  it.each(DEVICES)('%s, a sequence alone and in a batch', async (device) => {
    await scope(async () => {
      const form = { ...GROUPED, sequences: 3 };
      const T = 77;
      const c = caseOf(form, T, dtype, device);
      const all = await results(c);
      for (const [i, again] of (await results(c)).entries()) {
        exact('once more', again, all[i] as Float32Array);
      }
      for (const b of [0, 2]) {
        const rows = (m: Matrix): Matrix =>
          matrix(T, m.cols, m.data.slice(b * T * m.cols, (b + 1) * T * m.cols));
        const on = (m: Matrix): Tensor => tensorOf(rows(m), { dtype, device });
        const alone = await results({
          ...c,
          input: { q: on(c.q), k: on(c.k), v: on(c.v) },
          dOTensor: on(c.dO),
        });
        for (const i of [0, 2, 3, 4]) {
          const got = alone[i] as Float32Array;
          const expected = all[i] as Float32Array;
          exact(`result ${i}`, got, [...expected.subarray(b * got.length, (b + 1) * got.length)]);
        }
      }
    });
  });
});
