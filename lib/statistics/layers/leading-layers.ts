import { fail, wrongType } from '../../core/errors.js';
import { checkFinite } from '../../core/validate.js';

/**
 * The layers that matter most: in descending order of a statistic until they have a share of its sum (LoRA-drop: Zhou and
 * others, LoRA-drop: Efficient LoRA Parameter Pruning based on Output Evaluation, 2024, arXiv:2402.07721, with the `outputs` of
 * {@link observe}; the other layers then share one adapter).
 * @param statistics at least 0, by module; equal ones keep their order
 * @param share above 0, up to 1
 * @returns modules, the largest first
 * @throws ERR_TYPE · ERR_VALUE
 * @example
 * const found = await observe(decoder, data, { wanted: ['outputs'], adapters });
 * const kept = leadingLayers(new Map([...found].map(([name, { outputs }]) => [name, outputs])), 0.9);
 */
export function leadingLayers(
  statistics: ReadonlyMap<string, number | undefined>,
  share: number,
): string[] {
  const op = 'leadingLayers';
  if (!(statistics instanceof Map)) throw wrongType(op, 'statistics', 'a Map', statistics);
  const wanted = checkFinite(op, 'share', share);
  if (wanted <= 0 || wanted > 1) fail('ERR_VALUE', op, 'share', 'above 0, up to 1', String(wanted));
  const all = [...statistics].map(([name, value]): [string, number] => {
    const number = checkFinite(op, `statistics of ${name}`, value);
    if (number < 0) fail('ERR_VALUE', op, `statistics of ${name}`, 'at least 0', String(number));
    return [name, number];
  });
  const total = all.reduce((sum, [, value]) => sum + value, 0);
  all.sort(([, a], [, b]) => b - a);
  const kept: string[] = [];
  let sum = 0;
  for (const [name, value] of all) {
    // The last layer brings the sum to the total, whatever was rounded.
    if (sum >= wanted * total && kept.length > 0) break;
    kept.push(name);
    sum += value;
  }
  return kept;
}
