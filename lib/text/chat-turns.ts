/** Which parts of a rendered conversation are the assistant's. */

import type { ChatTemplate, Conversation } from './chat-template.js';

/** A conversation to learn from. */
export interface LearnedConversation extends Conversation {
  /** Turns of the assistant before this message are not learned; default 0. */
  readonly from?: number;
}

/** A rendered conversation. */
export interface RenderedChat {
  readonly text: string;
  /** The learned parts as [begin, end) in characters of the text, ascending. */
  readonly learned: readonly (readonly [begin: number, end: number])[];
}

/** Is a message learned? OpenAI's `weight: 0` excludes one. */
export const isLearned = ({ role, weight }: Conversation['messages'][number]): boolean =>
  role === 'assistant' && weight !== 0;

/**
 * Renders a conversation and finds the turns of the assistant: what the model has to say behind the text that asks it to.
 * White space behind the token that ends a turn is no part of it, because nobody waits for it.
 *
 * Some templates render a turn in another way once others follow, for instance without its reasoning. The model never sees
 * such a text when it speaks, so each turn then gives a text of its own, as it was at that time.
 * @param special tokens that may end a turn
 * @returns one text, or one for each learned turn
 * @throws Error of the template; or if a turn has no place of its own in the text
 */
export function renderTurns(
  template: ChatTemplate,
  { from = 0, ...conversation }: LearnedConversation,
  special: readonly string[],
): RenderedChat[] {
  const { messages } = conversation;
  const render = (count: number, generate: boolean) =>
    template.render({ ...conversation, messages: messages.slice(0, count) }, { generate });
  const turns = messages.flatMap((message, i) => {
    if (i < from || !isLearned(message)) return [];
    const text = render(i + 1, false);
    const begin = beginOf(text, i, render);
    return [{ text, learned: [begin, endOf(text, begin, special)] as const }];
  });
  const whole = render(messages.length, false);
  const stays = turns.every(({ text, learned: [, end] }) => whole.startsWith(text.slice(0, end)));
  if (stays) return [{ text: whole, learned: turns.map(({ learned }) => learned) }];
  return turns.map(({ text, learned }) => ({ text, learned: [learned] }));
}

/** Where message `i` begins in the text that ends with it: behind what asks for it. */
function beginOf(
  text: string,
  i: number,
  render: (count: number, generate: boolean) => string,
): number {
  const asked = render(i, true);
  if (text.startsWith(asked)) return asked.length;
  // What asks may hold more than the turn keeps, such as the begin of its reasoning.
  let begin = 0;
  while (begin < asked.length && asked[begin] === text[begin]) begin++;
  const before = render(i, false);
  if (text.startsWith(before) && begin >= before.length) return begin;
  throw new Error(`messages[${i}] changes the text before it, so it has no place of its own`);
}

function endOf(text: string, begin: number, special: readonly string[]): number {
  const end = begin + text.slice(begin).trimEnd().length;
  const closed = special.some((token) => text.slice(begin, end).endsWith(token));
  return closed ? end : text.length;
}
