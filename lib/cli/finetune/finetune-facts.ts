/** What `lowrank finetune` tells of a run: its settings, its results, its memory. */

import { cpus } from 'node:os';
import { defaultDevice, deviceInfo } from '../../core/device.js';
import { printable } from '../../core/printable.js';
import { version } from '../../environment/version.js';
import type { FinetuneOptions, FinetuneResult } from '../../finetune/finetune.js';
import type { RunPlan } from '../../finetune/plan.js';
import { grouped, mebibytes, table, visible } from '../../report/terminal.js';
import type { AdapterStart } from '../../train/adapter-set.js';
import type { Fact } from './finetune-report.js';

/** What a run can be repeated from. */
export function settingsOf(
  options: FinetuneOptions,
  args: readonly string[],
  layouts: readonly string[],
): Fact[] {
  const { adapter, train, privacy, device = defaultDevice() } = options;
  const { method, definition } = adapter.method;
  const settings = { ...(definition.defaults as object), ...adapter.settings };
  const { isa, name } = deviceInfo(device);
  const processor = device === 'cpu' ? `${cpus()[0]?.model ?? name}, ${isa}` : name;
  return [
    { name: 'command', value: ['lowrank finetune', ...shownArguments(args, privacy)].join(' ') },
    { name: 'model', value: printable(options.model) },
    ...dataFacts(options),
    { name: 'method', value: method, note: listOf(settings) },
    ...startFacts(adapter.start),
    {
      name: 'base',
      value: storedAs(layouts, options),
      note: `activations in ${train.dtype}`,
    },
    {
      name: 'updates',
      value: `${train.steps} of ${train.batch * train.accumulate} sequences`,
      note: `${optimizerText(train)}, rate ${train.lr}, warm-up ${train.warmup}, decay ${train.weightDecay}, clip ${train.clip}`,
    },
    ...(train.rules ?? []).map(({ rule, settings: own }) => ({
      name: 'rule',
      value: rule.rule,
      note: listOf({ ...(rule.defaults as object), ...own }),
    })),
    { name: 'seed', value: privacy === undefined ? String(train.seed) : 'not shown' },
    { name: 'machine', value: processor, note: `device ${device}, lowrank ${version()}` },
    { name: 'date', value: new Date().toISOString() },
  ];
}

/** The seed of a private run stays with who ran it. */
function shownArguments(args: readonly string[], privacy: FinetuneOptions['privacy']): string[] {
  if (privacy === undefined) return args.map(quoted);
  return args.map((text, i) => {
    if (args[i - 1] === '--seed') return '...';
    return text.startsWith('--seed=') ? '--seed=...' : quoted(text);
  });
}

/** The files, and how they are learned. */
function dataFacts(options: FinetuneOptions): Fact[] {
  const { data, evalData, seqLen, loss, train, chat, noPacking, skipLong } = options;
  const names = (files: readonly string[]) => files.map(printable).join(', ');
  const notes = [
    `${seqLen} tokens a sequence`,
    ...(loss === 'dpo' ? [`dpo, beta ${train.dpoBeta}`] : []),
    ...(chat === true ? ['as a chat'] : []),
    ...(noPacking === true ? ['not packed'] : []),
    ...(skipLong === true ? ['without those that are too long'] : []),
  ];
  return [
    { name: 'data', value: names(data), note: notes.join(', ') },
    ...(evalData === undefined ? [] : [{ name: 'held-out data', value: names(evalData) }]),
  ];
}

/** `r 8, dropout 0` */
const listOf = (settings: object): string =>
  Object.entries(settings)
    .map(
      ([name, value]) => `${name} ${typeof value === 'string' ? printable(value) : String(value)}`,
    )
    .join(', ');

/** Where the adapters begin, if not at the method's own start. */
function startFacts(chosen: AdapterStart | undefined): Fact[] {
  if (chosen === undefined) return [];
  const { start, settings } = chosen;
  const note = listOf({ ...(start.defaults as object), ...settings });
  return [{ name: 'start', value: start.start, ...(note === '' ? {} : { note }) }];
}

/** `lora-plus, ratio 16`: the optimiser, with the settings that were given. */
function optimizerText({ optimizer, optimizerSettings }: FinetuneOptions['train']): string {
  const given = Object.entries(optimizerSettings ?? {});
  const list = given.map(([name, value]) => `${name} ${String(value)}`);
  return [optimizer?.optimizer ?? 'adamw', ...list].join(', ');
}

/** How the base is stored: by the layouts of a folder that is quantised already, otherwise as the start or the run quantised it. */
function storedAs(layouts: readonly string[], { adapter, format }: FinetuneOptions): string {
  const start = adapter.start?.start;
  if (start?.ownFormat === true) return `the format of ${start.start}`;
  return layouts.length > 0 ? layouts.join(' and ') : format.format;
}

const quoted = (text: string): string => (/^[\w./,:=-]+$/.test(text) ? text : JSON.stringify(text));

/** The memory of a run that has not started. */
export function planFacts({ architecture, parameters, memory, available, fits }: RunPlan): Fact[] {
  const { base, adapters, optimizer, activations, work, total } = memory;
  const row = (name: string, bytes: number, note = ''): Fact => ({
    name,
    value: mebibytes(bytes),
    note,
  });
  return [
    { name: 'architecture', value: architecture },
    { name: 'parameters trained', value: grouped(parameters) },
    row('base model', base),
    row('adapters', adapters),
    row('optimiser and gradients', optimizer),
    row('activations', activations, 'what the forward pass keeps'),
    row('work', work, 'one block, the loss, what waits for the queue'),
    row('together', total, fits ? 'fits' : 'does NOT fit'),
    ...(available === 0 ? [] : [row('the device has', available)]),
  ];
}

/** The rows of the final table. */
export function factsOf(options: FinetuneOptions, result: FinetuneResult, seconds: number): Fact[] {
  const { lossBefore, lossAfter, memory, comparison } = result;
  const percent = (ratio: number) => `${(100 * ratio).toFixed(1)} %`;
  const stored = storedAs(result.layouts, options);
  const facts: Fact[] = [
    { name: 'held-out loss before', value: lossBefore.toFixed(4), note: result.lossUnit },
    {
      name: 'held-out loss after',
      value: lossAfter.toFixed(4),
      note: `${lossAfter <= lossBefore ? 'down' : 'UP'} ${percent(Math.abs(1 - lossAfter / lossBefore))}`,
    },
    ...(result.rankedRight === undefined
      ? []
      : [{ name: 'held-out pairs ranked right', value: percent(result.rankedRight), note: '' }]),
    {
      name: 'training',
      value: `${grouped(result.tokensPerSecond)} tokens/s`,
      note: `${result.steps} steps`,
    },
    {
      name: 'parameters trained',
      value: grouped(result.adapterParameters),
      note: `of ${grouped(result.baseParameters)}, ${percent(result.adapterParameters / result.baseParameters)}`,
    },
    {
      name: `linear layers in ${stored === 'none' ? 'f32' : stored}`,
      value: mebibytes(memory.linear_bytes),
      note: `${mebibytes(memory.linearF32_bytes)} in f32, ${(memory.linearF32_bytes / memory.linear_bytes).toFixed(1)} x less`,
    },
  ];
  if (result.privacy !== undefined) {
    const { epsilon, delta, noise, clip, sampleRate } = result.privacy;
    facts.push({
      name: 'privacy of a sequence',
      value: `epsilon ${epsilon.toPrecision(3)}`,
      note: `delta ${delta}; noise ${noise.toPrecision(3)}, clip ${clip}, sampled at ${percent(sampleRate)}`,
    });
  }
  if (comparison !== undefined) {
    facts.push({
      name: 'a training step',
      value: `${comparison.own_ms.toFixed(0)} ms`,
      note: `loss ${comparison.ownLoss.toFixed(5)}; ${options.train.dtype}, without the update`,
    });
    for (const { name, ms, ratio, loss, note } of comparison.others) {
      const times =
        ratio === undefined
          ? 'ratio not measured, as other programs used the cores'
          : `${ratio.toFixed(2)} x as long`;
      facts.push({
        name: `the same in ${name}`,
        value: `${ms.toFixed(0)} ms`,
        note: [times, `loss ${loss.toFixed(5)}`, ...(note === undefined ? [] : [note])].join('; '),
      });
    }
  }
  const peak_bytes = process.resourceUsage().maxRSS * 1024;
  facts.push({ name: 'memory of the process', value: mebibytes(peak_bytes), note: 'at most' });
  facts.push({ name: 'time', value: `${seconds.toFixed(1)} s`, note: 'everything included' });
  return facts;
}

/** The final table and the samples for a terminal. */
export function summary(facts: readonly Fact[], result: FinetuneResult): string {
  const rows = facts.map(({ name, value, note }) => [name, value, note ?? '']);
  let text = `\n${table(rows)}`;
  for (const { prompt, before, after } of result.samples) {
    const indent = (sample: string) => visible(sample).replaceAll('\n', '\n    ');
    text += `\n"${visible(prompt)}"\n  before: ${indent(before)}\n  after:  ${indent(after)}\n`;
  }
  return `${text}\nadapter  ${printable(result.out)}\n`;
}

/** The result for `--json`. */
export function machineReadable(
  facts: readonly Fact[],
  result: FinetuneResult,
  settings: readonly Fact[],
): object {
  return {
    ...result,
    maxRss: process.resourceUsage().maxRSS * 1024,
    run: Object.fromEntries(
      settings.map(({ name, value, note }) => [name, note ? `${value}; ${note}` : value]),
    ),
    table: Object.fromEntries(facts.map(({ name, value }) => [name, value])),
  };
}
