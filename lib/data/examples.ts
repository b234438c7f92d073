/** Examples to learn from, checked field by field. */

import { readSmallFile } from '../checkpoint/files/file-access.js';
import { anyOf } from '../core/errors.js';
import { printable, printableValue } from '../core/printable.js';
import type { ChatMessage } from '../text/chat-template.js';
import { isLearned, type LearnedConversation } from '../text/chat-turns.js';
import { kMaxTextBytes } from '../text/text-data.js';
import { parseTable } from './csv.js';
import type { DataFile } from './data-files.js';
import { type DataRecord, parseJsonLines } from './jsonl.js';
import { type Place, placeText, refuseExample } from './place.js';

/** The kinds of examples, with the fields that make them out. */
export const exampleKinds = {
  messages: ['messages'],
  preference: ['chosen', 'rejected'],
  completion: ['prompt', 'completion'],
  text: ['text'],
} as const;

export type ExampleKind = keyof typeof exampleKinds;

/** What becomes one text: all of it is learned, or a completion, or turns of the assistant. */
export type Content =
  | { readonly text: string }
  | { readonly prompt: string; readonly completion: string }
  | LearnedConversation;

export interface Example {
  readonly place: Place;
  readonly kind: ExampleKind;
  /** One; of a preference the chosen answer and the rejected one, with the prompt. */
  readonly contents: readonly Content[];
}

/** How fields become examples. */
export interface ExampleOptions {
  /** The kind, where lines have the fields of several. */
  readonly kind?: ExampleKind;
  /** Are texts of prompts and answers turns of a chat? Default false. */
  readonly chat?: boolean;
}

const kinds = Object.keys(exampleKinds) as ExampleKind[];
const known = kinds.map((kind) => exampleKinds[kind].join(' and '));

/**
 * The examples of files, in order, all of one kind.
 * @throws LowrankError `ERR_FILE` with file and line · as {@link readSmallFile}
 */
export function readExamples(
  op: string,
  files: readonly DataFile[],
  { kind, chat = false }: ExampleOptions,
  onBytes: (bytes: Uint8Array) => void,
): Example[] {
  const records = files.flatMap(({ file, format }) => {
    const bytes = readSmallFile(op, file, kMaxTextBytes);
    onBytes(bytes);
    if (format === 'jsonl') return parseJsonLines(op, file, bytes);
    return parseTable(op, file, bytes, format === 'tsv' ? '\t' : ',');
  });
  const [first] = records;
  if (first === undefined) return [];
  const chosen = kind ?? kindOf(op, first);
  const reader = new ExampleReader(op, chosen, chat);
  return records.map((record) => {
    requireKind(op, record, chosen, kind === undefined ? first.place : undefined);
    return reader.read(record);
  });
}

const has = ({ fields }: DataRecord, name: string): boolean =>
  Object.hasOwn(fields, name) && fields[name] !== null;

const kindsOf = (record: DataRecord): ExampleKind[] =>
  kinds.filter((kind) => exampleKinds[kind].every((name) => has(record, name)));

const fieldsOf = ({ fields }: DataRecord): string =>
  Object.keys(fields).slice(0, 8).map(printable).join(', ') || 'none';

function kindOf(op: string, record: DataRecord): ExampleKind {
  const found = kindsOf(record);
  const [only, other] = found;
  if (only === undefined) {
    return refuseExample(op, record.place, '', `of the fields ${anyOf(known)}`, fieldsOf(record));
  }
  if (other === undefined) return only;
  const way = `fields of several kinds (${found.join(', ')}). Name the kind with --kind`;
  return refuseExample(op, record.place, '', 'of one kind', way);
}

/** @param first whose kind the others must have; undefined if the kind was named */
function requireKind(
  op: string,
  record: DataRecord,
  kind: ExampleKind,
  first: Place | undefined,
): void {
  const missing = exampleKinds[kind].find((name) => !has(record, name));
  const others = kindsOf(record);
  if (missing === undefined && (first === undefined || others.length === 1)) return;
  const like = first === undefined ? '' : `, as ${placeText(first)} is`;
  const expected = `of the fields ${exampleKinds[kind].join(' and ')} alone${like}`;
  refuseExample(op, record.place, '', expected, fieldsOf(record));
}

class ExampleReader {
  constructor(
    private readonly op: string,
    private readonly kind: ExampleKind,
    private readonly chat: boolean,
  ) {}

  read(record: DataRecord): Example {
    const { place } = record;
    return { place, kind: this.kind, contents: this.#contents(record) };
  }

  #contents(record: DataRecord): readonly Content[] {
    switch (this.kind) {
      case 'text':
        return [{ text: this.#text(record, 'text') }];
      case 'completion':
        return [this.#answer(record, 'completion')];
      case 'preference':
        return this.#preference(record);
      case 'messages': {
        const messages = this.#messages(record, 'messages');
        return [this.#conversation(record, messages, 0, 'messages')];
      }
    }
  }

  /** Two answers; without a prompt, the messages that both begin with are it. */
  #preference(record: DataRecord): readonly Content[] {
    if (has(record, 'prompt')) {
      return [this.#answer(record, 'chosen'), this.#answer(record, 'rejected')];
    }
    const both = ['chosen', 'rejected'].map((name) => this.#messages(record, name));
    const [chosen, rejected] = both as [ChatMessage[], ChatMessage[]];
    const texts = both.map((list) => list.map((message) => JSON.stringify(message)));
    let from = 0;
    while (from < chosen.length && texts[0]?.[from] === texts[1]?.[from]) from++;
    return [
      this.#conversation(record, chosen, from, 'chosen'),
      this.#conversation(record, rejected, from, 'rejected'),
    ];
  }

  /** A prompt with one of its answers: two texts, or two lists of messages. */
  #answer(record: DataRecord, name: string): Content {
    const { prompt, [name]: answer } = record.fields;
    if (!Array.isArray(prompt) && !Array.isArray(answer)) {
      const texts = { prompt: this.#text(record, 'prompt'), completion: this.#text(record, name) };
      if (!this.chat) return texts;
      const turn = { role: 'assistant', content: texts.completion };
      const asked = { role: 'user', content: texts.prompt };
      return this.#conversation(record, [asked, turn], 1, name);
    }
    const asked = this.#messages(record, 'prompt');
    const messages = [...asked, ...this.#messages(record, name)];
    return this.#conversation(record, messages, asked.length, name);
  }

  #text({ fields, place }: DataRecord, name: string): string {
    const value = fields[name];
    if (typeof value !== 'string' || value.trim() === '') {
      const got = value === '' ? 'an empty one' : printableValue(value);
      return refuseExample(this.op, place, name, 'a text that is not empty', got);
    }
    return value;
  }

  #messages({ fields, place }: DataRecord, name: string): ChatMessage[] {
    const value = fields[name];
    if (!Array.isArray(value) || value.length === 0) {
      const got = Array.isArray(value) ? 'an empty one' : printableValue(value);
      return refuseExample(this.op, place, name, 'a list of messages', got);
    }
    return value.map((message: unknown, i) => this.#message(place, `${name}[${i}]`, message));
  }

  #message(place: Place, name: string, value: unknown): ChatMessage {
    const refuse = (part: string, expected: string, got: string): never =>
      refuseExample(this.op, place, `${name}${part}`, expected, got);
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      return refuse('', 'an object of role and content', printableValue(value));
    }
    const { role, content, tool_calls: calls } = value as ChatMessage;
    if (typeof role !== 'string' || role === '') refuse('.role', 'a name', printableValue(role));
    const called = Array.isArray(calls) && calls.length > 0;
    if (Array.isArray(content)) {
      const other = content.find((part) => typeof (part as { text?: unknown })?.text !== 'string');
      if (other !== undefined) refuse('.content', 'a text, or a list of texts', 'another part');
    } else if (typeof content !== 'string' && !(called && (content ?? null) === null)) {
      refuse('.content', 'a text', printableValue(content));
    }
    const empty = typeof content === 'string' && content.trim() === '';
    if (role === 'assistant' && empty && !called) {
      refuse('.content', 'a text that is not empty, as the model learns it', 'an empty one');
    }
    return value as ChatMessage;
  }

  #conversation(
    { place, fields }: DataRecord,
    messages: readonly ChatMessage[],
    from: number,
    name: string,
  ): LearnedConversation {
    if (!messages.slice(from).some(isLearned)) {
      const roles = messages
        .slice(from)
        .map(({ role }) => printable(role))
        .join(', ');
      const got = roles === '' ? 'no message of its own' : `messages of ${roles}`;
      refuseExample(this.op, place, name, 'messages with one of the assistant to learn', got);
    }
    const { tools } = fields;
    if (tools !== undefined && tools !== null && !Array.isArray(tools)) {
      refuseExample(this.op, place, 'tools', 'a list', printableValue(tools));
    }
    return { messages, from, ...(Array.isArray(tools) ? { tools } : {}) };
  }
}
