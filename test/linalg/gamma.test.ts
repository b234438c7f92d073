// ln Γ and its derivatives against values and identities that define them.
import { describe, expect, it } from 'vitest';
import { logGamma } from '../../lib/linalg/gamma.js';

const EULER = 0.5772156649015329;
/** Within the roundings of some dozen terms, the largest of the given size. */
const near = (mine: number, expected: number, size = expected): void => {
  expect(Math.abs(mine - expected)).toBeLessThan(1e-14 * Math.max(1, Math.abs(size)));
};

describe('logGamma', () => {
  it('has the values of factorials and halves', () => {
    let factorial = 1;
    for (let n = 1; n <= 20; n++) {
      near(logGamma(n).value, Math.log(factorial));
      factorial *= n;
    }
    near(logGamma(0.5).value, 0.5 * Math.log(Math.PI));
  });

  it('has the derivatives at 1 and 1/2', () => {
    near(logGamma(1).digamma, -EULER);
    near(logGamma(0.5).digamma, -EULER - 2 * Math.LN2);
    near(logGamma(1).trigamma, Math.PI ** 2 / 6);
    near(logGamma(0.5).trigamma, Math.PI ** 2 / 2);
  });

  it.each([1e-6, 0.01, 0.3, 2.7, 11.9, 12, 12.1, 150, 1e6])('steps from %d to one more', (x) => {
    const [at, next] = [logGamma(x), logGamma(x + 1)];
    near(next.value, at.value + Math.log(x), at.value);
    near(next.digamma, at.digamma + 1 / x, 1 / x);
    near(next.trigamma, at.trigamma - 1 / x ** 2, at.trigamma);
  });

  it.each([0.2, 1.3, 7, 40])('doubles at %d as Legendre says', (x) => {
    const [one, half, two] = [logGamma(x), logGamma(x + 0.5), logGamma(2 * x)];
    near(one.value + half.value, (1 - 2 * x) * Math.LN2 + 0.5 * Math.log(Math.PI) + two.value);
    near(one.digamma + half.digamma, 2 * (two.digamma - Math.LN2));
    near(one.trigamma + half.trigamma, 4 * two.trigamma);
  });
});
