/**
 * Conversations as text, and what of them is learned, against recordings of Jinja itself. There the templates mark what the
 * model learns; the library finds it without marks.
 */

import fs from 'node:fs';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { ChatTemplate, type Conversation, formatDay } from '../../lib/text/chat-template.js';
import { type RenderedChat, renderTurns } from '../../lib/text/chat-turns.js';

type Span = readonly [number, number];

interface Recorded {
  /** What the template raised. */
  readonly error?: string;
  readonly text: string;
  readonly spans: readonly Span[];
  readonly turns: readonly { readonly asked: string; readonly text: string; readonly span: Span }[];
}

const folder = path.join(import.meta.dirname, 'chat');
const read = (name: string) => fs.readFileSync(path.join(folder, name), 'utf8');
const conversations = JSON.parse(read('conversations.json')) as (Conversation & {
  readonly name: string;
})[];
const renderings = JSON.parse(read('renderings.json')) as Record<string, Record<string, Recorded>>;
const special = ['<s>', '</s>', '<|begin|>', '<|end|>', '<|head|>', '<|stop|>', '</turn>'];
const tokens = { bos_token: '<s>', eos_token: '</s>' };

const cases = Object.entries(renderings).flatMap(([name, byConversation]) =>
  conversations.map((conversation) => ({
    name,
    title: conversation.name,
    conversation,
    recorded: byConversation[conversation.name] as Recorded,
    template: new ChatTemplate(read(`${name}.jinja`), tokens),
  })),
);

describe('a recording', () => {
  it('has each template with each conversation, and errors among them', () => {
    expect(cases.length).toBe(6 * 9);
    expect(cases.filter(({ recorded }) => recorded.error !== undefined).length).toBe(5);
  });
});

describe.each(cases)('$name: $title', ({ name, title, conversation, recorded, template }) => {
  const rendered = () => renderTurns(template, conversation, special);

  if (recorded.error !== undefined) {
    it('is rejected with the words of the template', () => {
      expect(rendered).toThrow(recorded.error);
    });
    return;
  }

  it('has the text of Jinja', () => {
    expect(template.render(conversation, { generate: false })).toBe(recorded.text);
    const { messages } = conversation;
    const turns = messages.flatMap(({ role }, i) => (role === 'assistant' ? [i] : []));
    for (const [k, i] of turns.entries()) {
      const before = { ...conversation, messages: messages.slice(0, i) };
      const asked = template.render(before, { generate: true });
      expect(asked).toBe(recorded.turns[k]?.asked);
    }
  });

  it('learns what the template marks', () => {
    const apart = name === 'thinking' && title === 'reasons';
    const expected: RenderedChat[] = apart
      ? recorded.turns.map(({ text, span }) => ({ text, learned: [span] }))
      : [{ text: recorded.text, learned: recorded.spans }];
    expect(rendered()).toEqual(expected);
  });
});

describe('turns', () => {
  const template = new ChatTemplate(read('marks.jinja'), tokens);
  const messages = [
    { role: 'user', content: 'a' },
    { role: 'assistant', content: 'b' },
    { role: 'user', content: 'c' },
    { role: 'assistant', content: 'd' },
  ];
  const learned = (chats: readonly RenderedChat[]) =>
    chats.flatMap((chat) => chat.learned.map(([begin, end]) => chat.text.slice(begin, end)));

  it('before `from`, and those of weight 0, are not learned', () => {
    const all = renderTurns(template, { messages }, special);
    expect(learned(all)).toEqual(['b<|end|>', 'd<|end|>']);
    expect(learned(renderTurns(template, { messages, from: 2 }, special))).toEqual(['d<|end|>']);
    const weighted = messages.map((each, i) => (i === 3 ? { ...each, weight: 0 } : each));
    const [chat] = renderTurns(template, { messages: weighted }, special) as [RenderedChat];
    expect(learned([chat])).toEqual(['b<|end|>']);
    expect(chat.text).toBe(all[0]?.text);
  });

  it('keep the white space behind an end that is no special token', () => {
    expect(learned(renderTurns(template, { messages }, []))).toEqual(['b<|end|>\n', 'd<|end|>\n']);
  });

  it('begin where the template leaves what it asks with', () => {
    const source = `{% for m in messages %}<{{ m.role }}>{{ m.content }};{% endfor %}{% if add_generation_prompt %}<assistant><why>{% endif %}`;
    const chats = renderTurns(new ChatTemplate(source, {}), { messages }, special);
    expect(learned(chats)).toEqual(['b;', 'd;']);
  });

  it('without a place of their own are rejected', () => {
    const source = `{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}`;
    const counting = new ChatTemplate(source, {});
    expect(() => renderTurns(counting, { messages }, special)).toThrow(
      /messages\[1\] changes the text before it/,
    );
  });
});

describe('days', () => {
  it('are told as C tells them, in UTC', () => {
    const day = new Date(Date.UTC(2026, 11, 3, 15, 4, 9));
    expect(formatDay(day, '%d %b %Y, %A %B %a, %y-%m %H:%M:%S %I %p %% %q')).toBe(
      '03 Dec 2026, Thursday December Thu, 26-12 15:04:09 03 PM % %q',
    );
  });

  it('of training never change', () => {
    const source = "{{ strftime_now('%Y-%m-%d') }}{{ missing }}";
    const text = new ChatTemplate(source, {}).render({ messages: [] }, { generate: false });
    expect(text).toBe('2024-07-26');
    const other = new ChatTemplate(source, {}, new Date(0));
    expect(other.render({ messages: [] }, { generate: false })).toBe('1970-01-01');
  });
});

describe('stripping', () => {
  // Hand-derived: what Python's methods give.
  it.each([
    ["' ab '.strip(' ')", 'ab'],
    ["'\\n ab\\n'.lstrip('\\n')", ' ab\n'],
    ["'xyaxy'.rstrip('yx')", 'xya'],
    ["'xyaxy'.strip('xy')", 'a'],
    ["' ab '.lstrip()", 'ab '],
    ["' ab '.strip(none)", 'ab'],
    ["('<a>' ~ '-').strip('<->').upper()", 'A'],
    ["{'k': ' a'.strip(' ')}['k']", 'a'],
  ])('%s', (expression, expected) => {
    const template = new ChatTemplate(`{{ ${expression} }}`, {});
    expect(template.render({ messages: [] }, { generate: false })).toBe(expected);
  });
});
