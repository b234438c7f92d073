/** What `generate` and `chat` share: their options, a loaded model with its adapter, and text that grows. */

import { anyOf } from '../../core/errors.js';
import { formatNames } from '../../core/formats.js';
import { bundledModel } from '../../environment/package-folder.js';
import { type Device, defaultDevice } from '../../index.js';
import { Decoder } from '../../model/decoder.js';
import { DecoderWeights } from '../../model/decoder-weights.js';
import { openModel } from '../../model/gguf/open-model.js';
import { type DecoderAdapters, loadDecoderAdapters } from '../../model/load-adapters.js';
import type { ModelFiles } from '../../model/model-files.js';
import { type Progress, visible } from '../../report/terminal.js';
import { type ChatOptions, openTokenizer, type TextTokenizer } from '../../text/tokenizer.js';
import { fastestDType } from '../../train/dtype.js';
import type { Arguments } from '../command/arguments.js';
import { readDevice } from '../command/device-option.js';

/** Which model, before the options of the command. */
export const modelHelp = `  --model PATH        Hugging Face folder: config.json, model.safetensors (or shards), tokenizer.json;
                      or a .gguf file
  --tokenizer PATH    folder with tokenizer.json, or .gguf file           [the model's own]
  --adapter DIR       PEFT adapter folder, like one that lowrank finetune wrote
`;

/** How tokens are drawn, behind the options of the command. */
export const samplingHelp = `  --temperature X     divides the logits; 0 takes the most likely token   [0.7]
  --top-k N           draw from this many of the most likely tokens       [all]
  --top-p X           draw from the fewest tokens that reach this share   [1]
  --seed N            names every random choice                           [1]
  --format F          ${`${anyOf([...formatNames, 'none'])} (as in the file)`.padEnd(51)} [none]
  --dtype D           of the activations: f32, bf16 or f16    [bf16 where the device is faster in it]
  --device D          where to compute                                    [LOWRANK_DEVICE, or cpu]
`;

/** The options of both helps. */
export const generationOptions = {
  model: { type: 'string' },
  tokenizer: { type: 'string' },
  adapter: { type: 'string' },
  tokens: { type: 'string' },
  temperature: { type: 'string' },
  'top-k': { type: 'string' },
  'top-p': { type: 'string' },
  seed: { type: 'string' },
  format: { type: 'string' },
  dtype: { type: 'string' },
  device: { type: 'string' },
} as const;

/** @param tokens how many are added at most, if the options do not say */
export function readGeneration(parsed: Arguments, tokens: number) {
  const device: Device = readDevice(parsed) ?? defaultDevice();
  const dtype = parsed.choice('dtype', 'auto', ['auto', 'f32', 'bf16', 'f16']);
  const share = (value: number) => value > 0 && value <= 1;
  const topK =
    parsed.text('top-k') === undefined ? {} : { topK: parsed.integer('top-k', 1, 1, 1e9) };
  return {
    device,
    format: parsed.choice('format', 'none', [...formatNames, 'none']),
    sampling: {
      dtype: dtype === 'auto' ? fastestDType(device) : dtype,
      maxTokens: parsed.integer('tokens', tokens, 1, 1_000_000),
      temperature: parsed.number('temperature', 0.7, 'a number of at least 0', (x) => x >= 0),
      topP: parsed.number('top-p', 1, 'in (0, 1]', share),
      seed: parsed.integer('seed', 1, 0, Number.MAX_SAFE_INTEGER),
      ...topK,
    },
  };
}

/** The model and the tokenizer of a command, closed together. */
export class OpenedModel {
  readonly adapters: DecoderAdapters = { adapters: new Map(), experts: new Map() };
  #decoder: Decoder | undefined;

  private constructor(
    readonly model: ModelFiles,
    readonly tokenizer: TextTokenizer,
  ) {}

  /** Opens the files; {@link OpenedModel.load} reads the weights. */
  static async open(
    op: string,
    parsed: Arguments,
    progress: Progress,
    chat: ChatOptions = {},
  ): Promise<OpenedModel> {
    const model = openModel(parsed.text('model') ?? bundledModel());
    for (const warning of model.warnings) progress.line(`note: ${visible(warning)}`);
    const other = parsed.text('tokenizer');
    return new OpenedModel(
      model,
      await openTokenizer(op, model, undefined, undefined, other, chat),
    );
  }

  /** Reads the weights layer by layer, and the adapter of `--adapter`; `undefined` if a signal came. */
  async load(
    parsed: Arguments,
    { format, device }: ReturnType<typeof readGeneration>,
    progress: Progress,
    signal: AbortSignal,
  ): Promise<Decoder | undefined> {
    progress.phase('loading');
    const loading = DecoderWeights.loading(this.model, { format: { format }, device });
    for (;;) {
      const { done, value } = loading.next();
      if (done === true) {
        this.#decoder = new Decoder(this.model.decoder, value);
        break;
      }
      progress.update(value.done, value.total);
      await new Promise((resolve) => setImmediate(resolve));
      if (signal.aborted) {
        loading.return(undefined as never);
        return undefined;
      }
    }
    const folder = parsed.text('adapter');
    if (folder !== undefined) {
      const { adapters, experts } = loadDecoderAdapters(this.#decoder, folder);
      for (const [name, adapter] of adapters) this.adapters.adapters.set(name, adapter);
      for (const [name, lora] of experts) this.adapters.experts.set(name, lora);
    }
    progress.close();
    return this.#decoder;
  }

  async close(): Promise<void> {
    const { adapters, experts } = this.adapters;
    for (const each of [...adapters.values(), ...experts.values()]) each.dispose();
    this.#decoder?.dispose();
    await this.tokenizer.close();
  }
}

/** Turns ids into text as they come. A character may need several tokens: its bytes wait for the rest. */
export class TextStream {
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
