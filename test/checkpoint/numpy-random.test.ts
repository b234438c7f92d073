// NumPy's default generator, against values that NumPy 2.2 gave.
import { describe, expect, it } from 'vitest';
import { NumpyRandom } from '../../lib/index.js';

/** Seed, six draws of 32 bits, choice(101, 12), the first of choice(10001, 300) and their sum, ... */
const CASES = [
  [
    0,
    [3653403231, 2735729615, 2195314465, 1158725112, 1322117304, 175979945],
    [76, 1, 47, 57, 28, 17, 25, 3, 64, 80, 92, 7],
    [8050, 8343, 4030, 7665, 7985, 5759],
    1584241,
    [4, 19, 6, 2, 13, 16, 3, 11, 10, 8, 0, 12, 7, 5, 18, 17, 14, 9, 1, 15],
    [3, 6, 4, 0, 3, 2, 4, 1],
    [1432, 2618, 562, 46, 2847],
  ],
  [
    42,
    [383329928, 3324115917, 2811363265, 1884968545, 1859786276, 3687649986],
    [40, 95, 70, 52, 60, 81, 8, 93, 9, 67, 98, 19],
    [209, 2761, 4259, 8247, 5053, 5290],
    1489307,
    [15, 9, 14, 7, 12, 10, 6, 19, 3, 0, 16, 5, 11, 18, 2, 4, 17, 1, 13, 8],
    [6, 0, 4, 0, 3, 4, 1, 2],
    [2342, 554, 1243, 780, 2142],
  ],
  [
    4294967301,
    [568244433, 3325181635, 3342468483, 2021738529, 3773568960, 2988783320],
    [66, 70, 81, 52, 82, 53, 43, 57, 11, 97, 71, 79],
    [109, 4554, 2658, 5499, 5856, 8509],
    1548504,
    [15, 5, 11, 12, 19, 13, 2, 16, 9, 14, 7, 10, 4, 6, 8, 0, 1, 18, 3, 17],
    [0, 5, 4, 1, 3, 4, 2, 0],
    [1651, 1541, 2616, 2291, 808],
  ],
  [
    9007199254740991,
    [265226389, 3376995804, 3554191505, 2604052580, 3615778363, 2309015144],
    [78, 5, 42, 71, 56, 15, 54, 51, 10, 76, 72, 79],
    [5800, 9800, 1514, 9456, 5622, 4778],
    1536720,
    [2, 7, 9, 16, 1, 10, 12, 0, 14, 6, 18, 5, 19, 3, 11, 15, 13, 8, 4, 17],
    [0, 5, 4, 3, 1, 4, 2, 0],
    [601, 918, 109, 2470, 1888],
  ],
] as const;

const counting = (n: number): Int32Array => Int32Array.from({ length: n }, (_, i) => i);

describe.each(CASES)('seed %d', (seed, bits, chosen, many, sum, order, after, long) => {
  it('has the bits of the stream', () => {
    const random = new NumpyRandom(seed);
    expect(bits.map(() => random.bits())).toEqual(bits);
  });

  it('chooses few of many and a share of many, each once', () => {
    expect([...new NumpyRandom(seed).choice(101, 12)]).toEqual(chosen);
    const all = new NumpyRandom(seed).choice(10_001, 300);
    expect([...all.slice(0, 6)]).toEqual(many);
    expect(all.reduce((total, value) => total + value, 0)).toBe(sum);
    expect(new Set(all).size).toBe(300);
  });

  it('shuffles, also in the middle of a stream', () => {
    expect([...new NumpyRandom(seed).shuffle(counting(20))]).toEqual(order);
    expect([...new NumpyRandom(seed).shuffle(counting(3000)).slice(0, 5)]).toEqual(long);
    const random = new NumpyRandom(seed);
    expect([...random.choice(7, 3), ...random.shuffle(counting(5))]).toEqual(after);
  });
});

describe('NumpyRandom', () => {
  it('draws each of few values equally often', () => {
    const random = new NumpyRandom(1);
    const counts = new Int32Array(3);
    for (let i = 0; i < 3000; i++) {
      const value = random.upTo(2);
      counts[value] = (counts[value] as number) + 1;
    }
    for (const count of counts) expect(Math.abs(count - 1000)).toBeLessThan(100);
    expect(random.upTo(0)).toBe(0);
  });

  it.each([
    [() => new NumpyRandom(-1), 'ERR_VALUE', /seed/],
    [() => new NumpyRandom(0.5), 'ERR_VALUE', /seed/],
    [() => new NumpyRandom('1' as never), 'ERR_TYPE', /seed/],
    [() => new NumpyRandom(0).choice(3, 4), 'ERR_VALUE', /size must be at most n \(3\), got 4/],
    [() => new NumpyRandom(0).choice(-1, 0), 'ERR_VALUE', /n must be/],
  ])('%s is %s', (call, code, text) => {
    expect(call).toThrow(expect.objectContaining({ code, message: expect.stringMatching(text) }));
  });
});
