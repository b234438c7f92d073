/** Files of examples: what they are read as, and that each mistake is told with its file and line. */

import fs from 'node:fs';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { parseTable } from '../../lib/data/csv.js';
import { dataFiles } from '../../lib/data/data-files.js';
import { DataSource } from '../../lib/data/data-source.js';
import { type ExampleOptions, readExamples } from '../../lib/data/examples.js';
import { parseJsonLines } from '../../lib/data/jsonl.js';
import { randomValues, temporaryFolder } from '../finetune/setup.js';

const folder = temporaryFolder();
const write = (name: string, content: string | Uint8Array): string => {
  const file = path.join(folder, name);
  fs.mkdirSync(path.dirname(file), { recursive: true });
  fs.writeFileSync(file, content);
  return file;
};
const bytes = (text: string) => new TextEncoder().encode(text);
const failure = (body: () => unknown): string => {
  try {
    body();
  } catch (error) {
    return `${(error as { code?: string }).code} ${(error as Error).message}`;
  }
  return 'no error';
};
const lines = (...objects: unknown[]) => objects.map((each) => JSON.stringify(each)).join('\n');
const read = (content: string, options: ExampleOptions = {}) => {
  const file = write('read.jsonl', content);
  return readExamples('test', [{ file, format: 'jsonl' }], options, () => {});
};
const user = (content: unknown) => ({ role: 'user', content });
const assistant = (content: unknown) => ({ role: 'assistant', content });

describe('which files', () => {
  it('endings say how a file is read; a folder has those of data, in order', () => {
    const [a, b, c] = [
      write('many/b.jsonl', '{}'),
      write('many/a.CSV', 'text'),
      write('many/c.tsv', 'text'),
    ];
    write('many/d.json', '[]');
    write('many/README.md', '# Nothing');
    expect(dataFiles('test', [path.join(folder, 'many')])).toEqual([
      { file: b, format: 'csv' },
      { file: a, format: 'jsonl' },
      { file: c, format: 'tsv' },
    ]);
    expect(dataFiles('test', [write('plain', 'Once.')])[0]?.format).toBe('text');
    expect(dataFiles('test', [write('lines.json', '{"text":"a"}')])[0]?.format).toBe('jsonl');
  });

  it.each([
    ['lines.txt', '{"text": "a"}\n{"text": "b"}\n'],
    ['indented.md', ' \n { "messages" : [] }'],
    ['list', '[{"a\\"b": 1}]'],
  ])('JSON under the name of a text is rejected: %s', (name, content) => {
    const file = write(name, content);
    const text = failure(() => dataFiles('test', [file]));
    expect(text).toMatch(/^ERR_FILE test: ".*" must be plain text, got JSON\. Name it \.jsonl/);
    expect(dataFiles('test', [file], 'text')[0]?.format).toBe('text');
  });

  it.each([
    'In {"a": 1} there is a 1.',
    '{ this is no JSON }',
    '{"quoted"} words',
    '[1, 2, 3]',
    '{{ "name": 1 }}',
  ])('text with braces stays text: %s', (content) => {
    expect(dataFiles('test', [write('braces.txt', content)])[0]?.format).toBe('text');
  });

  it('a list, text beside examples, an empty folder and a missing file are rejected', () => {
    const [list, text] = [write('list.json', ' [{"text": 1}]'), write('a.txt', 'A.')];
    const lines = write('a.jsonl', '{"text":"a"}');
    expect(failure(() => dataFiles('test', [list]))).toMatch(/one JSON object a line, got a list/);
    const both = failure(() => dataFiles('test', [text, lines]));
    expect(both).toMatch(
      /^ERR_VALUE .*text alone or examples alone, got ".*a\.txt" and ".*a\.jsonl"/,
    );
    fs.mkdirSync(path.join(folder, 'empty'));
    const none = failure(() => dataFiles('test', [path.join(folder, 'empty')]));
    expect(none).toMatch(/^ERR_FILE_NOT_FOUND .*must hold files of data/);
    expect(failure(() => dataFiles('test', [path.join(folder, 'no.jsonl')]))).toMatch(
      /^ERR_FILE_NOT_FOUND /,
    );
  });
});

describe('JSON lines', () => {
  it('are objects with the numbers of their lines; blank ones and a BOM are skipped', () => {
    const records = parseJsonLines('test', 'f', bytes('\ufeff{"a":1}\r\n\n  \n{"b":"ü\\n"}'));
    expect(records).toEqual([
      { place: { file: 'f', line: 1 }, fields: { a: 1 } },
      { place: { file: 'f', line: 4 }, fields: { b: 'ü\n' } },
    ]);
    expect(parseJsonLines('test', 'f', bytes(' \n'))).toEqual([]);
  });

  it.each([
    [
      '{"a":1}\n{"a":',
      /^ERR_FILE test: "f" line 2 must be a JSON object in UTF-8, got "\{\\"a\\":"/,
    ],
    ['[1]', /"f" line 1 .*got an array of 1/],
    ['{"a":1}\nnull', /"f" line 2 .*got null/],
    ['{"a":1}\n\nplain words', /"f" line 3 .*got "plain words"/],
    [`{"a":${'['.repeat(70)}${']'.repeat(70)}}`, /"f" line 1 must nest at most 64 deep, got 71/],
    [
      `{}\n{"a":"${'x'.repeat(17 << 20)}"}`,
      /"f" line 2 must be at most 16777216 bytes, got 17825800$/,
    ],
  ])('%s', (content, expected) => {
    expect(failure(() => parseJsonLines('test', 'f', bytes(content)))).toMatch(expected);
  });

  it('other bytes are told with their line', () => {
    const content = Uint8Array.from([...bytes('{"a":1}\n"'), 0xff, ...bytes('"')]);
    expect(failure(() => parseJsonLines('test', 'f', content))).toMatch(/"f" line 2 .*other bytes/);
  });
});

describe('tables', () => {
  it('have quotes, separators and line breaks in cells', () => {
    const text =
      '\ufeffprompt, completion\r\n"Say ""hi"", now","a\nb"\r\n\r\n2 inch (2"),x\n"",""\n"last","no newline"';
    expect(parseTable('test', 'f', bytes(text), ',')).toEqual([
      { place: { file: 'f', line: 2 }, fields: { prompt: 'Say "hi", now', completion: 'a\nb' } },
      { place: { file: 'f', line: 5 }, fields: { prompt: '2 inch (2")', completion: 'x' } },
      { place: { file: 'f', line: 6 }, fields: { prompt: '', completion: '' } },
      { place: { file: 'f', line: 7 }, fields: { prompt: 'last', completion: 'no newline' } },
    ]);
    const tabs = parseTable('test', 'f', bytes('text\tid\na, b\t1\n'), '\t');
    expect(tabs[0]?.fields).toEqual({ text: 'a, b', id: '1' });
    expect(parseTable('test', 'f', bytes(''), ',')).toEqual([]);
  });

  it('give back any cells that were quoted', () => {
    const pieces = ['a', '"', ',', '\n', ' ', 'ü', '\t', ''];
    const cell = (seed: number) =>
      Array.from(randomValues(6, seed), (v) => pieces[Math.floor(((v + 1) / 2) * 8)]).join('');
    for (let seed = 1; seed <= 100; seed++) {
      const rows = Array.from({ length: 4 }, (_, i) => [
        cell(10 * seed + i),
        cell(9000 + 10 * seed + i),
      ]);
      const quoted = (each: string) => `"${each.replaceAll('"', '""')}"`;
      const text = [['x', 'y'], ...rows].map((row) => row.map(quoted).join(',')).join('\n');
      const found = parseTable('test', 'f', bytes(text), ',');
      expect(found.map(({ fields }) => [fields.x, fields.y])).toEqual(rows);
      let line = 2;
      const lines = rows.map((row) => {
        const own = line;
        line += row.join('').split('\n').length;
        return own;
      });
      expect(found.map(({ place }) => place.line)).toEqual(lines);
    }
  });

  it.each([
    ['a,b\n1\n', /"f" line 2 must be 2 cells, as the first row has, got 1/],
    ['a,b\n"1\n2",3\n4,5,6', /"f" line 4 must be 2 cells.*got 3/],
    ['a,a\n', /"f" line 1 must be distinct names of columns, got "a" twice/],
    ['a,\n', /got an empty one/],
    [
      'prompt;completion\n1;2\n',
      /line 1 must be names with commas between them, got one column, "prompt;completion"/,
    ],
    ['a\n"b\nc', /"f" line 2 must be a row whose quotes are closed/],
    ['a\n"b"c\n', /"f" line 2 must be a separator behind the quote.*got "c"/],
  ])('%j is rejected', (text, expected) => {
    expect(failure(() => parseTable('test', 'f', bytes(text), ','))).toMatch(expected);
  });
});

describe('kinds', () => {
  it.each([
    ['text', { text: 'a', id: 7 }, [{ text: 'a' }]],
    ['completion', { prompt: 'a', completion: 'b' }, [{ prompt: 'a', completion: 'b' }]],
    [
      'messages',
      { messages: [user('a'), assistant('b')], prompt: 'a', tools: [{}] },
      [{ messages: [user('a'), assistant('b')], from: 0, tools: [{}] }],
    ],
    [
      'preference',
      { prompt: 'a', chosen: 'b', rejected: 'c' },
      [
        { prompt: 'a', completion: 'b' },
        { prompt: 'a', completion: 'c' },
      ],
    ],
  ])('%s', (kind, line, contents) => {
    expect(read(lines(line))).toEqual([
      { kind, place: { file: path.join(folder, 'read.jsonl'), line: 1 }, contents },
    ]);
  });

  it('answers may be messages, with a prompt or with what both begin with', () => {
    const [asked, chosen, rejected] = [user('a'), assistant('b'), assistant('c')];
    const expected = [
      { messages: [asked, chosen], from: 1 },
      { messages: [asked, rejected], from: 1 },
    ];
    const apart = { prompt: [asked], chosen: [chosen], rejected: [rejected] };
    expect(read(lines(apart))[0]?.contents).toEqual(expected);
    const whole = { chosen: [asked, chosen], rejected: [asked, rejected] };
    expect(read(lines(whole))[0]?.contents).toEqual(expected);
    const completion = { prompt: [asked, chosen, asked], completion: [rejected] };
    expect(read(lines(completion))[0]?.contents).toEqual([
      { messages: [asked, chosen, asked, rejected], from: 3 },
    ]);
    expect(read(lines({ prompt: 'a', completion: 'b' }), { chat: true })[0]?.contents).toEqual([
      { messages: [asked, chosen], from: 1 },
    ]);
  });

  it('with several kinds in a line, --kind chooses', () => {
    const both = lines({ text: 'a', messages: [user('b'), assistant('c')] });
    expect(failure(() => read(both))).toMatch(
      /line 1 must be of one kind, got fields of several kinds \(messages, text\)/,
    );
    expect(read(both, { kind: 'text' })[0]?.contents).toEqual([{ text: 'a' }]);
    expect(failure(() => read(both, { kind: 'completion' }))).toMatch(
      /line 1 must be of the fields prompt and completion alone, got "text", "messages"/,
    );
  });

  it.each([
    [
      [{ conversations: [] }],
      /line 1 must be of the fields messages, chosen and rejected, prompt and completion or text, got "conversations"/,
    ],
    [
      [{ text: 'a' }, { prompt: 'a', completion: 'b' }],
      /line 2 must be of the fields text alone, as ".*" line 1 is, got "prompt", "completion"/,
    ],
    [
      [{ text: 'a' }, { text: 'b', prompt: 'a', completion: 'b' }],
      /line 2 must be of the fields text alone/,
    ],
    [[{ text: 'a' }, { text: null }], /line 2 must be of the fields text alone.*got "text"/],
    [[{ text: 'a' }, { text: 5 }], /line 2: text must be a text that is not empty, got 5/],
    [[{ text: ' \n' }], /line 1: text must be a text that is not empty, got " /],
    [[{ prompt: 'a', completion: '' }], /line 1: completion must be .* got an empty one/],
    [
      [{ prompt: [user('a')], completion: 'b' }],
      /line 1: completion must be a list of messages, got "b"/,
    ],
    [[{ messages: [] }], /line 1: messages must be a list of messages, got an empty one/],
    [[{ messages: 'a' }], /line 1: messages must be a list of messages, got "a"/],
    [
      [{ messages: [user('a'), 'b'] }],
      /messages\[1\] must be an object of role and content, got "b"/,
    ],
    [[{ messages: [{ content: 'a' }] }], /messages\[0\]\.role must be a name, got nothing/],
    [
      [{ messages: [user(null), assistant('b')] }],
      /messages\[0\]\.content must be a text, got null/,
    ],
    [
      [{ messages: [user([{ type: 'image' }]), assistant('b')] }],
      /messages\[0\]\.content must be a text, or a list of texts, got another part/,
    ],
    [
      [{ messages: [user('a'), assistant(' ')] }],
      /messages\[1\]\.content must be a text that is not empty, as the model learns it/,
    ],
    [
      [{ messages: [user('a')] }],
      /messages must be messages with one of the assistant to learn, got messages of "user"/,
    ],
    [
      [{ messages: [user('a'), { ...assistant('b'), weight: 0 }] }],
      /one of the assistant to learn/,
    ],
    [
      [{ chosen: [user('a'), assistant('b')], rejected: [user('a'), assistant('b')] }],
      /chosen must be messages with one of the assistant.*got no message of its own/,
    ],
    [[{ messages: [user('a'), assistant('b')], tools: {} }], /tools must be a list, got an object/],
  ])('%j is rejected', (objects, expected) => {
    const text = failure(() => read(lines(...objects)));
    expect(text).toMatch(/^ERR_FILE test: ".*read\.jsonl" line \d/);
    expect(text).toMatch(expected);
  });

  it('calls of tools need no content', () => {
    const calls = { role: 'assistant', content: null, tool_calls: [{ function: { name: 'f' } }] };
    expect(read(lines({ messages: [user('a'), calls] })).length).toBe(1);
  });
});

describe('the data of a run', () => {
  const open = (data: string[], more: object = {}) =>
    failure(() => DataSource.open('test', { data, separator: '\n\n', seqLen: 8, ...more }));
  const pair = lines({ prompt: 'a', chosen: 'b', rejected: 'c' });

  it('fits the loss, and the data to evaluate on', () => {
    const [text, plain] = [write('t.jsonl', lines({ text: 'a' })), write('t.txt', 'a')];
    const [pairs, empty] = [write('p.jsonl', pair), write('e.jsonl', '\n')];
    expect(open([text])).toBe('no error');
    expect(open([pairs], { loss: 'dpo' })).toBe('no error');
    expect(open([pairs])).toMatch(/^ERR_VALUE .*--loss must be dpo for --data/);
    expect(open([text], { loss: 'dpo' })).toMatch(
      /^ERR_VALUE .*--data must hold chosen and rejected answers for --loss dpo, got text/,
    );
    expect(open([plain], { loss: 'dpo' })).toMatch(/got text/);
    expect(open([text], { evalData: [plain] })).toMatch(
      /--eval-data must be examples, as --data is, got text/,
    );
    expect(open([plain], { evalData: [text] })).toMatch(
      /--eval-data must be text, as --data is, got examples/,
    );
    const other = write('c.jsonl', lines({ prompt: 'a', completion: 'b' }));
    expect(open([text], { evalData: [other] })).toMatch(
      /--eval-data must hold text, got completion/,
    );
    expect(open([empty])).toMatch(/e\.jsonl" must hold text to train on, got an empty one/);
    expect(open([text, other])).toMatch(
      /^ERR_FILE .*c\.jsonl" line 1 must be of the fields text alone, as ".*t\.jsonl" line 1 is/,
    );
  });
});
