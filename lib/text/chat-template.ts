/** Chat templates: conversations as the text that a model was trained on. */

import { Template } from '@huggingface/jinja';
import { kStrip, replaceStrips, stripped } from './template-strip.js';

/** One message of a conversation. Templates may read further fields. */
export interface ChatMessage {
  readonly role: string;
  readonly [field: string]: unknown;
}

/** What a template renders. */
export interface Conversation {
  readonly messages: readonly ChatMessage[];
  /** Descriptions of functions, if the template takes them. */
  readonly tools?: readonly unknown[];
}

/**
 * The day that templates see in training, so that the same data gives the same tokens on any day. Templates of Llama 3 name it
 * where a runtime has no clock.
 */
export const kTrainingDay = new Date(Date.UTC(2024, 6, 26));

const kClock = 'lowrank_strftime';

/**
 * A template of `tokenizer_config.json` or `chat_template.jinja`, with the variables that transformers gives it.
 * @example
 * const template = new ChatTemplate(source, { bos_token: '<s>', eos_token: '</s>' });
 * template.render({ messages: [{ role: 'user', content: 'Hello' }] }, { generate: true });
 */
export class ChatTemplate {
  readonly #template: Template;

  /**
   * @param tokens special tokens by the names of transformers: `bos_token`, `eos_token`, ...
   * @param day what `strftime_now` tells
   * @throws Error if the source is no template
   */
  constructor(
    source: string,
    private readonly tokens: Readonly<Record<string, unknown>>,
    private readonly day: Date = kTrainingDay,
  ) {
    // The engine's own clock cannot be replaced from outside. The line break belongs to the tag.
    this.#template = new Template(`{% set strftime_now = ${kClock} %}\n${source}`);
    replaceStrips(this.#template.parsed);
  }

  /**
   * The text of a conversation.
   * @param options.generate ends the text with what begins a turn of the assistant
   * @throws Error with the template's own words, for instance about the order of roles
   */
  render({ messages, tools }: Conversation, options: { readonly generate: boolean }): string {
    return this.#template.render({
      ...this.tokens,
      messages,
      ...(tools === undefined ? {} : { tools }),
      add_generation_prompt: options.generate,
      [kStrip]: stripped,
      [kClock]: (format: string) => formatDay(this.day, format),
    });
  }
}

const kMonths = [
  ...['January', 'February', 'March', 'April', 'May', 'June', 'July'],
  ...['August', 'September', 'October', 'November', 'December'],
];
const kDays = ['Sunday', 'Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday'];

/** A day and time in UTC, by the directives of C's strftime in English; others stay as they are. */
export function formatDay(day: Date, format: string): string {
  const two = (value: number) => String(value).padStart(2, '0');
  const month = kMonths[day.getUTCMonth()] as string;
  const weekday = kDays[day.getUTCDay()] as string;
  const fields: Readonly<Record<string, string>> = {
    Y: String(day.getUTCFullYear()),
    y: two(day.getUTCFullYear() % 100),
    m: two(day.getUTCMonth() + 1),
    d: two(day.getUTCDate()),
    B: month,
    b: month.slice(0, 3),
    A: weekday,
    a: weekday.slice(0, 3),
    H: two(day.getUTCHours()),
    I: two(((day.getUTCHours() + 11) % 12) + 1),
    M: two(day.getUTCMinutes()),
    S: two(day.getUTCSeconds()),
    p: day.getUTCHours() < 12 ? 'AM' : 'PM',
    '%': '%',
  };
  return format.replace(/%([A-Za-z%])/g, (whole, name: string) => fields[name] ?? whole);
}
