/** `lowrank finetune --method`: published methods, each as the options that it stands for. */

import type { SurveyRow, SurveyRun } from '../../survey/definition/definition.js';
import { surveyMethodNamed } from '../../survey/survey.js';
import type { Arguments } from '../command/arguments.js';

const kOp = 'finetune';

/** A method of `--method`, and the command line with its options. */
export interface NamedRun {
  readonly name: string;
  readonly parsed: Arguments;
}

/**
 * The methods of `--method`, separated by commas. Options of the command line win over those of a method.
 * @throws UsageError · LowrankError `ERR_VALUE` for an unknown name
 */
export function readMethods(parsed: Arguments): readonly NamedRun[] | undefined {
  const text = parsed.text('method');
  if (text === undefined) return undefined;
  const adapters = parsed.text('adapter');
  if (adapters?.includes(',')) {
    throw parsed.refuse('adapter', 'one adapter beside --method', adapters);
  }
  const rows = text.split(',').map((name) => surveyMethodNamed(kOp, 'method', name.trim()));
  const twice = rows.find(({ method }, i) => rows.findIndex((row) => row.method === method) < i);
  if (twice !== undefined) throw parsed.refuse('method', 'a list without repetitions', text);
  return rows.map((row) => ({
    name: row.method,
    parsed: withOptions(parsed, row.method, requireRun(parsed, row)),
  }));
}

/** How a method is trained. */
function requireRun(parsed: Arguments, row: SurveyRow): SurveyRun {
  const { run, method, use, outside, waits } = row;
  if (run === undefined) {
    const why = (use ?? outside ?? waits ?? '').replace(/`|\[([^\]]*)\]\([^)]*\)/g, '$1');
    const instead = use === undefined ? why : `instead: ${why}`;
    throw parsed.refuse('method', `a method that this command trains (${instead})`, method);
  }
  const { requires = [], example } = run;
  if (requires.length > 0 && parsed.firstGiven(requires) === undefined) {
    throw parsed.refuse('method', `given with ${example}`, method);
  }
  return run;
}

function withOptions(parsed: Arguments, method: string, run: SurveyRun): Arguments {
  const { adapter, init, optimizer, rules, settings = {}, options = {} } = run;
  // Settings of a part that the command line replaces are not its own.
  const replaced = new Set([
    ...(parsed.firstGiven(['adapter', 'init']) === undefined ? [] : ['adapter']),
    ...(parsed.firstGiven(['optimizer']) === undefined ? [] : ['optimizer']),
    ...(parsed.firstGiven(['rule']) === undefined ? [] : (rules ?? [])),
  ]);
  const set = Object.entries(settings)
    .filter(([name]) => !replaced.has(name.split('.')[0] as string))
    .map(([name, value]) => `${name}=${value}`);
  return parsed.withDefaults({
    adapter,
    ...(init === undefined ? {} : { init }),
    ...(optimizer === undefined ? {} : { optimizer }),
    ...(rules === undefined ? {} : { rule: rules.join(',') }),
    ...options,
    method,
    set: [...set, ...parsed.texts('set')],
  });
}
