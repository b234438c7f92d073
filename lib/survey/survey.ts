import { fail } from '../core/errors.js';
import { suggestion } from '../core/suggestion.js';
import type { SurveyGroup, SurveyRow } from './definition/definition.js';
import { applications } from './groups/applications.js';
import { background } from './groups/background.js';
import { bottleneck } from './groups/bottleneck.js';
import { experts } from './groups/experts.js';
import { learning } from './groups/learning.js';
import { lowRank } from './groups/low-rank.js';
import { manualMixtures } from './groups/manual-mixtures.js';
import { parallel } from './groups/parallel.js';
import { parameters } from './groups/parameters.js';
import { privacy } from './groups/privacy.js';
import { quantized } from './groups/quantized.js';
import { ranks } from './groups/ranks.js';
import { startsAndSteps } from './groups/starts-and-steps.js';
import { structure } from './groups/structure.js';

/** The methods of the LoRA survey (Mao et al., arXiv:2407.11046) and later ones, in the order of docs/adapters.md. */
export const surveyGroups: readonly SurveyGroup[] = [
  background,
  bottleneck,
  ranks,
  learning,
  manualMixtures,
  experts,
  parameters,
  quantized,
  parallel,
  privacy,
  applications,
  lowRank,
  structure,
  startsAndSteps,
];

/** All rows of {@link surveyGroups}. */
export const surveyMethods: readonly SurveyRow[] = surveyGroups.flatMap(({ rows }) => rows);

/**
 * A published method by its name, as `lowrank finetune --method` takes it.
 * @example surveyMethod('pissa').run // { adapter: 'lora', init: 'pissa' }
 * @throws LowrankError `ERR_VALUE` with the nearest name
 */
export function surveyMethod(name: string): SurveyRow {
  return surveyMethodNamed('surveyMethod', 'name', name);
}

/** @throws ERR_VALUE */
export function surveyMethodNamed(op: string, operand: string, name: string): SurveyRow {
  const own = name.replaceAll('_', '-');
  const found = surveyMethods.find(({ method }) => method === own);
  if (found !== undefined) return found;
  const names = surveyMethods.map(({ method }) => method);
  const expected = 'a name that "lowrank methods" lists';
  return fail(
    'ERR_VALUE',
    op,
    operand,
    expected,
    `${JSON.stringify(name)}${suggestion(own, names)}`,
  );
}

/**
 * The command that trains a method, if it has one.
 * @example
 * const rows = surveyMethods.filter((row) => surveyCommand(row) === undefined);
 */
export function surveyCommand({ method, run }: SurveyRow): string | undefined {
  if (run === undefined) return undefined;
  const { example } = run;
  return `lowrank finetune --method ${method}${example === undefined ? '' : ` ${example}`}`;
}
