/** The data of a run: text, or examples. */

import { createHash } from 'node:crypto';
import { LowrankError } from '../core/errors.js';
import { printable } from '../core/printable.js';
import type { TrainingData } from '../text/sequences.js';
import { heldOutCount, packText, readText, type TextSource } from '../text/text-data.js';
import type { OnTick, TextTokenizer } from '../text/tokenizer.js';
import { type DataFile, type DataFormat, dataFiles } from './data-files.js';
import { type DataUnit, lengthOf, type TokenizedExamples, tokenizeExamples } from './documents.js';
import { type Example, type ExampleKind, readExamples } from './examples.js';
import { PackedSet } from './pack.js';
import { type Place, placeText } from './place.js';

/** What a model learns from data: the next token, or which of two answers is better. */
export type LossName = 'lm' | 'dpo';

/** Which data, and how it is read. */
export interface DataOptions {
  /** Files, and folders of files. */
  readonly data: readonly string[];
  /** Files to evaluate on; without them, the last tenth of the data is held out. */
  readonly evalData?: readonly string[];
  /** How all files are read; default by their endings. */
  readonly dataFormat?: DataFormat;
  /** The kind of examples, where lines have the fields of several. */
  readonly kind?: ExampleKind;
  /** Are prompts and answers turns of a chat? Default false. */
  readonly chat?: boolean;
  /** Text between two documents of a text file; empty for none. */
  readonly separator: string;
  readonly seqLen: number;
  /** Does each example have a sequence of its own? Default false: several share one. */
  readonly noPacking?: boolean;
  /** Are examples that are too long left out? Default false: they are rejected. */
  readonly skipLong?: boolean;
  /** Default `lm`. */
  readonly loss?: LossName;
}

/** A text for samples, as tokens. */
export interface SamplePrompt {
  readonly text: string;
  readonly ids: readonly number[];
}

/** {@link DataSource.prepare}'s result. */
export interface PreparedData {
  readonly data: TrainingData;
  /** What is worth knowing, in words. */
  readonly notes: readonly string[];
  /** The examples in tokens; none of plain text. */
  readonly units: readonly DataUnit[];
  /** Begins of held-out examples; none of plain text. */
  readonly prompts: readonly SamplePrompt[];
  /** Tokens that end an answer beside those of the model. */
  readonly ends: readonly number[];
}

interface Part {
  readonly text: TextSource;
  readonly examples: readonly Example[];
}

/** Data that was read and checked, but not yet tokenised. */
export class DataSource {
  private constructor(
    private readonly op: string,
    private readonly options: DataOptions,
    private readonly train: Part,
    private readonly heldOut: Part | undefined,
  ) {}

  /**
   * Reads all files.
   * @throws LowrankError `ERR_FILE` with file and line, `ERR_FILE_NOT_FOUND`, `ERR_PATH` · `ERR_VALUE` for data that is empty, or does not fit
   * the loss
   */
  static open(op: string, options: DataOptions): DataSource {
    const { data, evalData, dataFormat, loss = 'lm' } = options;
    const list = (sources: readonly string[]) => dataFiles(op, sources, dataFormat);
    const files = list(data);
    const others = evalData === undefined ? undefined : list(evalData);
    const refuse = (text: string): never => {
      throw new LowrankError('ERR_VALUE', `${op}: ${text}`, { op });
    };
    const isText = (part: readonly DataFile[]) => part.every(({ format }) => format === 'text');
    if (others !== undefined && isText(others) !== isText(files)) {
      const [a, b] = isText(files) ? ['text', 'examples'] : ['examples', 'text'];
      refuse(`--eval-data must be ${a}, as --data is, got ${b}`);
    }
    const parts = [files, ...(others === undefined ? [] : [others])].map((each) =>
      readPart(op, each, options),
    );
    const source = new DataSource(op, options, parts[0] as Part, parts[1]);
    for (const [i, part] of parts.entries()) {
      const name = i === 0 ? '--data' : '--eval-data';
      const given = (i === 0 ? data : (evalData ?? [])).map(printable).join(', ');
      const empty = part.text.documents.length + part.examples.length === 0;
      if (empty) refuse(`${given} must hold text to train on, got an empty one`);
      const got = part.examples[0]?.kind ?? 'text';
      if (loss === 'dpo' && got !== 'preference') {
        refuse(`${name} must hold chosen and rejected answers for --loss dpo, got ${got}`);
      }
      if (loss === 'lm' && got === 'preference') {
        refuse(`--loss must be dpo for ${name} with chosen and rejected answers, got lm`);
      }
      if (got !== source.kind) refuse(`${name} must hold ${source.kind}, got ${got}`);
    }
    return source;
  }

  /** The kind of the examples; `text` for plain text too. */
  get kind(): ExampleKind {
    return this.train.examples[0]?.kind ?? 'text';
  }

  /** Is the data plain text? */
  get plain(): boolean {
    return this.train.examples.length === 0;
  }

  /** The documents of plain text. */
  get documents(): readonly string[] {
    return this.train.text.documents;
  }

  /** Has an example messages, which need a chat template? */
  get chats(): boolean {
    return [this.train, this.heldOut].some((part) =>
      part?.examples.some(({ contents }) => contents.some((content) => 'messages' in content)),
    );
  }

  /** What identifies the data in a checkpoint, by the names of options. */
  identity({ template }: TextTokenizer): Readonly<Record<string, string | boolean>> {
    const { kind, options, heldOut } = this;
    const { loss = 'lm', chat = false, noPacking = false, skipLong = false } = options;
    const text = { 'text (SHA-256)': this.train.text.sha256 };
    const other = heldOut === undefined ? {} : { 'eval-data (SHA-256)': heldOut.text.sha256 };
    if (this.plain) return { ...text, ...other };
    return {
      ...text,
      ...other,
      ...(this.chats ? { 'chat template (SHA-256)': template?.sha256 ?? 'none' } : {}),
      ...{ kind, loss, 'as-chat': chat, 'no-packing': noPacking, 'skip-long': skipLong },
    };
  }

  /**
   * Tokenises and packs the data.
   * @param onTick called now and then, even without visible progress; if it throws, the work ends
   * @throws LowrankError `ERR_FILE` with file and line, for an example that the template rejects, is too long, or has nothing to learn ·
   * `ERR_VALUE` for too little data · as {@link TextTokenizer}
   */
  async prepare(
    tokenizer: TextTokenizer,
    onTick: (done: number, total: number) => void | Promise<void> = () => {},
  ): Promise<PreparedData> {
    const { op, options, train, heldOut } = this;
    const { seqLen: T } = options;
    if (this.plain) {
      const data = await packText(op, train.text, tokenizer, T, onTick, heldOut?.text);
      return { data, notes: [], units: [], prompts: [], ends: [] };
    }
    const tokenized = async ({ examples }: Part) => {
      const tick: OnTick = (done) => onTick(Math.min(done, examples.length), examples.length);
      return tokenizeExamples(op, examples, tokenizer, T, tick);
    };
    const own = await tokenized(train);
    const other = heldOut === undefined ? undefined : await tokenized(heldOut);
    const fitting = [own, ...(other === undefined ? [] : [other])].map(({ units }) =>
      this.#fitting(units),
    );
    const [units = [], evaluated] = fitting;
    const [learned, held] = evaluated === undefined ? this.#split(units) : [units, evaluated];
    const set = (of: readonly DataUnit[]) => new PackedSet(of, T, options.noPacking !== true);
    const all = [...learned, ...held];
    const tokens = all.reduce((sum, unit) => sum + lengthOf(unit) + unit.documents.length, 0);
    const left = own.units.length + (other?.units.length ?? 0) - all.length;
    return {
      data: { train: set(learned), heldOut: set(held), tokens },
      notes: notesOf([own, ...(other === undefined ? [] : [other])], left),
      units: all,
      prompts: await promptsOf(held, tokenizer),
      ends: endsOf(all, tokenizer),
    };
  }

  /** Units that fit into a sequence. */
  #fitting(units: readonly DataUnit[]): readonly DataUnit[] {
    const { seqLen: T, skipLong } = this.options;
    const long = units.filter((unit) => lengthOf(unit) > T);
    const [first] = long;
    if (first === undefined) return units;
    if (skipLong === true) {
      const kept = units.filter((unit) => lengthOf(unit) <= T);
      if (kept.length > 0) return kept;
    }
    const most = long.reduce((sum, unit) => Math.max(sum, lengthOf(unit)), 0);
    const both = first.documents.length > 1 ? ', both answers together' : '';
    const text =
      `${this.op}: ${placeText(first.place)} must be of at most ${T} tokens (--seq-len)${both}, got ` +
      `${lengthOf(first)}. ${long.length} of ${units.length} are longer: --seq-len ${most} holds all, ` +
      '--skip-long leaves them out';
    throw new LowrankError('ERR_FILE', text, { op: this.op });
  }

  /** The last tenth of the examples is held out. */
  #split(units: readonly DataUnit[]): [readonly DataUnit[], readonly DataUnit[]] {
    const examples = [...new Set(units.map(({ example }) => example))];
    const first = examples[examples.length - heldOutCount(examples.length)];
    if (examples.length < 2 || first === undefined) {
      const text =
        `${this.op}: --data must have at least 2 examples, one to train on and one to hold out, ` +
        `got ${examples.length}. Give more, or others as --eval-data`;
      throw new LowrankError('ERR_VALUE', text, { op: this.op });
    }
    return [
      units.filter(({ example }) => example < first),
      units.filter(({ example }) => example >= first),
    ];
  }
}

function readPart(op: string, files: readonly DataFile[], options: DataOptions): Part {
  const names = files.map(({ file }) => file);
  if (files.every(({ format }) => format === 'text')) {
    return { text: readText(op, names, options.separator), examples: [] };
  }
  const hash = createHash('sha256');
  let bytes = 0;
  const examples = readExamples(op, files, options, (content) => {
    hash.update(content);
    bytes += content.length;
  });
  return { text: { documents: [], bytes, sha256: hash.digest('hex') }, examples };
}

function notesOf(parts: readonly TokenizedExamples[], left: number): string[] {
  const sum = (of: (part: TokenizedExamples) => readonly Place[]) => parts.flatMap(of);
  const first = (places: readonly Place[]) => `the first is ${placeText(places[0] as Place)}`;
  const straddling = sum((part) => part.straddling);
  const rewritten = sum((part) => part.rewritten);
  return [
    ...(left === 0 ? [] : [`${left} examples are longer than --seq-len and were left out`]),
    ...(straddling.length === 0
      ? []
      : [
          `in ${straddling.length} examples a token holds the end of a prompt and the begin of what is learned ` +
            `(${first(straddling)}); it is learned. Begin the answer with the space, or end the prompt with a line break`,
        ]),
    ...(rewritten.length === 0
      ? []
      : [
          `the template renders earlier turns of ${rewritten.length} conversations in another way (${first(rewritten)}): ` +
            'each turn is learned in a text of its own',
        ]),
  ];
}

/** The begins of two held-out examples, up to what is learned; of plain examples their first words. */
async function promptsOf(
  held: readonly DataUnit[],
  tokenizer: TextTokenizer,
): Promise<SamplePrompt[]> {
  const chosen = [held[Math.floor(held.length / 2)], held[held.length - 1]];
  const found: SamplePrompt[] = [];
  for (const unit of new Set(chosen)) {
    const document = unit?.documents[0];
    if (document === undefined) continue;
    const first = document.learned[0]?.[0] ?? 0;
    const ids = Array.from(
      document.ids.subarray(0, first > 1 ? first : Math.min(5, document.ids.length)),
    );
    found.push({ text: (await tokenizer.decode(ids)).trim(), ids });
  }
  return found;
}

/** Special tokens that end what is learned. */
function endsOf(units: readonly DataUnit[], { specialIds }: TextTokenizer): number[] {
  const ends = units.flatMap(({ documents }) =>
    documents.flatMap(({ ids, learned }) => learned.map(([, end]) => ids[end - 1] as number)),
  );
  return [...new Set(ends)].filter((id) => specialIds.has(id));
}
