/** `lowrank generate`: continues a text with a model, and with an adapter if one is given. */

import { anyOf } from '../core/errors.js';
import { formatNames } from '../core/formats.js';
import { bundledModel } from '../environment/package-folder.js';
import { type Device, defaultDevice } from '../index.js';
import { Decoder } from '../model/decoder.js';
import { DecoderWeights } from '../model/decoder-weights.js';
import { generate } from '../model/generate.js';
import { openModel } from '../model/gguf/open-model.js';
import { type DecoderAdapters, loadDecoderAdapters } from '../model/load-adapters.js';
import type { ModelFiles } from '../model/model-files.js';
import { jsonText, Progress, visible } from '../report/terminal.js';
import { openTokenizer, type TextTokenizer } from '../text/tokenizer.js';
import { fastestDType } from '../train/dtype.js';
import { Arguments } from './command/arguments.js';
import { readDevice } from './command/device-option.js';
import { exitCodes } from './command/exit-codes.js';
import { Interrupts } from './command/interrupt.js';

const kOp = 'generate';

const kHelp = `Continues a text.

Usage: lowrank generate --prompt TEXT [options]

Without --model, the bundled model is used. The text appears as it is made; Ctrl-C ends it.

  --model PATH        Hugging Face folder: config.json, model.safetensors (or shards), tokenizer.json;
                      or a .gguf file
  --tokenizer PATH    folder with tokenizer.json, or .gguf file           [the model's own]
  --adapter DIR       PEFT adapter folder, like one that lowrank finetune wrote
  --prompt TEXT       what the text begins with
  --tokens N          tokens to add at most                               [200]
  --temperature X     divides the logits; 0 takes the most likely token   [0.7]
  --top-k N           draw from this many of the most likely tokens       [all]
  --top-p X           draw from the fewest tokens that reach this share   [1]
  --seed N            names every random choice                           [1]
  --format F          ${`${anyOf([...formatNames, 'none'])} (as in the file)`.padEnd(51)} [none]
  --dtype D           of the activations: f32, bf16 or f16    [bf16 where the device is faster in it]
  --device D          where to compute                                    [LOWRANK_DEVICE, or cpu]
  --json              one JSON object on stdout, no progress
`;

const kOptions = {
  model: { type: 'string' },
  tokenizer: { type: 'string' },
  adapter: { type: 'string' },
  prompt: { type: 'string' },
  tokens: { type: 'string' },
  temperature: { type: 'string' },
  'top-k': { type: 'string' },
  'top-p': { type: 'string' },
  seed: { type: 'string' },
  format: { type: 'string' },
  dtype: { type: 'string' },
  device: { type: 'string' },
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
  const options = readOptions(parsed);
  const json = parsed.flag('json');
  const progress = new Progress(json);
  const interrupts = new Interrupts();
  const model = openModel(parsed.text('model') ?? bundledModel());
  for (const warning of model.warnings) progress.line(`note: ${visible(warning)}`);
  const other = parsed.text('tokenizer');
  const tokenizer = await openTokenizer(kOp, model, () => {}, undefined, other);
  let decoder: Decoder | undefined;
  let adapters: DecoderAdapters = { adapters: new Map(), experts: new Map() };
  try {
    const start = tokenizer.bosId ?? tokenizer.eosId;
    const encoded = await tokenizer.encode(prompt, 'the prompt');
    const ids = [...(start === undefined ? [] : [start]), ...encoded];
    decoder = await load(model, options, progress, interrupts.signal);
    if (decoder === undefined) return interrupts.exitCode;
    const folder = parsed.text('adapter');
    if (folder !== undefined) adapters = loadDecoderAdapters(decoder, folder);
    progress.close();
    const text = new TextStream(tokenizer, json ? () => {} : (part) => process.stdout.write(part));
    if (!json) process.stdout.write(visible(prompt));
    const { format: _, device: __, ...sampling } = options;
    const started = performance.now();
    for await (const id of generate(decoder, ids, { ...sampling, ...adapters })) {
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
    for (const each of [...adapters.adapters.values(), ...adapters.experts.values()])
      each.dispose();
    decoder?.dispose();
    await tokenizer.close();
  }
}

function readOptions(parsed: Arguments) {
  const device: Device = readDevice(parsed) ?? defaultDevice();
  const dtype = parsed.choice('dtype', 'auto', ['auto', 'f32', 'bf16', 'f16']);
  const share = (value: number) => value > 0 && value <= 1;
  const topK =
    parsed.text('top-k') === undefined ? {} : { topK: parsed.integer('top-k', 1, 1, 1e9) };
  return {
    device,
    format: parsed.choice('format', 'none', [...formatNames, 'none']),
    dtype: dtype === 'auto' ? fastestDType(device) : dtype,
    maxTokens: parsed.integer('tokens', 200, 1, 1_000_000),
    temperature: parsed.number('temperature', 0.7, 'a number of at least 0', (x) => x >= 0),
    topP: parsed.number('top-p', 1, 'in (0, 1]', share),
    seed: parsed.integer('seed', 1, 0, Number.MAX_SAFE_INTEGER),
    ...topK,
  };
}

/** The model, layer by layer; `undefined` if a signal came. */
async function load(
  model: ModelFiles,
  { format, device }: ReturnType<typeof readOptions>,
  progress: Progress,
  signal: AbortSignal,
): Promise<Decoder | undefined> {
  progress.phase('loading');
  const loading = DecoderWeights.loading(model, { format: { format }, device });
  for (;;) {
    const { done, value } = loading.next();
    if (done === true) return new Decoder(model.decoder, value);
    progress.update(value.done, value.total);
    await new Promise((resolve) => setImmediate(resolve));
    if (signal.aborted) {
      loading.return(undefined as never);
      return undefined;
    }
  }
}

/** Turns ids into text as they come. A character may need several tokens: its bytes wait for the rest. */
class TextStream {
  readonly ids: number[] = [];
  text = '';

  constructor(
    private readonly tokenizer: TextTokenizer,
    private readonly show: (part: string) => void,
  ) {}

  async add(id: number): Promise<void> {
    this.ids.push(id);
    await this.#grow((text) => !text.endsWith('\ufffd'));
  }

  async end(): Promise<void> {
    await this.#grow(() => true);
  }

  async #grow(whole: (text: string) => boolean): Promise<void> {
    const text = await this.tokenizer.decode(this.ids);
    if (!whole(text) || text.length <= this.text.length) return;
    this.show(visible(text.slice(this.text.length)));
    this.text = text;
  }
}
