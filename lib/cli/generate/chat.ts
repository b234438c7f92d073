/** `lowrank chat`: a conversation with a model in its own template, line by line. */

import { createInterface } from 'node:readline';
import { LowrankError } from '../../core/errors.js';
import { hash32 } from '../../core/random.js';
import type { Decoder } from '../../model/decoder.js';
import { type GenerateOptions, generate } from '../../model/generate.js';
import { Progress } from '../../report/terminal.js';
import type { ChatMessage } from '../../text/chat-template.js';
import type { TextTokenizer } from '../../text/tokenizer.js';
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

const kOp = 'chat';

const kHelp = `Chats with a model, in the chat template of the model.

Usage: lowrank chat --model PATH [options]

Each line of stdin is a message; the answer appears on stdout as it is made. /new begins another conversation.
Ctrl-D, or the end of stdin, ends the chat; so does Ctrl-C.

${modelHelp}  --chat-template F   file with a template, instead of the model's
  --system TEXT       a message of the system before the first of yours
  --tokens N          tokens of an answer at most                         [1000]
${samplingHelp}`;

const kOptions = {
  ...generationOptions,
  'chat-template': { type: 'string' },
  system: { type: 'string' },
} as const;

/** Runs the subcommand. */
export async function chatCommand(args: readonly string[]): Promise<number> {
  const parsed = Arguments.parse(kOp, args, kOptions, { min: 0, max: 0, names: '' });
  if (parsed.flag('help')) {
    process.stdout.write(kHelp);
    return exitCodes.ok;
  }
  const options = readGeneration(parsed, 1000);
  const progress = new Progress();
  const interrupts = new Interrupts();
  const template = parsed.text('chat-template');
  const day = new Date();
  const opened = await OpenedModel.open(kOp, parsed, progress, { template, day });
  const terminal = process.stdin.isTTY === true;
  try {
    // A model without a template is told before its weights are read.
    const end = await opened.tokenizer.turnEnd();
    const decoder = await opened.load(parsed, options, progress, interrupts.signal);
    if (decoder === undefined) return interrupts.exitCode;
    const system = parsed.text('system');
    const sampling = { ...options.sampling, ...opened.adapters };
    const chat = new Chat(opened.tokenizer, decoder, end, sampling, system);
    const ask = () => {
      if (terminal) process.stdout.write('> ');
    };
    let code: number = exitCodes.ok;
    // Lines that come before somebody waits for them would be lost.
    const lines = createInterface({ input: process.stdin, terminal: false });
    interrupts.signal.addEventListener('abort', () => lines.close());
    ask();
    for await (const line of lines) {
      if (line.trim() === '/new') chat.clear();
      else if (line.trim() !== '') {
        const said = await chat.answer(line, interrupts.signal).catch((error: unknown) => {
          if (!(error instanceof LowrankError)) throw error;
          progress.line(`lowrank: ${error.message}`);
          code = exitCodes.usage;
        });
        if (said === 'interrupted') break;
      }
      ask();
    }
    if (terminal) process.stdout.write('\n');
    return interrupts.signal.aborted ? interrupts.exitCode : code;
  } finally {
    process.stdin.destroy();
    progress.close();
    interrupts.dispose();
    await opened.close();
  }
}

/** A conversation. */
class Chat {
  #messages: ChatMessage[] = [];
  #turns = 0;

  constructor(
    private readonly tokenizer: TextTokenizer,
    private readonly decoder: Decoder,
    private readonly end: Awaited<ReturnType<TextTokenizer['turnEnd']>>,
    private readonly sampling: GenerateOptions & { readonly seed: number },
    private readonly system: string | undefined,
  ) {
    this.clear();
  }

  /** Begins anew. */
  clear(): void {
    this.#messages = this.system === undefined ? [] : [{ role: 'system', content: this.system }];
  }

  /**
   * Writes the answer to stdout. A message that cannot be answered is forgotten.
   * @throws LowrankError `ERR_FILE` where the template rejects the conversation · `ERR_VALUE` if it is too long for the model
   */
  async answer(content: string, signal: AbortSignal): Promise<'answered' | 'interrupted'> {
    const messages = [...this.#messages, { role: 'user', content }];
    const prompt = await this.tokenizer.prompt({ messages }, 'the conversation');
    const ids = await this.tokenizer.encode(prompt, 'the conversation');
    const most = this.decoder.config.maxPositionEmbeddings - 1;
    if (ids.length > most) {
      const text =
        `${kOp}: the conversation must have at most ${most} tokens, got ${ids.length}. ` +
        '/new begins another one';
      throw new LowrankError('ERR_VALUE', text, { op: kOp });
    }
    const { id, text: mark } = this.end;
    const eosIds = [...this.decoder.config.eosTokenIds, ...(id === undefined ? [] : [id])];
    const stream = new TextStream(this.tokenizer, (part) => shown.add(part));
    const shown = new UntilMark(id === undefined ? mark : '', (part) => process.stdout.write(part));
    const seed = hash32(this.sampling.seed, 'turn', this.#turns++);
    for await (const next of generate(this.decoder, ids, { ...this.sampling, seed, eosIds })) {
      await stream.add(next);
      await new Promise((resolve) => setImmediate(resolve));
      if (signal.aborted || shown.done) break;
    }
    await stream.end();
    shown.end();
    process.stdout.write('\n');
    this.#messages = [...messages, { role: 'assistant', content: shown.text }];
    return signal.aborted ? 'interrupted' : 'answered';
  }
}

/** Text up to a mark, for templates that end turns with plain text. What may be the begin of the mark waits. */
class UntilMark {
  text = '';
  done = false;
  #waiting = '';

  constructor(
    private readonly mark: string,
    private readonly show: (part: string) => void,
  ) {}

  add(part: string): void {
    if (this.done) return;
    this.#waiting += part;
    const found = this.mark === '' ? -1 : this.#waiting.indexOf(this.mark);
    this.done = found >= 0;
    this.#release(this.done ? found : this.#waiting.length - this.#begun());
  }

  /** Shows what waited, unless the mark came. */
  end(): void {
    if (!this.done) this.#release(this.#waiting.length);
  }

  #release(count: number): void {
    this.show(this.#waiting.slice(0, count));
    this.text += this.#waiting.slice(0, count);
    this.#waiting = this.#waiting.slice(count);
  }

  /** How many characters at the end may begin the mark. */
  #begun(): number {
    const { mark } = this;
    for (let length = Math.min(mark.length - 1, this.#waiting.length); length > 0; length--) {
      if (this.#waiting.endsWith(mark.slice(0, length))) return length;
    }
    return 0;
  }
}
