/**
 * `lowrank quantize`: converts the linear layers of a checkpoint to a layout of quantised weights, tensor by tensor.
 */

import path from 'node:path';
import { removeLeftovers } from '../../checkpoint/files/atomic-write.js';
import { lockOutput } from '../../checkpoint/files/lock.js';
import { openSafetensors, writeSafetensors } from '../../checkpoint/safetensors.js';
import { printable } from '../../core/printable.js';
import { jsonText, mebibytes, Progress, table } from '../../report/terminal.js';
import { Arguments } from '../command/arguments.js';
import { exitCodes } from '../command/exit-codes.js';
import { Interrupts } from '../command/interrupt.js';
import { requireNewFile, statOf } from '../command/require-new-output.js';
import { quantizeFolder } from './quantize-folder.js';
import { kOp, type LayerQuantizer, makeQuantizer } from './quantize-layers.js';
import { commandFormats, layoutsFor, readSettings } from './settings.js';

/** A line of the help for each group of formats with the same layouts. */
function formatLines(): string {
  const groups = new Map<string, string[]>();
  for (const format of commandFormats) {
    const layouts = layoutsFor(format).join(', ');
    groups.set(layouts, [...(groups.get(layouts) ?? []), format]);
  }
  return [...groups]
    .map(([layouts, formats]) => `  ${formats.join(', ').padEnd(46)} ${layouts}\n`)
    .join('');
}

const kHelp = `Quantises the linear layers of a checkpoint, in the layout that another library reads.

Usage: lowrank quantize IN OUT [options]

IN is a .safetensors file or a Hugging Face folder (single file or shards); OUT the same kind, new:
a file that exists is refused, and so is a folder with files in it.

  --format F         one of the formats below                             [nf4]
  --layout L         one of the layouts below                             [the format's own]
  --group-size G     elements of a row that share a scale                 [128; hqq 64]
  --strategy S       what shares a scale: tensor, channel (a row), group  [integers group,
                     or block (fp8: 128 x 128)                             fp8 channel]
  --zero-points      integers with zero-points
  --blocksize N      bitsandbytes: elements that share a scale,
                     32, 64, ... 4096                                     [the format's own]
  --double-quant     bitsandbytes: quantise the scales too
  --skip LIST        parts of names to leave as they are                  [lm_head,embed,norm]
  --device D         bitsandbytes: where to compute                       [LOWRANK_DEVICE, or cpu]
  --json             one JSON object on stdout, no progress

  formats                                        their layouts, the first by default
${formatLines()}
Quantised are the tensors named *.weight with two dimensions in f32, bf16 or f16. OUT appears whole, or
not at all; a folder that was interrupted goes on where it stopped when the same command runs again.
`;

const kOptions = {
  format: { type: 'string' },
  layout: { type: 'string' },
  'group-size': { type: 'string' },
  strategy: { type: 'string' },
  'zero-points': { type: 'boolean' },
  blocksize: { type: 'string' },
  'double-quant': { type: 'boolean' },
  skip: { type: 'string' },
  device: { type: 'string' },
  json: { type: 'boolean' },
} as const;

const percent = (ratio: number): string => `${(100 * ratio).toPrecision(3)} %`;

/** Runs the subcommand. */
export async function quantizeCommand(args: readonly string[]): Promise<number> {
  const parsed = Arguments.parse(kOp, args, kOptions, { min: 2, max: 2, names: 'IN and OUT' });
  if (parsed.flag('help')) {
    process.stdout.write(kHelp);
    return exitCodes.ok;
  }
  const [source, target] = parsed.positionals as [string, string];
  const settings = readSettings(parsed);
  const json = parsed.flag('json');
  const progress = new Progress(json);
  const interrupts = new Interrupts();
  const quantizer = makeQuantizer(settings, {
    progress: (done, total, name) => progress.update(done, total, printable(name)),
    signal: interrupts.signal,
  });
  try {
    progress.phase('quantising');
    const isFolder = statOf(kOp, source).isDirectory();
    if (isFolder) await quantizeFolder(source, target, settings, quantizer);
    else await quantizeFile(source, target, quantizer);
    progress.close();
    const reason = quantizer.reason();
    if (reason !== undefined) {
      const text = `no layer was quantised: ${reason}. ${printable(target)} has the tensors of IN`;
      process.stderr.write(`lowrank: ${kOp}: ${text}\n`);
    }
    const { layers, before_bytes, after_bytes } = quantizer.totals;
    const { error, errors } = quantizer;
    const sizes = { layers, before_bytes, after_bytes };
    if (json) {
      process.stdout.write(jsonText({ out: target, ...settings, ...sizes, error, errors }));
    } else {
      const rows = [
        ...errors.map((layer) => [printable(layer.name), percent(layer.error)]),
        ['layers quantised', String(layers)],
        ['their error (rms, relative)', percent(error)],
        ['their size before', mebibytes(before_bytes)],
        ['their size after', mebibytes(after_bytes)],
        ['written to', printable(target)],
      ];
      process.stdout.write(table(rows));
    }
    return exitCodes.ok;
  } catch (error) {
    progress.close();
    if (!interrupts.signal.aborted) throw error;
    process.stderr.write('lowrank: stopped; run the same command again to go on\n');
    return interrupts.exitCode;
  } finally {
    interrupts.dispose();
  }
}

async function quantizeFile(
  source: string,
  target: string,
  quantizer: LayerQuantizer,
): Promise<void> {
  requireNewFile(kOp, source, target, ' (IN is a file)');
  const lock = lockOutput(kOp, target);
  try {
    removeLeftovers(path.resolve(target));
    const file = openSafetensors(source);
    quantizer.expect([file]);
    const tensors = await quantizer.quantizeAll(file);
    writeSafetensors(target, tensors, file.metadata);
  } finally {
    lock.release();
  }
}
