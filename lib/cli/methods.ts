/** `lowrank methods`: the published methods and how each is used. */

import { jsonText, table } from '../report/terminal.js';
import type { SurveyRow } from '../survey/definition/definition.js';
import { surveyCommand, surveyGroups, surveyMethodNamed } from '../survey/survey.js';
import { Arguments } from './command/arguments.js';
import { exitCodes } from './command/exit-codes.js';

const kOp = 'methods';

const kHelp = `Lists the published methods that the library has, and how to use each.

Usage: lowrank methods [NAME...] [options]

Without a name, all of them.

  --json   one JSON object on stdout

docs/adapters.md has the same list with papers.
`;

/** Markdown as text. */
const plain = (text: string): string => text.replace(/`|\[([^\]]*)\]\([^)]*\)/g, '$1');

function useOf(row: SurveyRow): string {
  const { use, outside, waits } = row;
  if (outside !== undefined) return `outside: ${plain(outside)}`;
  if (waits !== undefined) return `waits: ${plain(waits)}`;
  const command = surveyCommand(row);
  return [command, use].flatMap((text) => (text === undefined ? [] : [plain(text)])).join('; ');
}

/** Runs the subcommand. */
export async function methodsCommand(args: readonly string[]): Promise<number> {
  const options = { json: { type: 'boolean' } } as const;
  const allowed = { min: 0, max: Number.POSITIVE_INFINITY, names: 'names of methods' };
  const parsed = Arguments.parse(kOp, args, options, allowed);
  if (parsed.flag('help')) {
    process.stdout.write(kHelp);
    return exitCodes.ok;
  }
  const named = parsed.positionals.map((name) => surveyMethodNamed(kOp, 'name', name));
  const groups =
    named.length > 0 ? [{ title: '', rows: named }] : surveyGroups.map((group) => group);
  if (parsed.flag('json')) {
    process.stdout.write(jsonText({ methods: groups.flatMap(({ rows }) => rows) }));
    return exitCodes.ok;
  }
  for (const { title, rows } of groups) {
    const lines = table(rows.map((row) => [row.method, row.title, useOf(row)]));
    process.stdout.write(title === '' ? lines : `${title}\n\n${lines}\n`);
  }
  return exitCodes.ok;
}
