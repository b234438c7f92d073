/**
 * The tokenizer of a model. It works in its own thread (tokenize-worker.ts): a text that it never
 * finishes ends that thread, and nothing else.
 */

import fs from 'node:fs';
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { LowrankError } from '../core/errors.js';
import { printable } from '../core/printable.js';
import { packageFolder } from '../environment/package-folder.js';
import { isGgufPath } from '../model/gguf/open-model.js';
import type { ModelFiles } from '../model/model-files.js';
import type { Conversation } from './chat-template.js';
import type { LearnedConversation, RenderedChat } from './chat-turns.js';
import type {
  Started,
  TokenizerFiles,
  TokenizerReply,
  TokenizerRequest,
} from './tokenize-worker.js';

/** Time limits for a text: a hundred times what a merely long text takes. */
export interface TokenizeLimits {
  readonly base_ms: number;
  readonly perCharacter_ms: number;
}

const kLimits: TokenizeLimits = { base_ms: 10_000, perCharacter_ms: 0.1 };
/** Limit for starting, that is, reading 64 MB of JSON. */
const kStartLimit_ms = 120_000;
/** How often the thread is polled. */
const kTick_ms = 50;
/** Texts per message: enough that the message costs nothing, and few enough for a progress line. */
const kBatch = { texts: 256, characters: 1 << 18 };

/** Called while the thread works; if it throws, the work ends. */
export type OnTick = (done: number) => void | Promise<void>;

/** Converts text to token ids and back; ids are checked against the model's vocabulary. */
export class TextTokenizer {
  private constructor(
    private readonly thread: Thread,
    private readonly limits: TokenizeLimits,
    private readonly vocabSize: number,
    /** Ends a document. */
    readonly eosId: number | undefined,
    /** Starts a text that is to be continued, if the model was trained with one. */
    readonly bosId: number | undefined,
    private readonly started: Started,
  ) {}

  /** SHA-256 of the files that define the tokenisation, by their names. */
  get hashes(): Readonly<Record<string, string>> {
    return this.started.hashes;
  }

  /** The chat template: its file, and the SHA-256 of its text. */
  get template(): Started['template'] {
    return this.started.template;
  }

  /** Special tokens: ids with their texts. */
  get special(): Started['special'] {
    return this.started.special;
  }

  /** The ids of special tokens. */
  get specialIds(): ReadonlySet<number> {
    return new Set(this.started.special.map(([id]) => id));
  }

  /** @internal use {@link openTokenizer} */
  static async open(
    op: string,
    file: string,
    model: ModelFiles,
    onTick: OnTick,
    limits: TokenizeLimits,
    chat: ChatOptions,
  ): Promise<TextTokenizer> {
    const thread = new Thread(op, file, chat);
    try {
      const late = () => `must be read within ${kStartLimit_ms / 1000} s, got no result`;
      const reply = await thread.reply(() => kStartLimit_ms, late, onTick);
      if ('code' in reply) throw new LowrankError(reply.code, reply.message, { op });
      const config = model.decoder;
      const known = (id: number | undefined) =>
        id !== undefined && id < config.vocabSize ? id : undefined;
      const eos = known(config.eosTokenIds[0]);
      const { vocabSize } = config;
      const bos = known(config.bosTokenId);
      return new TextTokenizer(thread, limits, vocabSize, eos, bos, reply as Started);
    } catch (error) {
      await thread.end();
      throw error;
    }
  }

  /** Ends the thread. */
  async close(): Promise<void> {
    await this.thread.end();
  }

  /**
   * Ids of texts, without special tokens around them.
   * @param kind the name of a text in an error
   * @param onTexts receives the ids of some texts, one after another, and the length of each
   * @param onTick also called without visible progress
   * @throws LowrankError `ERR_FILE` if the tokenizer is not the model's, or does not finish a text
   */
  async encodeAll(
    texts: readonly string[],
    kind: string,
    onTexts: (ids: Int32Array, lengths: readonly number[]) => void,
    onTick: OnTick = () => {},
  ): Promise<void> {
    for (let first = 0; first < texts.length; ) {
      const batch = batchAt(texts, first);
      const begin = first;
      const nameOf = (i: number) => {
        const text = texts[begin + i] as string;
        const which = texts.length === 1 ? kind : `${kind} ${begin + i + 1} of ${texts.length}`;
        return `${which} (${text.length} characters, ${printable(text)})`;
      };
      const limitOf = (i: number) => {
        const { base_ms, perCharacter_ms } = this.limits;
        return base_ms + perCharacter_ms * (batch[i]?.length ?? 0);
      };
      const late = (i: number) =>
        `must tokenise ${nameOf(i)} within ${Math.round(limitOf(i) / 1000)} s, got no result: ` +
        'a regular expression in it backtracks without end on this text';
      this.thread.ask({ encode: batch });
      const reply = await this.thread.reply(limitOf, late, (i) => onTick(begin + i));
      if ('problem' in reply) {
        this.refuse(`must tokenise ${nameOf(this.thread.at)}, got ${printable(reply.problem)}`);
      }
      const { ids, lengths } = reply as Extract<TokenizerReply, { ids: Int32Array }>;
      const beyond = ids.find((id) => id >= this.vocabSize);
      if (beyond !== undefined) {
        this.refuse(
          `must give ids below the model's vocab_size (${this.vocabSize}), got ${beyond}. ` +
            'Tokenizer and model do not belong together',
        );
      }
      onTexts(ids, lengths);
      first += batch.length;
      await onTick(first);
    }
  }

  /** Ids of one text. @throws as {@link encodeAll} */
  async encode(text: string, kind = 'the text', onTick: OnTick = () => {}): Promise<number[]> {
    const found: number[] = [];
    const keep = (ids: Int32Array) => {
      for (const id of ids) found.push(id);
    };
    await this.encodeAll([text], kind, keep, onTick);
    return found;
  }

  /**
   * @param special shows special tokens too; default false
   * @throws LowrankError `ERR_FILE` if the tokenizer does not finish
   */
  async decode(
    ids: readonly number[],
    onTick: OnTick = () => {},
    special = false,
  ): Promise<string> {
    if (ids.length === 0) return '';
    const { base_ms, perCharacter_ms } = this.limits;
    const limit_ms = base_ms + perCharacter_ms * ids.length;
    const what = `must turn ${ids.length} ids into text`;
    this.thread.ask({ decode: ids, special });
    const late = () => `${what} within ${Math.round(limit_ms / 1000)} s, got no result`;
    const reply = await this.thread.reply(() => limit_ms, late, onTick);
    if ('problem' in reply) this.refuse(`${what}, got ${printable(reply.problem)}`);
    return (reply as Extract<TokenizerReply, { text: string }>).text;
  }

  /**
   * Conversations as texts, with the parts that are learned.
   * @param nameOf where a conversation stands, for errors
   * @param onChats receives the texts of some conversations, in order
   * @throws LowrankError `ERR_FILE` where the template rejects a conversation or does not finish, with its place ·
   * `ERR_FILE_NOT_FOUND` if the model has no template
   */
  async renderAll(
    conversations: readonly LearnedConversation[],
    nameOf: (i: number) => string,
    onChats: (chats: readonly (readonly RenderedChat[])[]) => void,
    onTick: OnTick = () => {},
  ): Promise<void> {
    for (let first = 0; first < conversations.length; first += kBatch.texts) {
      const batch = conversations.slice(first, first + kBatch.texts);
      this.thread.ask({ render: batch });
      const reply = await this.#rendered(
        (i) => nameOf(first + i),
        (i) => onTick(first + i),
      );
      onChats((reply as Extract<TokenizerReply, { chats: unknown }>).chats);
      await onTick(first + batch.length);
    }
  }

  /**
   * The text of a conversation up to where the assistant answers.
   * @throws as {@link renderAll}
   */
  async prompt(
    conversation: Conversation,
    name: string,
    onTick: OnTick = () => {},
  ): Promise<string> {
    this.thread.ask({ prompt: conversation });
    const reply = await this.#rendered(() => name, onTick);
    return (reply as Extract<TokenizerReply, { text: string }>).text;
  }

  /**
   * What ends a turn of the assistant in the chat template: a special token, or a text if it has none.
   * @throws as {@link renderAll}
   */
  async turnEnd(onTick: OnTick = () => {}): Promise<{
    readonly id: number | undefined;
    readonly text: string;
  }> {
    const said = 'Answer';
    const messages = [
      { role: 'user', content: 'Question' },
      { role: 'assistant', content: said },
    ];
    const found: RenderedChat[] = [];
    const keep = (chats: readonly (readonly RenderedChat[])[]) => {
      for (const chat of chats) for (const each of chat) found.push(each);
    };
    await this.renderAll([{ messages }], () => 'a conversation', keep, onTick);
    const { text = '', learned: [[begin, end] = [0, 0]] = [] } = found[0] ?? {};
    const turn = text.slice(begin, end);
    const mark = turn.slice(turn.lastIndexOf(said) + said.length);
    const special = this.started.special.filter(([, token]) => mark.includes(token));
    const [first] = special.sort(([, a], [, b]) => mark.indexOf(a) - mark.indexOf(b));
    return { id: first?.[0], text: mark };
  }

  async #rendered(nameOf: (i: number) => string, onTick: OnTick): Promise<TokenizerReply> {
    this.thread.requireTemplate(this.template);
    const limit_ms = this.limits.base_ms;
    const rule = 'must be messages that the chat template renders';
    const late = (i: number) =>
      `has a chat template that must end, got no text for ${nameOf(i)} within ${Math.round(limit_ms / 1000)} s`;
    const reply = await this.thread.reply(() => limit_ms, late, onTick);
    if (!('problem' in reply)) return reply;
    return this.thread.refuse(
      `${nameOf(this.thread.at)} ${rule}, got: ${printable(reply.problem)}`,
    );
  }

  private refuse(what: string): never {
    throw this.thread.wrong(what);
  }
}

function batchAt(texts: readonly string[], first: number): string[] {
  let [end, characters] = [first, 0];
  while (end < texts.length && end - first < kBatch.texts && characters < kBatch.characters) {
    characters += (texts[end++] as string).length;
  }
  return texts.slice(first, end);
}

/** How conversations are rendered. */
export interface ChatOptions {
  /** A file with a template, instead of the model's. */
  readonly template?: string | undefined;
  /** The day that templates see; default that of training. */
  readonly day?: Date;
}

/** The worker, with one request at a time. */
class Thread {
  private readonly shared = new Int32Array(new SharedArrayBuffer(4));
  private readonly worker: Worker;
  private waiting: {
    settle: (reply: TokenizerReply) => void;
    fail: (error: Error) => void;
  } | null = null;
  private failure: LowrankError | undefined;

  constructor(
    private readonly op: string,
    private readonly file: string,
    { template, day }: ChatOptions,
  ) {
    const configFile = isGgufPath(file)
      ? undefined
      : path.join(path.dirname(file), 'tokenizer_config.json');
    const workerData: TokenizerFiles = {
      ...{ op, file, configFile, at: this.shared },
      templateFile: template,
      day: day?.getTime(),
    };
    const script = path.join(packageFolder(), 'dist', 'cli', 'tokenize-worker.js');
    this.worker = new Worker(script, { workerData });
    this.worker.unref();
    this.worker.on('message', (reply: TokenizerReply) => this.waiting?.settle(reply));
    const fail = (what: string) => {
      this.failure ??= this.wrong(what);
      this.waiting?.fail(this.failure);
    };
    this.worker.on('error', (error) =>
      fail(`must be able to tokenise, got ${printable(String(error))}`),
    );
    this.worker.on('exit', () => fail('must be able to tokenise, but its thread ended'));
  }

  /** The index of the current text of the request. */
  get at(): number {
    return Atomics.load(this.shared, 0);
  }

  ask(request: TokenizerRequest): void {
    Atomics.store(this.shared, 0, 0);
    this.worker.postMessage(request);
  }

  /**
   * The answer to the last request.
   * @param limitOf how long it may work on a text
   * @param late the error text if it takes longer: what the file must do
   */
  async reply(
    limitOf: (at: number) => number,
    late: (at: number) => string,
    onTick: OnTick,
  ): Promise<TokenizerReply> {
    let [at, waited_ms, ticking, last] = [0, 0, false, performance.now()];
    let timer: NodeJS.Timeout | undefined;
    try {
      return await new Promise<TokenizerReply>((settle, fail) => {
        this.waiting = { settle, fail };
        if (this.failure !== undefined) fail(this.failure);
        const tick = async (): Promise<void> => {
          const [now, was] = [performance.now(), at];
          // At most two ticks at a time: time in which the process was stopped does not count.
          waited_ms += Math.min(now - last, 2 * kTick_ms);
          last = now;
          at = this.at;
          if (at !== was) waited_ms = 0;
          if (waited_ms > limitOf(at)) throw this.wrong(late(at));
          if (ticking) return;
          ticking = true;
          await onTick(at);
          ticking = false;
        };
        timer = setInterval(() => void tick().catch(fail), kTick_ms);
      });
    } catch (error) {
      await this.end();
      throw error;
    } finally {
      clearInterval(timer);
      this.waiting = null;
    }
  }

  wrong(what: string): LowrankError {
    const text = `${this.op}: ${printable(this.file)} ${what}`;
    return new LowrankError('ERR_FILE', text, { op: this.op });
  }

  /** For what is not wrong with the tokenizer's own file. */
  refuse(what: string): never {
    throw new LowrankError('ERR_FILE', `${this.op}: ${what}`, { op: this.op });
  }

  requireTemplate(template: Started['template']): void {
    if (template !== undefined) return;
    const text =
      `${this.op}: the model of ${printable(this.file)} must have a chat template for messages ` +
      '(in tokenizer_config.json, chat_template.jinja or the GGUF file), got none. ' +
      'Give one with --chat-template';
    throw new LowrankError('ERR_FILE_NOT_FOUND', text, { op: this.op });
  }

  async end(): Promise<void> {
    await this.worker.terminate();
  }
}

/**
 * Opens `tokenizer.json` (and `tokenizer_config.json`, if there is one) of a model folder, or the vocabulary of a GGUF file. It must
 * be closed.
 * @param onTick called while it starts; if it throws, the start ends
 * @param other instead of the model's: a folder with tokenizer.json, or a GGUF file
 * @throws LowrankError `ERR_FILE_NOT_FOUND` · `ERR_FILE` if malformed or of an unknown kind · `ERR_UNSUPPORTED` for a vocabulary in
 * GGUF that is not read
 */
export async function openTokenizer(
  op: string,
  model: ModelFiles,
  onTick: OnTick = () => {},
  limits: TokenizeLimits = kLimits,
  other?: string,
  chat: ChatOptions = {},
): Promise<TextTokenizer> {
  const file = other === undefined ? model.tokenizerPath : tokenizerIn(other);
  if (file === undefined) {
    const given = other ?? model.path;
    const text = isGgufPath(given)
      ? `${printable(given)} must hold a vocabulary, got a file without one. ` +
        'Give a folder with the tokenizer.json of the model as --tokenizer'
      : `${printable(given)} must hold tokenizer.json, got a folder without one. ` +
        'Save it with tokenizer.save_pretrained of the transformers library';
    throw new LowrankError('ERR_FILE_NOT_FOUND', `${op}: ${text}`, { op });
  }
  return TextTokenizer.open(op, file, model, onTick, limits, chat);
}

function tokenizerIn(given: string): string | undefined {
  if (isGgufPath(given)) return given;
  const file = path.join(given, 'tokenizer.json');
  return fs.existsSync(file) ? file : undefined;
}
