import type { RefusedSetting } from '../../core/refused-setting.js';
import type { RulePass } from '../definition/run.js';

const kParts = 10;

const widthOf = (share: number): number => Math.round(share * kParts);

/** The sequences that are trained on, where tenths of them are kept for validation. */
export const trainingPart = (validation: number): RulePass => ({
  part: 0,
  parts: kParts,
  width: kParts - widthOf(validation),
});

/** The sequences that are kept for validation. */
export const validationPart = (validation: number): RulePass => ({
  part: kParts - widthOf(validation),
  parts: kParts,
  width: widthOf(validation),
});

/** Refuses what is no share of whole tenths between none and all. */
export function noSplit(name: string, share: number): RefusedSetting | undefined {
  const width = widthOf(share);
  if (width >= 1 && width < kParts && Math.abs(share * kParts - width) < 1e-9) return undefined;
  return [name, 'whole tenths, from 0.1 to 0.9', String(share)];
}
