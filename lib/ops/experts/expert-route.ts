import { type NativeHandle, native } from '../../core/binding.js';
import type { RouteHandles } from '../../core/binding-model.js';
import type { Device } from '../../core/device.js';
import { fail, markClass, notConstructed, wrongType } from '../../core/errors.js';
import { checkInteger, readOptions } from '../../core/validate.js';
import { Indices } from '../model/indices.js';

/** Experts of a layer at most. */
export const MOST_EXPERTS = 1024;

/** How {@link routeRows} works. */
export interface RouteOptions {
  /** Experts of each row, from 1 to `experts`. */
  k: number;
  /** E, the experts of the layer, from 1 to 1024. */
  experts: number;
}

/**
 * The slots of rows that go to experts: a slot is one pair of a row m and its j-th expert. Slots are sorted by expert and
 * within an expert by row. {@link routeRows} makes it on the device. The memory is freed by
 * {@link ExpertRoute.dispose}, or with the scope.
 */
export class ExpertRoute implements Disposable {
  /** [rows · k]: of slot s the pair `m · k + j`. */
  readonly order: Indices;
  /** [rows · k]: of the pair `m · k + j` the slot. */
  readonly inverse: Indices;
  /** [experts + 1]: the first slot of each expert; slots from `offsets[experts]` on are dropped. */
  readonly offsets: Indices;
  readonly rows: number;
  readonly k: number;
  readonly experts: number;

  /** @internal use {@link routeRows} */
  constructor(parts: readonly [Indices, Indices, Indices], rows: number, counts: RouteOptions) {
    if (!Array.isArray(parts)) throw notConstructed('ExpertRoute', 'routeRows');
    [this.order, this.inverse, this.offsets] = parts;
    this.rows = rows;
    this.k = counts.k;
    this.experts = counts.experts;
  }

  /** rows · k */
  get slots(): number {
    return this.rows * this.k;
  }

  get device(): Device {
    return this.order.device;
  }

  get disposed(): boolean {
    return this.order.disposed;
  }

  /** Frees the memory once no queued op needs it. Twice is a no-op. */
  dispose(): void {
    for (const part of [this.order, this.inverse, this.offsets]) part.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
markClass(ExpertRoute, 'ExpertRoute');

/** The live handles of a route. @throws ERR_TYPE · ERR_DISPOSED */
export function routeHandles(op: string, route: unknown): RouteHandles {
  if (!(route instanceof ExpertRoute)) {
    throw wrongType(op, 'route', 'an ExpertRoute (routeRows makes it)', route);
  }
  return [
    Indices.handleOf(route.order, op, 'route'),
    Indices.handleOf(route.inverse, op, 'route'),
    Indices.handleOf(route.offsets, op, 'route'),
    route.k,
  ];
}

/**
 * Sorts the pairs of rows and their experts by expert, stable by row, on the device: no host reads it, and what follows
 * takes it from there. A pair whose expert is negative or not below E is dropped: its slot comes last, and no expert
 * sees it. With c the number of slots before it, in the order of experts and then of pairs `m · k + j`:
 *
 * `order[c] = m · k + j`, `inverse[m · k + j] = c`, `offsets[e]` = the number of pairs of experts below e
 *
 * (Shazeer et al., Outrageously Large Neural Networks, 2017, arXiv:1701.06538). The result is the same on every device.
 * @param chosen [M · k] indices, row by row; {@link selectExperts} makes them
 * @throws ERR_TYPE, ERR_VALUE (k or experts out of range), ERR_SHAPE (k does not divide them), ERR_DISPOSED, ERR_OOM
 * @example
 * const { experts, gates } = selectExperts(logits, { k: 2 });
 * const route = routeRows(experts, { k: 2, experts: 8 });
 */
export function routeRows(chosen: Indices, options: RouteOptions): ExpertRoute {
  const op = 'routeRows';
  const handle = Indices.handleOf(chosen, op, 'experts');
  const given = readOptions(op, options, { k: true, experts: true });
  const experts = checkInteger(op, 'experts', given.experts, 1, MOST_EXPERTS);
  const k = checkInteger(op, 'k', given.k, 1, experts);
  const slots = chosen.length;
  if (slots % k !== 0) fail('ERR_SHAPE', op, 'experts', `a multiple of k = ${k}`, String(slots));
  const { device } = chosen;
  const [order, inverse, offsets] = native(op, (raw) => raw.routeRows(handle, k, experts));
  const whole = (part: NativeHandle, length: number, limit: number) =>
    Indices.adopt(part, { length, limit, device });
  return new ExpertRoute(
    [
      whole(order, slots, slots),
      whole(inverse, slots, slots),
      whole(offsets, experts + 1, slots + 1),
    ],
    slots / k,
    { k, experts },
  );
}
