/**
 * `lowrank bench`: the kernels compared with the roofline of this machine and with other libraries.
 * The harness is in lib/bench; docs/benchmarks.md describes how it measures.
 */

import { existsSync } from 'node:fs';
import path from 'node:path';
import { benchDtypes, benchOps, blockFormatNames, ownFormats } from '../bench/job.js';
import { describeMachine } from '../bench/machine.js';
import type { Plan } from '../bench/measure.js';
import { kPeers } from '../bench/peers/index.js';
import { loadCase } from '../bench/peers/user.js';
import { compareResults, comparisonText } from '../bench/report/compare.js';
import { benchFigure } from '../bench/report/figure.js';
import { benchHtml } from '../bench/report/report-html.js';
import { resultText } from '../bench/report/table.js';
import { type BenchResult, readResult } from '../bench/result.js';
import { type AskedPeer, runBench } from '../bench/run.js';
import { kModels, layersOf } from '../bench/shapes.js';
import { defaultGroups, expand, type Group, type SweepShape } from '../bench/sweep.js';
import { defaultDevice, getThreads } from '../index.js';
import { Progress } from '../report/terminal.js';
import { benchTrainers, kTrainerNames } from './bench-trainers.js';
import { Arguments } from './command/arguments.js';
import { readDevices } from './command/device-option.js';
import { exitCodes } from './command/exit-codes.js';
import { Interrupts } from './command/interrupt.js';
import { requireOutputFile, writeOutputFile } from './command/output-file.js';

const kPeerNames = kPeers.slice(1).map(({ name }) => name);
const kPeerText = `${kPeerNames.slice(0, 5).join(', ')},
                   ${kPeerNames.slice(5).join(', ')}`;

const kHelp = `Microbenchmarks of the kernels, beside the roofline of this machine and other libraries.

Usage: lowrank bench [options]
       lowrank bench --compare BEFORE.json AFTER.json
       lowrank bench --trainer LIST [--repeats N] [--seconds S] [--json] [--save FILE]

What (without any of these: a layer of Llama-3.2-1B against M, r and threads):
  --op LIST        ${benchOps.join(', ')}, or all                [lora]
  --model LIST     layers of ${Object.keys(kModels).join(', ')};
                   MODEL:LAYER for one of q, k, gate, down
  --shape MxKxN    tokens x input x output features; may be repeated      [1024x192x512]
  --m LIST         tokens, with --model                                   [256]
  --rank LIST      ranks of the adapters                                  [16]
  --format LIST    ${`${ownFormats.join(', ')} (dense)`.padEnd(54)} [nf4]
                   or types of GGUF: ${blockFormatNames.slice(0, 7).join(', ')},
                   ${blockFormatNames.slice(7).join(', ')}
  --dtype LIST     of the activations: ${benchDtypes.join(', ')}                     [f32]
  --threads LIST   of the CPU kernels and of the peers                    [all cores]
  --device LIST    where to compute                                       [LOWRANK_DEVICE, or cpu]

Beside what:
  --peers LIST     all, none, or of ${kPeerText}   [all]
  --case FILE      your own kernel or adapter as a peer, or an adapter method by its name; may be repeated
                   (docs/benchmarks.md)

How:
  --repeats N      clean samples of each                                  [30]
  --trials N       processes of each, whose samples are put together      [2]
  --seconds S      a subject that takes longer is left with fewer samples [2]
  --latency        wait for each call of this library, in place of a sample's calls at its end
  --limit S        what has not begun by then is left out   [100 without options, else none]
  --no-roofline    without the ceilings of this machine

Trainers that others wrote, a whole step without and with this library, in turns:
  --trainer LIST   all, or of ${kTrainerNames}
  --repeats N      steps of each side                                     [12]
  --seconds S      a case ends after this time, with at least 3 steps     [30]
  --tiny           sizes of no meaning, to try the command

Result:
  --json           one JSON object on stdout
  --save FILE      the same in a file
  --report FILE    an HTML page with plots
  --figure FILE    an SVG: speed-up against M, and roofline
  --from FILE      of a saved run, without measuring
  --compare        what differs between two saved runs beyond their noise

Every subject has a process of its own; all of one job are sampled in turns. Times are medians of
samples in which no thread had to wait for a core, with the 10th and 90th percentile. With up to 64
tokens calls go round copies of the weight, so that it comes from memory. Peers that are not
installed are left out, and how to get them is told. The roofline needs a C++ compiler.
`;

const kOptions = {
  op: { type: 'string' },
  model: { type: 'string' },
  shape: { type: 'string', multiple: true },
  m: { type: 'string' },
  rank: { type: 'string' },
  format: { type: 'string' },
  dtype: { type: 'string' },
  threads: { type: 'string' },
  device: { type: 'string' },
  peers: { type: 'string' },
  case: { type: 'string', multiple: true },
  repeats: { type: 'string' },
  trials: { type: 'string' },
  seconds: { type: 'string' },
  latency: { type: 'boolean' },
  limit: { type: 'string' },
  'no-roofline': { type: 'boolean' },
  json: { type: 'boolean' },
  save: { type: 'string' },
  report: { type: 'string' },
  figure: { type: 'string' },
  from: { type: 'string' },
  compare: { type: 'boolean' },
  trainer: { type: 'string' },
  tiny: { type: 'boolean' },
} as const;

/** Length of one sample. Several short calls make one sample. */
const kSample_ms = 10;
const kMostJobs = 1000;
/** The default selection ends within two minutes even if others use the machine. */
const kDefaultLimit_s = 100;

/** Runs the subcommand. */
export async function benchCommand(args: readonly string[]): Promise<number> {
  const files = args.includes('--compare') ? 2 : 0;
  const names = 'two files: --compare BEFORE.json AFTER.json';
  const parsed = Arguments.parse('bench', args, kOptions, { min: files, max: files, names });
  if (parsed.flag('help')) {
    process.stdout.write(kHelp);
    return exitCodes.ok;
  }
  refuseUnread(parsed);
  if (parsed.flag('compare')) {
    const [before, after] = parsed.positionals.map((file) => readResult(file));
    const comparison = compareResults(before as BenchResult, after as BenchResult);
    process.stdout.write(
      parsed.flag('json') ? `${JSON.stringify(comparison, null, 1)}\n` : comparisonText(comparison),
    );
    return exitCodes.ok;
  }
  if (parsed.text('trainer') !== undefined) return benchTrainers(parsed, args);
  for (const name of ['save', 'report', 'figure']) requireOutputFile('bench', parsed.text(name));
  const from = parsed.text('from');
  const json = parsed.flag('json');
  const result = from === undefined ? await measure(parsed, args) : readResult(from);
  const text = `${JSON.stringify(result, null, 1)}\n`;
  // Printed first, so that a file that cannot be written loses no measurement.
  process.stdout.write(json ? text : resultText(result));
  write(parsed, 'save', text);
  write(parsed, 'report', benchHtml(result));
  write(parsed, 'figure', benchFigure(result));
  return exitCodes.ok;
}

/** Options that apply to saved runs. */
const kWithCompare = ['compare', 'json'];
const kWithTrainer = ['trainer', 'repeats', 'seconds', 'tiny', 'json', 'save'];
const kWithFrom = ['from', 'json', 'save', 'report', 'figure'];

/** Rejects options that would have no effect. */
function refuseUnread(parsed: Arguments): void {
  const names = Object.keys(kOptions);
  const refuse = (option: string, read: readonly string[]) => {
    const stray = parsed.firstGiven(names.filter((name) => !read.includes(name)));
    if (stray === undefined) return;
    const others = read.filter((name) => name !== option).map((name) => `--${name}`);
    throw parsed.wrong(`--${option} goes only with ${others.join(', ')}, got --${stray}`);
  };
  if (parsed.flag('compare')) refuse('compare', kWithCompare);
  else if (parsed.text('from') !== undefined) refuse('from', kWithFrom);
  else if (parsed.text('trainer') !== undefined) refuse('trainer', kWithTrainer);
  else if (parsed.flag('tiny'))
    throw parsed.wrong('--tiny goes only with --trainer, got --tiny alone');
  else if (
    parsed.firstGiven(['m']) &&
    parsed.firstGiven(['shape']) &&
    !parsed.firstGiven(['model'])
  ) {
    throw parsed.wrong('--m goes with --model, got --shape, which sets M itself: MxKxN');
  }
}

async function measure(parsed: Arguments, args: readonly string[]): Promise<BenchResult> {
  const groups = readGroups(parsed);
  const usual = choosesJobs(parsed) ? Number.POSITIVE_INFINITY : kDefaultLimit_s;
  const limit = parsed.number('limit', usual, 'a number above 0', (value) => value > 0);
  const asked = await readPeers(parsed);
  const plan: Plan = {
    repeats: parsed.integer('repeats', 30, 1, 100_000),
    trials: parsed.integer('trials', 2, 1, 100),
    seconds: parsed.number('seconds', 2, 'a number above 0', (value) => value > 0),
    once: Number.isFinite(limit),
    sample_ms: kSample_ms,
    latency: parsed.flag('latency'),
    roofline: !parsed.flag('no-roofline'),
  };
  const progress = new Progress(parsed.flag('json'));
  // Ending at once loses nothing; what must end with this process ends when it exits.
  const interrupts: Interrupts = new Interrupts(() => {
    progress.close();
    process.exit(interrupts.exitCode);
  });
  try {
    const command = ['lowrank bench', ...args].join(' ');
    return await runBench(groups, asked, plan, command, limit, progress);
  } finally {
    interrupts.dispose();
  }
}

/** Writes a result if its option requests it. @throws as {@link writeOutputFile} */
function write(parsed: Arguments, option: string, text: string | undefined): void {
  const file = parsed.text(option);
  if (file === undefined) return;
  if (text === undefined) {
    throw parsed.refuse(option, 'for a run with several M or a roofline', file);
  }
  writeOutputFile('bench', file, text);
}

/** Options that select jobs. Without them, the default selection runs. */
const kSweepOptions = ['op', 'model', 'shape', 'm', 'rank', 'format', 'dtype', 'threads'] as const;

function choosesJobs(parsed: Arguments): boolean {
  return kSweepOptions.some(
    (name) => parsed.text(name) !== undefined || parsed.texts(name).length > 0,
  );
}

function readGroups(parsed: Arguments): Group[] {
  const { lastCache } = describeMachine();
  const deviceList = readDevices(parsed) ?? [defaultDevice()];
  if (!choosesJobs(parsed)) {
    return deviceList.flatMap((device) => defaultGroups(device, getThreads(), lastCache));
  }
  const jobs = expand(
    {
      ops: readNames(parsed, 'op', benchOps, ['lora']),
      shapes: readShapes(parsed),
      M: readIntegers(parsed, 'm', [256], 1_000_000),
      r: readIntegers(parsed, 'rank', [16], 4096),
      formats: readNames(parsed, 'format', [...ownFormats, ...blockFormatNames], ['nf4']),
      dtypes: readNames(parsed, 'dtype', benchDtypes, ['f32']),
      threads: readIntegers(parsed, 'threads', [getThreads()], 256),
      devices: deviceList,
    },
    lastCache,
  );
  if (jobs.length > kMostJobs) {
    throw parsed.refuse('shape', `part of at most ${kMostJobs} combinations`, String(jobs.length));
  }
  return [{ jobs }];
}

function readShapes(parsed: Arguments): SweepShape[] {
  const shapes: SweepShape[] = parsed.texts('shape').map((text) => {
    const [M, K, N] = (/^(\d{1,6})x(\d{1,6})x(\d{1,6})$/.exec(text) ?? []).slice(1).map(Number);
    if (!M || !K || !N) throw parsed.refuse('shape', 'MxKxN, e.g. 1024x4096x4096', text);
    return { M, K, N };
  });
  for (const text of parsed.text('model')?.split(',') ?? []) {
    const found = layersOf(text.trim());
    if (found === undefined) {
      const names = Object.keys(kModels).join(', ');
      throw parsed.refuse(
        'model',
        `a list of ${names}, each alone or as MODEL:q, k, gate, down`,
        text,
      );
    }
    for (const { name, K, N } of found.layers)
      shapes.push({ layer: `${found.model} ${name}`, K, N });
  }
  if (shapes.length > 0) return shapes;
  return parsed.text('m') === undefined
    ? [{ M: 1024, K: 192, N: 512 }]
    : [{ layer: 'Llama-3.2-1B q', K: 2048, N: 2048 }];
}

async function readPeers(parsed: Arguments): Promise<AskedPeer[]> {
  const text = parsed.text('peers') ?? 'all';
  const names = text.split(',').map((item) => item.trim());
  // A family by its first name: onnxruntime selects both of its rows.
  const matches = (peer: string, name: string) => peer === name || peer.startsWith(`${name}-`);
  const wrong = names.filter((name) => !kPeerNames.some((peer) => matches(peer, name)));
  if (text !== 'all' && text !== 'none' && wrong.length > 0) {
    throw parsed.refuse('peers', `all, none or a list of ${kPeerNames.join(', ')}`, text);
  }
  const chosen = kPeers.filter(
    ({ name }, at) =>
      at === 0 || text === 'all' || names.some((asked) => text !== 'none' && matches(name, asked)),
  );
  const own: AskedPeer[] = [];
  for (const file of parsed.texts('case')) {
    const peer = await loadCase(file);
    const taken = [...kPeers, ...own.map((one) => one.peer)].some(({ name }) => name === peer.name);
    if (taken) throw parsed.refuse('case', 'a file whose name is not taken', peer.name);
    // The name of a method is not a path.
    own.push({ peer, file: existsSync(file) ? path.resolve(file) : file });
  }
  return [...chosen.map((peer) => ({ peer })), ...own];
}

function readNames<T extends string>(
  parsed: Arguments,
  name: string,
  choices: readonly T[],
  fallback: readonly T[],
): readonly T[] {
  const text = parsed.text(name);
  if (text === undefined) return fallback;
  if (text === 'all') return choices;
  const names = text.split(',').map((item) => item.trim());
  const chosen = choices.filter((choice) => names.includes(choice));
  if (chosen.length !== new Set(names).size) {
    throw parsed.refuse(name, `all or a list of ${choices.join(', ')}`, text);
  }
  return chosen;
}

function readIntegers(
  parsed: Arguments,
  name: string,
  fallback: readonly number[],
  max: number,
): readonly number[] {
  const text = parsed.text(name);
  if (text === undefined) return fallback;
  const values = text.split(',').map((item) => (/^\s*\d{1,7}\s*$/.test(item) ? Number(item) : 0));
  if (values.some((value) => value < 1 || value > max)) {
    throw parsed.refuse(name, `a list of integers from 1 to ${max}, e.g. 1,16,256`, text);
  }
  return [...new Set(values)];
}
