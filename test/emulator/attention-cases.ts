/** Attention: every kernel with ragged tiles, tiles that nobody sees, and operands of every form. */
import { attention, attentionBackward, type DType, Indices, Tensor } from '../../lib/index.js';
import { caseOf, type Form } from '../conformance/attention-case.js';
import { normalMatrix } from '../oracle/inputs.js';
import { hashOf, type KernelCase, misplaced } from './case-parts.js';

interface Pass extends Form {
  readonly T: number;
  readonly dtype: DType;
  /** One element past a boundary of 16 bytes. */
  readonly placed?: boolean;
  /** Of the gradient of o. */
  readonly from?: DType;
}

/** Two tiles of queries and of keys at least, the last ones ragged; a width that is no whole piece. */
const PASSES: readonly Pass[] = (['bf16', 'f16', 'f32'] as const).flatMap((dtype) => [
  { name: 'rope', heads: 3, kvHeads: 1, headDim: 64, rot: 64, T: 70, dtype },
  { name: 'window', heads: 2, kvHeads: 2, headDim: 20, rot: 12, window: 9, T: 150, dtype },
  { name: 'sinks', heads: 4, kvHeads: 2, headDim: 24, T: 45, dtype, sinks: [1, -2, 30, 0.5] },
  { name: 'rope', heads: 2, kvHeads: 1, headDim: 128, rot: 128, sequences: 2, T: 67, dtype },
  { name: 'cap', heads: 1, kvHeads: 1, headDim: 256, softcap: 2, rot: 32, T: 67, dtype },
]);
const FORMS: readonly Pass[] = [
  {
    name: 'documents',
    heads: 2,
    kvHeads: 1,
    headDim: 24,
    rot: 24,
    T: 160,
    dtype: 'bf16',
    documents: [70, 1, 89],
  },
  {
    name: 'documents',
    heads: 2,
    kvHeads: 1,
    headDim: 34,
    rot: 8,
    T: 90,
    dtype: 'f32',
    documents: [5, 60, 25],
    window: 30,
  },
  {
    name: 'placed',
    heads: 2,
    kvHeads: 1,
    headDim: 32,
    rot: 32,
    T: 9,
    dtype: 'bf16',
    placed: true,
    from: 'f32',
  },
  {
    name: 'placed',
    heads: 2,
    kvHeads: 1,
    headDim: 8,
    rot: 4,
    T: 9,
    dtype: 'f32',
    placed: true,
    from: 'f16',
  },
  {
    name: 'fused',
    heads: 2,
    kvHeads: 1,
    headDim: 66,
    rot: 66,
    T: 33,
    dtype: 'f16',
    fused: true,
    from: 'bf16',
  },
  { name: 'fused', heads: 4, kvHeads: 2, headDim: 64, T: 40, dtype: 'bf16', fused: true },
];

const label = ({ name, dtype, headDim, T, heads, kvHeads }: Pass): string =>
  `attention ${name} ${dtype} [${T}, ${heads}, ${kvHeads}, ${headDim}]`;

function passes(): KernelCase[] {
  return [...PASSES, ...FORMS].map((pass) => ({
    name: label(pass),
    // In 16 bits the weights of a gradient are rounded, and so is o, which each device has of its own.
    ...(pass.dtype === 'f32' ? {} : { allowed: 3 }),
    async run(device) {
      const { T, dtype, placed, from } = pass;
      const c = caseOf(pass, T, dtype, device);
      const at = async (t: Tensor): Promise<Tensor> => (placed ? misplaced(t) : t);
      const fields = await Promise.all(
        Object.entries(c.input).map(async ([key, t]) => [key, await at(t)] as const),
      );
      const input = Object.fromEntries(fields) as typeof c.input;
      const shape = c.shape.rope ? { ...c.shape, rope: await at(c.shape.rope) } : c.shape;
      const { o, lse } = attention(input, { ...shape, ...c.sinks });
      const dO = await at(from === undefined ? c.dOTensor : c.dOTensor.to({ dtype: from }));
      const made = attentionBackward(dO, input, { ...shape, o, lse: lse as Tensor });
      return hashOf([o, lse, ...Object.values(made)]);
    },
  }));
}

/** Rows behind a cache: of whole pieces, and of others. */
function steps(): KernelCase[] {
  return (['bf16', 'f32'] as const).flatMap((dtype) =>
    [64, 18].map((headDim) => ({
      name: `attention cache ${dtype} [${headDim}]`,
      async run(device) {
        const form = { name: '', heads: 2, kvHeads: 1, headDim, rot: 16, sinks: [0.5, -1] };
        const c = caseOf(form, 78, dtype, device);
        const cached = () => Tensor.zeros([80, headDim], { dtype, device });
        const cache = { k: cached(), v: cached() };
        const results: Tensor[] = [];
        let past = 0;
        for (const rows of [70, 1, 7]) {
          const part = (seed: number, cols: number) =>
            Tensor.from(normalMatrix(rows, cols, seed).data, [rows, cols], { dtype, device });
          const input = {
            q: part(past, 2 * headDim),
            k: part(past + 1, headDim),
            v: part(past + 2, headDim),
          };
          results.push(
            attention(input, { ...c.shape, ...c.sinks, keep: false, cache: { ...cache, past } }).o,
          );
          past += rows;
        }
        return hashOf([...results, cache.k, cache.v]);
      },
    })),
  );
}

/** Documents that do not ascend: the op fails, and no kernel leaves its operands. */
function refused(): KernelCase {
  return {
    name: 'attention documents that do not ascend',
    async run(device) {
      const q = Tensor.zeros([70, 16], { device });
      const lists = [Array.from({ length: 70 }, (_, t) => 69 - t), new Array<number>(70).fill(69)];
      const messages: string[] = [];
      for (const list of lists) {
        const documents = Indices.from(list, { limit: 70, device });
        const { o, lse } = attention({ q, k: q, v: q }, { heads: 1, documents });
        const options = { heads: 1, documents, o, lse: lse as Tensor };
        const { dq } = attentionBackward(q, { q, k: q, v: q }, options);
        for (const made of [o, dq]) {
          messages.push(
            await made.read().then(
              () => 'no error',
              (error: Error) => error.message,
            ),
          );
        }
      }
      return messages.join(' ');
    },
  };
}

export function attentionCases(): KernelCase[] {
  return [...passes(), ...steps(), refused()];
}
