/**
 * `lowrank finetune`: a QLoRA fine-tune from a model and data to a PEFT adapter folder.
 */

import { existsSync } from 'node:fs';
import path from 'node:path';
import { writeFileAtomic } from '../../checkpoint/files/atomic-write.js';
import { defaultDevice } from '../../core/device.js';
import { anyOf } from '../../core/errors.js';
import { formatNames } from '../../core/formats.js';
import { printable } from '../../core/printable.js';
import { bundledModel } from '../../environment/package-folder.js';
import {
  type FinetuneObserver,
  type FinetuneOptions,
  finetune,
  Interrupted,
  requireRuns,
} from '../../finetune/finetune.js';
import { planRun } from '../../finetune/plan.js';
import { previewData } from '../../finetune/preview.js';
import { kInitBatches } from '../../finetune/start.js';
import { grouped, jsonText, Progress, table, visible } from '../../report/terminal.js';
import { parseTargets } from '../../train/adapter-set.js';
import { fastestDType } from '../../train/dtype.js';
import { Arguments } from '../command/arguments.js';
import { readDevice } from '../command/device-option.js';
import { exitCodeFor, exitCodes } from '../command/exit-codes.js';
import { Interrupts } from '../command/interrupt.js';
import { settingName } from '../command/setting.js';
import { type ChosenMethod, readAdapters } from './finetune-adapter.js';
import { dataHelp, dataOptions, readBeta, readDataOptions, shownData } from './finetune-data.js';
import { readExports, requireExports, writeExports } from './finetune-export.js';
import { factsOf, machineReadable, planFacts, settingsOf, summary } from './finetune-facts.js';
import { readMethods } from './finetune-method.js';
import { type MethodRun, methodsReport, methodsSummary } from './finetune-methods.js';
import type { ChosenOptimizer } from './finetune-optimizer.js';
import { readPrivacy } from './finetune-privacy.js';
import { reportHtml } from './finetune-report.js';
import type { ChosenRules } from './finetune-rules.js';

/** What a run has beside its adapters. */
interface Around {
  readonly optimizer: ChosenOptimizer;
  readonly rules: ChosenRules;
}

/** One of the runs of a command line. */
interface PlannedRun extends Around {
  readonly name: string;
  readonly parsed: Arguments;
  readonly chosen: ChosenMethod;
}

/** Of the learning rate for pairs of answers: they move a model farther than its next tokens do. */
const kPreferenceRate = 0.1;

const kHelp = `QLoRA fine-tune: a frozen, quantised base model, LoRA adapters on its linear layers.

Usage: lowrank finetune [options]

Without --model and --data, the bundled model and text are used.

  --model PATH        Hugging Face folder: config.json, model.safetensors (or shards), tokenizer.json;
                      or a .gguf file
  --tokenizer PATH    folder with tokenizer.json, or .gguf file           [the model's own]
  --out DIR           adapter folder to write, for PEFT to load           [lowrank-adapter]

${dataHelp}
Method
  --method NAME       a published method (pissa, lora-plus, relora, ...; lowrank methods): sets --adapter, --init,
                      --optimizer, --rule and --set, unless you give them; several with commas between them are
                      trained in turn and compared

Adapter
  --adapter NAME      method (lora, dora, vera, ...; docs/adapters.md), or a file of one's own [lora];
                      several with commas between them are trained in turn and compared
  --rank N            rank of the adapters                                [8]
  --lora-alpha X      scaling = lora_alpha / rank                         [2 * rank]
  --rslora            scaling = lora_alpha / sqrt(rank)
  --dropout P         dropout before the adapters, in [0, 1)              [0]
  --init NAME         where the adapters begin (pissa, loftq, eva, qera, ...; docs/training/starts.md), or a file
                      of one's own                                        [the method's own start]
  --init-batches N    passes over the text that a start from inputs or gradients sees       [8]
  --set NAME=VALUE    another setting of the method, --init, --optimizer or --rule; may be repeated
  --targets LIST      all-linear, or names: q_proj,v_proj,...             [all-linear]

Base
  --format F          ${`${anyOf([...formatNames, 'none'])} (as in the file);`.padEnd(51)} [nf4]
                      int4 with zero-points where a row is whole blocks
  --blocksize N       elements that share a scale, 32, 64, ... 4096       [the format's own]
  --double-quant      quantise the scales too

Training
  --steps N           updates                                             [120]
  --seq-len N         tokens in a sequence                                [128]
  --batch N           sequences in a pass                                 [4]
  --accumulate N      passes in an update                                 [1]
  --optimizer NAME    adamw, lora-plus, lion, ... (docs/training/optimizers.md), or a file of one's own [adamw]
  --rule NAME         what happens around the steps (relora, adalora, ...; docs/training/rules.md), or
                      a file of one's own; several with commas between them
  --lr X              peak learning rate     [0.003, for dpo 0.0003, times what method and optimizer want]
  --warmup N          steps up to it; a cosine follows                    [a tenth of the steps]
  --weight-decay X    decoupled                                           [0]
  --clip X            largest global norm of the gradient                 [1]
  --seed N            names every random choice                           [1]
  --epsilon X         differentially private training: noise for this epsilon (docs/training/statistics.md); needs --clip,
                      now the bound of each sequence's gradient, --delta, and a --seed that nobody else knows
  --noise X           instead of --epsilon: noise of X times --clip; the run says which epsilon it gives
  --delta X           of both; below one over the number of training sequences
  --dtype D           of the activations: f32, bf16 or f16    [bf16 where the device is faster in it]
  --recompute         keep less of the forward pass, and run each block twice: the same bits
  --eval-every N      steps between held-out evaluations, 0 for none      [a fifth of the steps]

Run
  --save-every N      steps between checkpoints, 0 for only on Ctrl-C     [100]
  --resume            go on with the unfinished run beside --out
  --device D          where to compute                                    [LOWRANK_DEVICE, or cpu]
  --dry-run           show what the run would take in memory, and stop
  --no-compare        do not measure the same step in torch and TensorFlow.js, where installed
  --prompt TEXT       begin a sample with this; may be repeated           [two held-out beginnings]
  --sample-tokens N   length of a sample, 0 for none                      [60]
  --export LIST       beside the adapter in OUT: merged (a model folder), gguf (a model for llama.cpp),
                      lora-gguf (an adapter for it); with a format: gguf:q8_0,merged:nf4    [bf16]
  --report FILE       HTML report                                         [OUT/report.html]
  --no-report         write none
  --json              one JSON object on stdout, no progress

Ctrl-C finishes the step, writes a checkpoint beside --out and exits with 130; --resume goes on with
the same bits as if nothing had happened. The adapter appears under its name whole, or not at all.
`;

const kOptions = {
  model: { type: 'string' },
  tokenizer: { type: 'string' },
  ...dataOptions,
  out: { type: 'string' },
  method: { type: 'string' },
  adapter: { type: 'string' },
  init: { type: 'string' },
  'init-batches': { type: 'string' },
  set: { type: 'string', multiple: true },
  rank: { type: 'string' },
  'lora-alpha': { type: 'string' },
  rslora: { type: 'boolean' },
  dropout: { type: 'string' },
  targets: { type: 'string' },
  format: { type: 'string' },
  blocksize: { type: 'string' },
  'double-quant': { type: 'boolean' },
  steps: { type: 'string' },
  optimizer: { type: 'string' },
  rule: { type: 'string' },
  'seq-len': { type: 'string' },
  batch: { type: 'string' },
  accumulate: { type: 'string' },
  lr: { type: 'string' },
  warmup: { type: 'string' },
  'weight-decay': { type: 'string' },
  clip: { type: 'string' },
  epsilon: { type: 'string' },
  noise: { type: 'string' },
  delta: { type: 'string' },
  seed: { type: 'string' },
  dtype: { type: 'string' },
  recompute: { type: 'boolean' },
  'eval-every': { type: 'string' },
  'save-every': { type: 'string' },
  resume: { type: 'boolean' },
  device: { type: 'string' },
  'dry-run': { type: 'boolean' },
  'no-compare': { type: 'boolean' },
  prompt: { type: 'string', multiple: true },
  'sample-tokens': { type: 'string' },
  export: { type: 'string' },
  report: { type: 'string' },
  'no-report': { type: 'boolean' },
  json: { type: 'boolean' },
} as const;

/** Runs the subcommand. */
export async function finetuneCommand(args: readonly string[]): Promise<number> {
  const parsed = Arguments.parse('finetune', args, kOptions, { min: 0, max: 0, names: '' });
  if (parsed.flag('help')) {
    process.stdout.write(kHelp);
    return exitCodes.ok;
  }
  const [first, ...others] = await plannedRuns(parsed);
  if (others.length > 0) return compareMethods(parsed, [first, ...others]);
  const options = readOptions(first);
  if (parsed.flag('dry-run')) return dryRun(parsed, options);
  if (parsed.text('show-data') !== undefined) return showData(parsed, options);
  const report = reportPath(parsed, options.out);
  const exports = readExports(parsed);
  requireExports(options, exports);
  const json = parsed.flag('json');
  const progress = new Progress(json);
  const interrupts = new Interrupts(() => progress.line('stopping after this step ...'));
  const started = performance.now();
  try {
    const result = await finetune(options, observe(progress, options), interrupts.signal);
    progress.close();
    const exported = await writeExports(options, exports, progress, interrupts.signal);
    const settings = settingsOf(options, args, result.layouts);
    const facts = factsOf(options, result, (performance.now() - started) / 1000);
    if (report !== undefined) {
      const html = new TextEncoder().encode(reportHtml(facts, result, settings));
      writeFileAtomic('finetune', report, [html]);
    }
    process.stdout.write(
      json
        ? jsonText({ ...machineReadable(facts, result, settings), exported })
        : summary(facts, result),
    );
    for (const each of json ? [] : exported) {
      process.stdout.write(`export   ${printable(each)}\n`);
    }
    if (!json && report !== undefined) process.stdout.write(`\nreport   ${printable(report)}\n`);
    return exitCodes.ok;
  } catch (error) {
    progress.close();
    if (!(error instanceof Interrupted)) throw error;
    const text = describeInterruption(error);
    process.stderr.write(`lowrank: ${text}\n`);
    return interrupts.exitCode;
  } finally {
    interrupts.dispose();
  }
}

/** The runs of the command line: one, or one for each method of `--method` or `--adapter`. */
async function plannedRuns(parsed: Arguments): Promise<[PlannedRun, ...PlannedRun[]]> {
  const named = readMethods(parsed);
  const several = named !== undefined && named.length > 1;
  const runs: PlannedRun[] = [];
  for (const { name, parsed: own } of named ?? [{ name: undefined, parsed }]) {
    const { adapters, ...around } = await readAdapters(own, several);
    for (const chosen of adapters) {
      runs.push({ name: name ?? chosen.method.method, parsed: own, chosen, ...around });
    }
  }
  if (several) requireKnownSettings(parsed, runs);
  return runs as [PlannedRun, ...PlannedRun[]];
}

/** A setting may belong to one of several methods, but not to none. */
function requireKnownSettings(parsed: Arguments, runs: readonly PlannedRun[]): void {
  const known = runs.flatMap(({ chosen: { method, start }, optimizer, rules }) => [
    ...settingNames('adapter', method.definition.defaults),
    ...settingNames('adapter', start?.start.defaults),
    ...settingNames('optimizer', optimizer.optimizer.defaults),
    ...rules.rules.flatMap(({ rule }) => settingNames(rule.rule, rule.defaults)),
  ]);
  for (const text of parsed.texts('set')) {
    if (known.includes(settingName(text) ?? '')) continue;
    throw parsed.refuse('set', 'NAME=VALUE with a setting of one of the methods', text);
  }
}

/** The names of settings, as they are and with the prefix of their owner. */
const settingNames = (owner: string, defaults: object | undefined): string[] =>
  Object.keys(defaults ?? {}).flatMap((name) => [name, `${owner}.${name}`]);

/** Shows what the run would take. */
function dryRun(parsed: Arguments, options: FinetuneOptions): number {
  const plan = planRun(options);
  const facts = planFacts(plan);
  const rows = facts.map(({ name, value, note = '' }) => [name, value, note]);
  const advice = plan.change === undefined ? '' : `\nTry ${plan.change}\n`;
  process.stdout.write(parsed.flag('json') ? jsonText(plan) : `${table(rows)}${advice}`);
  return plan.fits ? exitCodes.ok : exitCodeFor('ERR_OOM');
}

/** Shows what the model would see. */
async function showData(parsed: Arguments, options: FinetuneOptions): Promise<number> {
  const preview = await previewData(options, parsed.integer('show-data', 3, 1, 1_000_000));
  if (parsed.flag('json')) process.stdout.write(jsonText(preview));
  else {
    for (const note of preview.notes) process.stderr.write(`note: ${visible(note)}\n`);
    process.stdout.write(shownData(preview, process.stdout.isTTY === true));
  }
  return exitCodes.ok;
}

/** Trains with each method on the same data and shows loss against trained parameters and time. */
async function compareMethods(parsed: Arguments, planned: readonly PlannedRun[]): Promise<number> {
  const out = parsed.text('out') ?? 'lowrank-adapter';
  const exports = readExports(parsed);
  const report = parsed.flag('no-report')
    ? undefined
    : (parsed.text('report') ?? path.join(out, 'methods.html'));
  const json = parsed.flag('json');
  const progress = new Progress(json);
  const interrupts = new Interrupts(() => progress.line('stopping after this step ...'));
  const runs: MethodRun[] = [];
  try {
    const all = planned.map((run) => ({
      name: run.name,
      parts: partsOf(run),
      options: {
        ...readOptions(run),
        out: path.join(out, run.name),
        compare: false,
        sampleTokens: 0,
      },
    }));
    requireRuns(all.map(({ options }) => options));
    for (const { options } of all) requireExports(options, exports);
    for (const [i, { name, parts, options }] of all.entries()) {
      const { settings } = options.adapter;
      progress.line(`${i + 1} of ${all.length}: ${name}`);
      const result = await finetune(options, observe(progress, options), interrupts.signal);
      await writeExports(options, exports, progress, interrupts.signal);
      runs.push({ method: name, parts, settings, lr: options.train.lr, result });
    }
    progress.close();
    if (report !== undefined) {
      writeFileAtomic('finetune', report, [new TextEncoder().encode(methodsReport(runs))]);
    }
    process.stdout.write(json ? jsonText({ runs }) : methodsSummary(runs, report));
    return exitCodes.ok;
  } catch (error) {
    progress.close();
    if (!(error instanceof Interrupted)) throw error;
    process.stderr.write(`lowrank: ${describeInterruption(error)}\n`);
    return interrupts.exitCode;
  } finally {
    interrupts.dispose();
  }
}

/** What a run is made of, where it is more than an adapter of its name. */
function partsOf({ name, chosen, optimizer, rules: { rules } }: PlannedRun): string {
  const { method, start } = chosen;
  return [
    ...(method.method === name ? [] : [method.method]),
    ...(start === undefined ? [] : [`start ${start.start.start}`]),
    ...(optimizer.optimizer.optimizer === 'adamw'
      ? []
      : [`optimiser ${optimizer.optimizer.optimizer}`]),
    ...rules.map(({ rule }) => `rule ${rule.rule}`),
  ].join(', ');
}

function describeInterruption({ checkpoint, adapter }: Interrupted): string {
  if (adapter !== undefined) return `stopped; the adapter in ${printable(adapter)} is complete`;
  if (checkpoint === undefined) return 'stopped before the first step; nothing was written';
  return `stopped; the state is ${printable(checkpoint)}. Run the same command with --resume to go on`;
}

/** The path of the report. A missing folder would otherwise be noticed only after training. */
function reportPath(parsed: Arguments, out: string): string | undefined {
  if (parsed.flag('no-report')) return undefined;
  const report = parsed.text('report');
  if (report === undefined) return path.join(out, 'report.html');
  if (!existsSync(path.dirname(report)) || report.endsWith('/')) {
    throw parsed.refuse('report', 'a file in a folder that exists', report);
  }
  return report;
}

function readOptions({
  parsed,
  chosen: { method, settings, file, start, startFile },
  optimizer: chosenOptimizer,
  rules: { rules, files: ruleFiles },
}: PlannedRun): FinetuneOptions {
  const { optimizer, settings: optimizerSettings, file: optimizerFile } = chosenOptimizer;
  const data = readDataOptions(parsed);
  const dpoBeta = readBeta(parsed, data);
  const gentle = dpoBeta === undefined ? 1 : kPreferenceRate;
  const rate = 3e-3 * gentle * (method.definition.rate ?? 1) * (optimizer.rate ?? 1);
  const most = 1_000_000_000;
  const positive = (value: number) => value > 0;
  const notNegative = (value: number) => value >= 0;
  const steps = parsed.integer('steps', 120, 1, most);
  const format = parsed.choice('format', 'nf4', [...formatNames, 'none']);
  const blocksize = parsed.powerOfTwo('blocksize', 32, 4096);
  const device = readDevice(parsed);
  const targets = parsed.text('targets') ?? 'all-linear';
  const tokenizer = parsed.text('tokenizer');
  const dtype = parsed.choice('dtype', 'auto', ['auto', 'f32', 'bf16', 'f16']);
  const privacy = readPrivacy(parsed);
  const evalEvery = Math.max(1, Math.ceil(steps / 5));
  return {
    model: parsed.text('model') ?? bundledModel(),
    ...(tokenizer === undefined ? {} : { tokenizer }),
    ...data,
    out: parsed.text('out') ?? 'lowrank-adapter',
    format: {
      format,
      ...(blocksize === undefined ? {} : { blocksize }),
      ...(parsed.flag('double-quant') ? { doubleQuant: true } : {}),
    },
    adapter: {
      method,
      settings,
      targets: parseTargets(targets),
      ...(start === undefined ? {} : { start }),
    },
    initBatches: parsed.integer('init-batches', kInitBatches, 1, 1_000_000),
    ...(startFile === undefined ? {} : { initFile: startFile }),
    ...(file === undefined ? {} : { adapterFile: file }),
    ...(optimizerFile === undefined ? {} : { optimizerFile }),
    ruleFiles,
    train: {
      steps,
      batch: parsed.integer('batch', 4, 1, 65_536),
      accumulate: parsed.integer('accumulate', 1, 1, 65_536),
      lr: parsed.number('lr', rate, 'a positive number', positive),
      warmup: parsed.integer('warmup', Math.ceil(steps / 10), 0, most),
      weightDecay: parsed.number('weight-decay', 0, 'a number of at least 0', notNegative),
      clip: parsed.number('clip', 1, 'a positive number', positive),
      seed: parsed.integer('seed', 1, 0, Number.MAX_SAFE_INTEGER),
      dtype: dtype === 'auto' ? fastestDType(device ?? defaultDevice()) : dtype,
      recompute: parsed.flag('recompute'),
      optimizer,
      optimizerSettings,
      ...(dpoBeta === undefined ? {} : { dpoBeta }),
      rules,
    },
    ...(privacy === undefined ? {} : { privacy }),
    evalEvery: parsed.integer('eval-every', evalEvery, 0, most),
    saveEvery: parsed.integer('save-every', 100, 0, most),
    resume: parsed.flag('resume'),
    compare: !parsed.flag('no-compare'),
    prompts: parsed.texts('prompt'),
    sampleTokens: parsed.integer('sample-tokens', 60, 0, 100_000),
    ...(device === undefined ? {} : { device }),
  };
}

function observe(progress: Progress, options: FinetuneOptions): FinetuneObserver {
  const started = { at: 0, step: 0 };
  const perStep = options.train.batch * options.train.accumulate * options.seqLen;
  return {
    phase: (text) => progress.phase(text),
    progress: (done, total) => progress.update(done, total),
    warning: (text) => progress.line(`note: ${visible(text)}`),
    heldOut: (step, loss) => progress.line(`step ${step}: held-out loss ${loss.toFixed(4)}`),
    step: ({ step, loss }, heldOut) => {
      const now = performance.now();
      if (started.at === 0) Object.assign(started, { at: now, step });
      const seconds = (now - started.at) / 1000;
      const rate = seconds > 0 ? ((step - started.step) * perStep) / seconds : 0;
      const parts = [`loss ${loss.toFixed(3)}`];
      if (heldOut !== undefined) parts.push(`held-out ${heldOut.toFixed(3)}`);
      if (rate > 0) parts.push(`${grouped(rate)} tokens/s`);
      progress.update(step, options.train.steps, ...parts);
    },
    written: (folder) => progress.line(`adapter written to ${printable(folder)}`),
  };
}
