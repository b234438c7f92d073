/**
 * What `@genai-fi/nanogpt` expects of a browser, for Node: a window, and on Node 20 the `reduce` of iterators. Import it
 * before the package.
 */

globalThis.navigator ??= { userAgent: 'node', gpu: undefined };
if (globalThis.window === undefined) {
  const document = { createElement: () => ({ getContext: () => null }) };
  globalThis.window = Object.assign(Object.create(globalThis), { document });
  globalThis.document = document;
}

const iterators = Object.getPrototypeOf(Object.getPrototypeOf(new Map().values()));
iterators.reduce ??= function reduce(step, initial) {
  let result = initial;
  for (const value of this) result = step(result, value);
  return result;
};

/** Makes `Math.random` a sequence that `seed` determines, so that two runs draw the same. */
export function seedRandom(seed) {
  let state = seed >>> 0;
  Math.random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}
