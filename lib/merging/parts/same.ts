import { fail } from '../../core/errors.js';
import type { LoraUpdate, MergeCall } from '../definition/definition.js';

const kOp = 'combineAdapters';

type Layer = Pick<MergeCall<object>, 'updates' | 'module'>;

function requireSame(
  { updates, module }: Layer,
  what: string,
  of: (update: LoraUpdate) => number,
  why: string,
): number {
  const values = updates.map(of);
  const [first = 0] = values;
  if (values.some((value) => value !== first)) {
    fail(
      'ERR_VALUE',
      kOp,
      `${what} of ${module}`,
      `the same in all adapters (${why})`,
      values.join(', '),
    );
  }
  return first;
}

/** The rank of all adapters. @throws ERR_VALUE */
export const sameRank = (layer: Layer, instead = 'cat and svd take different ones'): number =>
  requireSame(layer, 'r', ({ r }) => r, instead);

/** The scaling of all adapters. @throws ERR_VALUE */
export const sameScaling = (layer: Layer): number =>
  requireSame(layer, 'loraAlpha / r', ({ scaling }) => scaling, 'A and B are summed apart');
