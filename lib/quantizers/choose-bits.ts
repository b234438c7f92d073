import { fail } from '../core/errors.js';

/** What an item costs with each of its options, and what that takes. */
export interface BitChoice {
  /** Not negative, by option. */
  readonly costs: readonly number[];
  /** By option, in one unit with the budget. */
  readonly sizes: readonly number[];
}

/** A step to a larger option of an item, along the lower hull of its costs. */
interface Step {
  readonly item: number;
  readonly option: number;
  readonly gain: number;
}

/** Options on the lower convex hull of cost by size, from the smallest on. */
function hullOf({ costs, sizes }: BitChoice): number[] {
  const order = sizes
    .map((_, i) => i)
    .sort(
      (i, j) =>
        (sizes[i] as number) - (sizes[j] as number) || (costs[i] as number) - (costs[j] as number),
    );
  const slope = (i: number, j: number) =>
    ((costs[i] as number) - (costs[j] as number)) / ((sizes[j] as number) - (sizes[i] as number));
  const hull: number[] = [];
  for (const option of order) {
    const last = hull.at(-1);
    if (last !== undefined) {
      if ((costs[option] as number) >= (costs[last] as number)) continue;
      if (sizes[option] === sizes[last]) continue;
    }
    while (hull.length >= 2) {
      const [before, top] = [hull.at(-2) as number, hull.at(-1) as number];
      if (slope(top, option) < slope(before, top)) break;
      hull.pop();
    }
    hull.push(option);
  }
  return hull;
}

/**
 * An option for each item with a small sum of costs within a budget (the multiple-choice knapsack problem): all begin with their
 * smallest, and the step with the largest gain for its size is taken while it fits. The sum is above the least possible one by
 * no more than the gain of one step, that which does not fit first.
 * @returns the index of the option of each item
 * @throws ERR_VALUE if the smallest options exceed the budget
 */
export function chooseBits(op: string, items: readonly BitChoice[], budget: number): number[] {
  const hulls = items.map(hullOf);
  const chosen = hulls.map((hull) => hull[0] as number);
  const sizeOf = (item: number, option: number) => items[item]?.sizes[option] as number;
  let used = chosen.reduce((sum, option, item) => sum + sizeOf(item, option), 0);
  if (used > budget) {
    fail('ERR_VALUE', op, 'budget', `at least ${used} for the smallest options`, String(budget));
  }
  const steps = hulls.flatMap((hull, item) =>
    hull.slice(1).map((option, i): Step => {
      const from = hull[i] as number;
      const { costs } = items[item] as BitChoice;
      const gain = (costs[from] as number) - (costs[option] as number);
      return { item, option, gain: gain / (sizeOf(item, option) - sizeOf(item, from)) };
    }),
  );
  steps.sort((a, b) => b.gain - a.gain);
  const stuck = new Set<number>();
  for (const { item, option } of steps) {
    if (stuck.has(item)) continue;
    const more = sizeOf(item, option) - sizeOf(item, chosen[item] as number);
    if (used + more > budget) {
      stuck.add(item);
      continue;
    }
    used += more;
    chosen[item] = option;
  }
  return chosen;
}
