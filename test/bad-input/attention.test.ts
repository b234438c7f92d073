// Bad input to attention and attentionBackward.
import { describe, expect, it } from 'vitest';
import {
  attention,
  attentionBackward,
  type Device,
  Indices,
  scope,
  Tensor,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { type BadCase, bad, callWith, checkCases, covered, hostile, impostors } from './harness.js';

const HOSTS: readonly Device[] = DEVICES.filter((device) => !device.startsWith('cuda'));
const [B, T, HEADS, KV, D] = [2, 5, 4, 2, 6] as const;

describe.each(HOSTS)('bad input on %s', (device) => {
  const other = DEVICES.find((candidate) => candidate !== device) as (typeof DEVICES)[number];

  it('attention and attentionBackward', async () => {
    await scope(async () => {
      const random = (shape: readonly number[], seed: number): Tensor =>
        Tensor.randn([...shape], { seed, device });
      const zeros = (
        shape: readonly number[],
        dtype: 'f32' | 'bf16' = 'f32',
        on: Device = device,
      ) => Tensor.zeros([...shape], { dtype, device: on });
      const q = random([B, T, HEADS * D], 1);
      const k = random([B, T, KV * D], 2);
      const v = random([B, T, KV * D], 3);
      const dO = random([B, T, HEADS * D], 4);
      const rope = random([T + 4, D], 5);
      const documents = Indices.from([0, 0, 2, 2, 2, 0, 1, 1, 1, 1], { limit: T, device });
      const cache = { k: zeros([B, T + 2, KV * D]), v: zeros([B, T + 2, KV * D]), past: 2 };
      const input = { q, k, v };
      const shape = { heads: HEADS, kvHeads: KV, rope, window: 3, softcap: 2 };
      const { o, lse } = attention(input, { ...shape, documents });
      const saved = { o, lse: lse as Tensor };
      const gone = zeros([B, T, HEADS * D]);
      gone.dispose();

      const forward = (wrong: object, options: object = {}) =>
        callWith(attention, { ...input, ...wrong }, { ...shape, ...options });
      const backward = (dy: unknown, wrong: object = {}, options: object = {}) =>
        callWith(attentionBackward, dy, { ...input, ...wrong }, { ...shape, ...saved, ...options });
      /** The same of both passes. */
      const both = (
        kind: BadCase['kind'],
        what: string,
        code: string,
        wrong: object,
        options: object = {},
      ): BadCase[] => [
        bad(kind, `forward, ${what}`, code, () => forward(wrong, options)),
        bad(kind, `backward, ${what}`, code, () => backward(dO, wrong, options)),
      ];
      const option = (kind: BadCase['kind'], code: string, options: object): BadCase[] =>
        both(kind, JSON.stringify(options) ?? 'options', code, {}, options);
      const cached = (kind: BadCase['kind'], what: string, code: string, wrong: object): BadCase =>
        bad(kind, `cache, ${what}`, code, () => forward({}, { cache: { ...cache, ...wrong } }));

      const cases: BadCase[] = [
        bad(1, 'forward, no arguments', 'ERR_TYPE', () => callWith(attention)),
        bad(1, 'backward, no arguments', 'ERR_TYPE', () => callWith(attentionBackward)),
        bad(1, 'no options', 'ERR_TYPE', () => callWith(attention, input)),
        bad(3, 'a tensor as input', 'ERR_TYPE', () => callWith(attention, q, shape)),
        bad(3, 'a number as input', 'ERR_TYPE', () => callWith(attention, 3, shape)),
        bad(2, 'options: null', 'ERR_TYPE', () => callWith(attention, input, null)),
        bad(35, 'an unknown option', 'ERR_VALUE', () => forward({}, { causal: true })),
        bad(35, 'q and qkv', 'ERR_VALUE', () => forward({ qkv: q })),
        bad(33, 'a getter that throws', 'HOSTILE', () =>
          callWith(attention, input, hostile('heads')),
        ),
        bad(33, 'an input whose getter throws', 'HOSTILE', () =>
          callWith(attention, hostile('qkv'), shape),
        ),
        ...impostors(q).flatMap(([kind, what, value]) => [
          ...both(kind, `q: ${what}`, 'ERR_TYPE', { q: value }),
          ...both(kind, `k: ${what}`, 'ERR_TYPE', { k: value }),
          ...both(kind, `v: ${what}`, 'ERR_TYPE', { v: value }),
          bad(kind, `dO: ${what}`, 'ERR_TYPE', () => backward(value)),
          bad(kind, `o: ${what}`, 'ERR_TYPE', () => backward(dO, {}, { o: value })),
          bad(kind, `lse: ${what}`, 'ERR_TYPE', () => backward(dO, {}, { lse: value })),
          cached(kind, `k: ${what}`, 'ERR_TYPE', { k: value }),
          cached(kind, `v: ${what}`, 'ERR_TYPE', { v: value }),
          ...(value === undefined
            ? []
            : [
                ...both(kind, `rope: ${what}`, 'ERR_TYPE', {}, { rope: value }),
                ...both(kind, `documents: ${what}`, 'ERR_TYPE', {}, { documents: value }),
              ]),
        ]),
        ...both(22, 'k of other heads', 'ERR_SHAPE', { k: zeros([B, T, HEADS * D]) }),
        ...both(22, 'v of other heads', 'ERR_SHAPE', { v: zeros([B, T, D]) }),
        ...both(11, 'k of fewer rows', 'ERR_SHAPE', { k: zeros([B, T - 1, KV * D]) }),
        ...both(12, 'v of more sequences', 'ERR_SHAPE', { v: zeros([B + 1, T, KV * D]) }),
        ...both(23, 'q of one dimension', 'ERR_SHAPE', { q: zeros([HEADS * D]) }),
        ...both(14, 'q without columns', 'ERR_SHAPE', { q: zeros([B, T, 0]) }),
        ...both(22, 'columns that heads do not divide', 'ERR_SHAPE', { q: zeros([B, T, 26]) }),
        ...both(22, 'heads of 5 columns', 'ERR_SHAPE', { q: zeros([B, T, 20]) }),
        ...both(22, 'heads of 258 columns', 'ERR_SHAPE', { q: zeros([B, T, 4 * 258]) }),
        ...both(24, 'k in bf16', 'ERR_DTYPE', { k: zeros([B, T, KV * D], 'bf16') }),
        ...both(24, 'v in bf16', 'ERR_DTYPE', { v: zeros([B, T, KV * D], 'bf16') }),
        ...both(31, 'q disposed', 'ERR_DISPOSED', { q: gone }),
        ...both(32, 'k elsewhere', 'ERR_DEVICE', { k: zeros([B, T, KV * D], 'f32', other) }),
        ...option(22, 'ERR_VALUE', { kvHeads: 3 }),
        ...[0, -1, 1.5, Number.NaN, 2 ** 31].flatMap((value) => [
          ...option(15, 'ERR_VALUE', { heads: value }),
          ...option(15, 'ERR_VALUE', { kvHeads: value }),
          ...option(15, 'ERR_VALUE', { window: value }),
        ]),
        ...[null, '4', 4n].flatMap((value) =>
          ['heads', 'kvHeads', 'window', 'scale', 'softcap'].flatMap((name) =>
            both(3, `${name}: ${typeof value}`, 'ERR_TYPE', {}, { [name]: value }),
          ),
        ),
        ...option(29, 'ERR_VALUE', { scale: Number.POSITIVE_INFINITY }),
        ...option(29, 'ERR_VALUE', { softcap: Number.NaN }),
        ...both(29, 'scale beyond f32', 'ERR_VALUE', {}, { scale: 1e300 }),
        ...both(30, 'softcap: 0', 'ERR_VALUE', {}, { softcap: 0 }),
        ...both(30, 'softcap: -1', 'ERR_VALUE', {}, { softcap: -1 }),
        ...both(11, 'rope too short', 'ERR_SHAPE', {}, { rope: zeros([T - 1, D]) }),
        ...both(16, 'rope of odd columns', 'ERR_SHAPE', {}, { rope: zeros([T, 3]) }),
        ...both(12, 'rope wider than a head', 'ERR_SHAPE', {}, { rope: zeros([T, D + 2]) }),
        ...both(23, 'rope of one dimension', 'ERR_SHAPE', {}, { rope: zeros([T * D]) }),
        ...both(24, 'rope in bf16', 'ERR_DTYPE', {}, { rope: zeros([T, D], 'bf16') }),
        ...both(32, 'rope elsewhere', 'ERR_DEVICE', {}, { rope: zeros([T, D], 'f32', other) }),
        ...both(
          11,
          'documents too short',
          'ERR_SHAPE',
          {},
          {
            documents: Indices.from([0, 0], { limit: T, device }),
          },
        ),
        ...both(
          32,
          'documents elsewhere',
          'ERR_DEVICE',
          {},
          {
            documents: Indices.from(new Int32Array(B * T), { limit: T, device: other }),
          },
        ),
        bad(35, 'documents that cross', 'ERR_VALUE', () => {
          const crossed = Indices.from([0, 1, 0, 0, 0, 0, 0, 0, 0, 0], { limit: T, device });
          return attention(input, { ...shape, documents: crossed }).o.read();
        }),
        bad(3, 'keep: a number', 'ERR_TYPE', () => forward({}, { keep: 1 })),
        bad(3, 'cache: a number', 'ERR_TYPE', () => forward({}, { cache: 3 })),
        bad(2, 'cache: null', 'ERR_TYPE', () => forward({}, { cache: null })),
        bad(35, 'backward with a cache', 'ERR_VALUE', () => backward(dO, {}, { cache })),
        bad(35, 'cache and documents', 'ERR_VALUE', () => forward({}, { cache, documents })),
        cached(2, 'past: null', 'ERR_TYPE', { past: null }),
        cached(15, 'past: -1', 'ERR_VALUE', { past: -1 }),
        cached(16, 'past: a fraction', 'ERR_VALUE', { past: 0.5 }),
        cached(12, 'full', 'ERR_SHAPE', { past: 3 }),
        cached(35, 'an unknown field', 'ERR_VALUE', { future: 1 }),
        cached(22, 'k of other heads', 'ERR_SHAPE', { k: zeros([B, T + 2, D]) }),
        cached(12, 'v of another capacity', 'ERR_SHAPE', { v: zeros([B, T + 3, KV * D]) }),
        cached(23, 'k of two dimensions', 'ERR_SHAPE', { k: zeros([B * (T + 2), KV * D]) }),
        cached(24, 'v in bf16', 'ERR_DTYPE', { v: zeros([B, T + 2, KV * D], 'bf16') }),
        cached(32, 'k elsewhere', 'ERR_DEVICE', { k: zeros([B, T + 2, KV * D], 'f32', other) }),
        cached(27, 'one tensor for both', 'ERR_ALIAS', { v: cache.k }),
        bad(27, 'a cache that is an operand', 'ERR_ALIAS', () =>
          callWith(attention, input, { ...shape, rope: undefined, cache: { k, v, past: 0 } }),
        ),
        bad(11, 'rope shorter than the cache', 'ERR_SHAPE', () =>
          forward({}, { cache, rope: zeros([T + 1, D]) }),
        ),
        bad(11, 'dO of fewer rows', 'ERR_SHAPE', () => backward(zeros([B, T - 1, HEADS * D]))),
        bad(32, 'dO elsewhere', 'ERR_DEVICE', () =>
          backward(zeros([B, T, HEADS * D], 'f32', other)),
        ),
        bad(31, 'dO disposed', 'ERR_DISPOSED', () => backward(gone)),
        bad(11, 'o of fewer rows', 'ERR_SHAPE', () =>
          backward(dO, {}, { o: zeros([B, T - 1, HEADS * D]) }),
        ),
        bad(24, 'o in bf16', 'ERR_DTYPE', () =>
          backward(dO, {}, { o: zeros([B, T, HEADS * D], 'bf16') }),
        ),
        bad(12, 'lse of other heads', 'ERR_SHAPE', () =>
          backward(dO, {}, { lse: zeros([KV, B * T]) }),
        ),
        bad(24, 'lse in bf16', 'ERR_DTYPE', () =>
          backward(dO, {}, { lse: zeros([HEADS, B * T], 'bf16') }),
        ),
      ];
      await checkCases('attention', device, {
        watched: [q, k, v, dO, rope, o, saved.lse, cache.k, cache.v],
        cases,
        valid: () =>
          scope(async () => {
            const made = attention(input, { ...shape, documents });
            const options = { ...shape, documents, o: made.o, lse: made.lse as Tensor };
            const { dq, dk, dv } = attentionBackward(dO, input, options);
            return Promise.all([made.o, dq, dk, dv].map((tensor) => tensor.read()));
          }),
      });
      expect(covered(cases).size).toBeGreaterThan(20);
    });
  });
});
