/** `lowrank merge` and `lowrank aggregate`: LoRA adapters of one base model to one, or an adapter into its model. */

import { readAdapterFolder, writeAdapterFolder } from '../../adapters/peft/folder.js';
import type { PeftFolder } from '../../adapters/peft/peft-tensors.js';
import { printable } from '../../core/printable.js';
import { combineFoldersWith } from '../../merging/combine.js';
import type { AnyMerge } from '../../merging/definition/definition.js';
import { loadMerge } from '../../merging/load-merge.js';
import { isAverage, mergeMethods } from '../../merging/merge-methods.js';
import { jsonText, Progress, table } from '../../report/terminal.js';
import { Arguments } from '../command/arguments.js';
import { exitCodes } from '../command/exit-codes.js';
import { requireNewFolder } from '../command/require-new-output.js';
import { readSetting } from '../command/setting.js';
import { isModelPath, mergeModelCommand, mergeModelHelp } from './merge-model-command.js';

/** What the two commands differ in. */
interface Kind {
  readonly command: string;
  readonly help: string;
  /** The rules that it has. */
  readonly rules: readonly AnyMerge[];
  readonly standard?: string;
  /** Where the other rules are. */
  readonly other: string;
}

const listed = (rules: readonly AnyMerge[]): string =>
  rules
    .map(({ merge, defaults }) => {
      const settings = Object.entries(defaults as object).map(
        ([name, value]) => `${name}=${value}`,
      );
      return `  ${merge.padEnd(19)} ${settings.join(' ')}`.trimEnd();
    })
    .join('\n');

const kShared = `  --weights W,W,...  one number for each adapter              [1 each]
  --set NAME=VALUE   a setting of the rule; may be repeated
  --json             one JSON object on stdout

OUT is a new or empty folder and appears whole, or not at all. docs/merging.md has the formulas.
`;

const averages = mergeMethods.filter(isAverage);
const others = mergeMethods.filter((merge) => !isAverage(merge));

const merge: Kind = {
  command: 'merge',
  rules: others,
  other: 'lowrank aggregate',
  help: `Merges LoRA adapters of one base model to one adapter.

Usage: lowrank merge ADAPTER... OUT --by RULE [options]

  --by RULE          a rule below, or a file whose default export is what defineMerge returns
${kShared}
Rules and their settings:
${listed(others)}
${mergeModelHelp}`,
};

const aggregate: Kind = {
  command: 'aggregate',
  rules: averages,
  standard: 'fedavg',
  other: 'lowrank merge',
  help: `Averages LoRA adapters that clients trained from one base model.

Usage: lowrank aggregate ADAPTER... OUT [options]

  --by RULE          a rule below, or a file whose default export is what defineMerge returns   [fedavg]
${kShared}
The weights of an average are shares, such as numbers of examples: they are divided by their sum.

Rules and their settings:
${listed(averages)}
`,
};

const kOptions = {
  by: { type: 'string' },
  weights: { type: 'string' },
  set: { type: 'string', multiple: true },
  json: { type: 'boolean' },
} as const;

const kMergeOptions = { ...kOptions, format: { type: 'string' } } as const;

/** Runs `lowrank merge`. */
export const mergeCommand = (args: readonly string[]): Promise<number> => run(merge, args);

/** Runs `lowrank aggregate`. */
export const aggregateCommand = (args: readonly string[]): Promise<number> => run(aggregate, args);

/** The rule of `--by`. @throws UsageError · ERR_FILE, ERR_FILE_NOT_FOUND */
async function readRule(
  { command, rules, standard, other }: Kind,
  parsed: Arguments,
): Promise<AnyMerge> {
  const name = parsed.text('by') ?? standard;
  const known = rules.map((rule) => rule.merge);
  if (name === undefined) {
    throw parsed.wrong(`--by must be given: one of ${known.join(', ')}, or a file`);
  }
  if (/[./\\]/.test(name)) return loadMerge(command, name);
  const own = name.replaceAll('_', '-');
  const found = rules.find((rule) => rule.merge === own);
  if (found !== undefined) return found;
  const elsewhere = mergeMethods.some((rule) => rule.merge === own) ? ` (${other} has ${own})` : '';
  throw parsed.refuse('by', `one of ${known.join(', ')}, or a file${elsewhere}`, name);
}

/** @throws UsageError */
function readWeights(parsed: Arguments, count: number): readonly number[] | undefined {
  const text = parsed.text('weights');
  if (text === undefined) return undefined;
  const weights = text.split(',').map((each) => (each.trim() === '' ? Number.NaN : Number(each)));
  if (weights.length === count && weights.every(Number.isFinite)) return weights;
  throw parsed.refuse('weights', `${count} finite numbers, one for each adapter`, text);
}

/** Distinct ranks of a folder's adapters, ascending. */
function ranksOf({ config }: PeftFolder): number[] {
  const patterns = Object.values((config.rank_pattern ?? {}) as Record<string, number>);
  return [...new Set([Number(config.r), ...patterns])].sort((a, b) => a - b);
}

const modulesIn = ({ tensors }: PeftFolder): number =>
  [...tensors.keys()].filter((key) => /\.lora_(embedding_)?A(\.|$)/.test(key)).length;

async function run(kind: Kind, args: readonly string[]): Promise<number> {
  const { command } = kind;
  const names = 'one ADAPTER or more, and OUT';
  const options = kind === merge ? kMergeOptions : kOptions;
  const parsed = Arguments.parse(command, args, options, { min: 2, max: 1000, names });
  if (parsed.flag('help')) {
    process.stdout.write(kind.help);
    return exitCodes.ok;
  }
  if (kind === merge && isModelPath(parsed.positionals[0] as string)) {
    return mergeModelCommand(parsed);
  }
  const format = parsed.text('format');
  if (format !== undefined) throw parsed.refuse('format', 'left out for adapters alone', format);
  const sources = parsed.positionals.slice(0, -1);
  const target = parsed.positionals.at(-1) as string;
  const rule = await readRule(kind, parsed);
  const settings = Object.fromEntries(
    parsed.texts('set').map((text) => readSetting(parsed, text, rule.merge, rule.defaults)),
  );
  const weights = readWeights(parsed, sources.length);
  requireNewFolder(command, target);
  const json = parsed.flag('json');
  const progress = new Progress(json);
  progress.phase(command);
  const onLayer = (done: number, total: number) => progress.update(done, total);
  const folders = sources.map((source) => readAdapterFolder(source));
  const made = await combineFoldersWith(onLayer, folders, weights, { by: rule, ...settings });
  progress.close();
  const warnings = await writeAdapterFolder(target, made);
  const facts = {
    by: rule.merge,
    settings: { ...rule.defaults, ...settings },
    ...(weights && { weights }),
    modules: modulesIn(made),
    ranks: ranksOf(made),
    warnings,
  };
  if (json) {
    process.stdout.write(jsonText({ in: sources, out: target, ...facts }));
    return exitCodes.ok;
  }
  for (const warning of warnings) process.stderr.write(`lowrank: ${command}: ${warning}\n`);
  const chosen = Object.entries(facts.settings).map(([name, value]) => `${name} ${value}`);
  const rows = [
    ['adapters', sources.map(printable).join(', ')],
    ['by', facts.by],
    ...(chosen.length === 0 ? [] : [['settings', chosen.join(', ')]]),
    ...(weights === undefined ? [] : [['weights', weights.join(', ')]]),
    ['modules', String(facts.modules)],
    ['rank', facts.ranks.join(', ')],
    ['written to', printable(target)],
  ];
  process.stdout.write(table(rows, []));
  return exitCodes.ok;
}
