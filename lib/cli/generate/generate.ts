/** `lowrank generate`: continues a text with a model, and with an adapter if one is given. */

import { generate } from '../../model/generate.js';
import { jsonText, Progress, visible } from '../../report/terminal.js';
import { Arguments } from '../command/arguments.js';
import { exitCodes } from '../command/exit-codes.js';
import { Interrupts } from '../command/interrupt.js';
import {
  generationOptions,
  modelHelp,
  OpenedModel,
  readGeneration,
  samplingHelp,
  TextStream,
} from './generation.js';

const kOp = 'generate';

const kHelp = `Continues a text.

Usage: lowrank generate --prompt TEXT [options]

Without --model, the bundled model is used. The text appears as it is made; Ctrl-C ends it.

${modelHelp}  --prompt TEXT       what the text begins with
  --tokens N          tokens to add at most                               [200]
${samplingHelp}  --json              one JSON object on stdout, no progress
`;

const kOptions = {
  ...generationOptions,
  prompt: { type: 'string' },
  json: { type: 'boolean' },
} as const;

/** Runs the subcommand. */
export async function generateCommand(args: readonly string[]): Promise<number> {
  const parsed = Arguments.parse(kOp, args, kOptions, { min: 0, max: 0, names: '' });
  if (parsed.flag('help')) {
    process.stdout.write(kHelp);
    return exitCodes.ok;
  }
  const prompt = parsed.text('prompt');
  if (prompt === undefined) throw parsed.wrong('--prompt must be given, got none');
  const options = readGeneration(parsed, 200);
  const json = parsed.flag('json');
  const progress = new Progress(json);
  const interrupts = new Interrupts();
  const opened = await OpenedModel.open(kOp, parsed, progress);
  const { tokenizer, adapters } = opened;
  try {
    const start = tokenizer.bosId ?? tokenizer.eosId;
    const encoded = await tokenizer.encode(prompt, 'the prompt');
    const ids = [...(start === undefined ? [] : [start]), ...encoded];
    const decoder = await opened.load(parsed, options, progress, interrupts.signal);
    if (decoder === undefined) return interrupts.exitCode;
    const text = new TextStream(tokenizer, json ? () => {} : (part) => process.stdout.write(part));
    if (!json) process.stdout.write(visible(prompt));
    const started = performance.now();
    for await (const id of generate(decoder, ids, { ...options.sampling, ...adapters })) {
      await text.add(id);
      await new Promise((resolve) => setImmediate(resolve));
      if (interrupts.signal.aborted) break;
    }
    const seconds = (performance.now() - started) / 1000;
    await text.end();
    const count = text.ids.length;
    const tokensPerSecond = seconds > 0 ? count / seconds : 0;
    const result = { prompt, text: text.text, ids: text.ids, seconds, tokensPerSecond };
    process.stdout.write(json ? jsonText(result) : '\n');
    progress.line(`${count} tokens, ${tokensPerSecond.toFixed(1)} tokens/s`);
    return interrupts.signal.aborted ? interrupts.exitCode : exitCodes.ok;
  } finally {
    progress.close();
    interrupts.dispose();
    await opened.close();
  }
}
