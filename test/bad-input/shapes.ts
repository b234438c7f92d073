/** Shapes that no tensor has, and zero-element tensors whose products are beyond any memory. */
import { type Device, Tensor } from '../../lib/index.js';
import { type BadCase, type BadClass, bad, hostile, impostors } from './harness.js';

/** `make` is a call that takes a shape; each bad one must be refused with its code. */
export function badShapes(make: (shape: unknown) => unknown, model: object): BadCase[] {
  const list: [BadClass, string, string, unknown][] = [
    [2, 'null as a dimension', 'ERR_TYPE', [2, null]],
    [2, 'a hole', 'ERR_TYPE', Object.assign([2], { length: 2 })],
    [3, 'a string dimension', 'ERR_TYPE', [2, '3']],
    [3, 'a bigint dimension', 'ERR_TYPE', [2n]],
    [3, 'a nested array', 'ERR_TYPE', [[2, 3]]],
    [4, 'an Int32Array', 'ERR_TYPE', Int32Array.of(2, 3)],
    [15, 'a negative dimension', 'ERR_SHAPE', [2, -3]],
    [15, 'two negative dimensions', 'ERR_SHAPE', [-2, -3]],
    [16, 'a fraction', 'ERR_SHAPE', [2, 1.5]],
    [17, 'NaN', 'ERR_SHAPE', [Number.NaN]],
    [17, 'infinity', 'ERR_SHAPE', [2, Number.POSITIVE_INFINITY]],
    [18, '2^53', 'ERR_SHAPE', [2 ** 53]],
    [18, '2^34', 'ERR_SHAPE', [2 ** 34]],
    [19, '2^17 · 2^17', 'ERR_SHAPE', [2 ** 17, 2 ** 17]],
    [20, '2^27 · 2^27', 'ERR_SHAPE', [2 ** 27, 2 ** 27]],
    [21, '2^32 · 2^32', 'ERR_SHAPE', [2 ** 32, 2 ** 32]],
    [21, '2^33 · 2^33 · 2^33', 'ERR_SHAPE', [2 ** 33, 2 ** 33, 2 ** 33]],
  ];
  const cases = list.map(([kind, what, code, shape]) =>
    bad(kind, `shape: ${what}`, code, () => make(shape)),
  );
  // Anything but an array.
  for (const [kind, what, value] of impostors(model)) {
    if (Array.isArray(value)) continue;
    cases.push(bad(kind, `shape: ${what}`, 'ERR_TYPE', () => make(value)));
  }
  const shrinking = [2, 3];
  Object.defineProperty(shrinking, 0, {
    get() {
      shrinking.length = 1;
      return 2;
    },
  });
  cases.push(
    bad(9, 'shape: shrunk by its own getter', 'ERR_TYPE', () => make(shrinking)),
    bad(23, 'shape: 33 dimensions', 'ERR_SHAPE', () => make(new Array(33).fill(1))),
    bad(23, 'shape: a proxy that claims to be endless', 'ERR_SHAPE', () =>
      make(new Proxy([], { get: (_, key) => (key === 'length' ? Number.POSITIVE_INFINITY : 1) })),
    ),
  );
  const trap = [2, 3];
  Object.defineProperty(trap, 1, Object.getOwnPropertyDescriptor(hostile('1'), '1') ?? {});
  cases.push(bad(33, 'shape: a getter that throws', 'HOSTILE', () => make(trap)));
  return cases;
}

/**
 * x [M, 0] and w [N, 0] hold nothing, but x · wᵀ would hold M · N. `product` makes the call.
 */
export function hugeProducts(
  device: Device,
  product: (x: Tensor, w: Tensor) => unknown,
): BadCase[] {
  const call = (M: number, N: number) => () =>
    product(Tensor.zeros([M, 0], { device }), Tensor.zeros([N, 0], { device }));
  return [
    bad(34, 'a result of 2^36 elements', 'ERR_OOM', call(2 ** 18, 2 ** 18)),
    bad(18, 'a result of 2^40 elements from a dimension of 2^39', 'ERR_OOM', call(2 ** 39, 2)),
    bad(19, 'a result of 2^37 elements', 'ERR_OOM', call(2 ** 18, 2 ** 19)),
    bad(20, 'a result of 2^55 elements', 'ERR_OOM', call(2 ** 27, 2 ** 28)),
    bad(21, 'a result of 2^64 elements', 'ERR_SHAPE', call(2 ** 32, 2 ** 32)),
    // The product is 2^64 + 1: in 64 bits, one element.
    bad(21, 'a result of 2^64 + 1 elements', 'ERR_SHAPE', call(274177, 67280421310721)),
    bad(21, 'a result of 2^65 + 2^33 elements', 'ERR_SHAPE', call(2 ** 32, 2 ** 33 + 2)),
  ];
}
