/**
 * Random numbers that depend on a seed and on their purpose, never on earlier draws: a resumed run
 * needs no generator state, only its step.
 */

/** A 32-bit hash of numbers and texts. Every input bit affects every bit of the result. */
export function hash32(...parts: readonly (number | string)[]): number {
  let h = 0x9e3779b9;
  const mix = (word: number) => {
    h = Math.imul(h ^ word, 0x85ebca6b);
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
    h ^= h >>> 16;
  };
  for (const part of parts) {
    if (typeof part === 'string') {
      for (let i = 0; i < part.length; i++) mix(part.charCodeAt(i));
    } else {
      mix((part % 2 ** 32) | 0);
      mix(Math.floor(part / 2 ** 32) | 0);
    }
    mix(parts.length);
  }
  return h >>> 0;
}

/**
 * A generator of numbers in [0, 1) with 32 bits each (sfc32).
 * @param parts identify the sequence
 */
export function uniform(...parts: readonly (number | string)[]): () => number {
  let a = hash32(...parts, 'a');
  let b = hash32(...parts, 'b');
  let c = hash32(...parts, 'c');
  let counter = 1;
  const next = () => {
    const sum = (a + b + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21) | (c >>> 11)) + sum;
    return (sum >>> 0) / 2 ** 32;
  };
  for (let i = 0; i < 12; i++) next();
  return next;
}

/** The numbers 0 to n - 1 in an order that the parts determine (Fisher-Yates). */
export function permutation(n: number, ...parts: readonly (number | string)[]): Uint32Array {
  const order = Uint32Array.from({ length: n }, (_, i) => i);
  const random = uniform(...parts);
  for (let i = n - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    const kept = order[i] as number;
    order[i] = order[j] as number;
    order[j] = kept;
  }
  return order;
}
