/** Tables of text: RFC 4180, with a first row of names. A quote inside of a cell without quotes stands for itself. */

import { printable } from '../core/printable.js';
import type { DataRecord } from './jsonl.js';
import { refuseExample } from './place.js';

interface Row {
  readonly line: number;
  readonly cells: readonly string[];
}

const kSeparators: Readonly<Record<string, string>> = { ',': 'commas', '\t': 'tabs' };

/**
 * The rows of a table, in order. A cell in quotes may hold separators, quotes (twice) and line breaks. Blank lines are skipped.
 * @param separator one character
 * @throws LowrankError `ERR_FILE` with the line
 */
export function parseTable(
  op: string,
  file: string,
  bytes: Uint8Array,
  separator: string,
): DataRecord[] {
  const refuse = (line: number, expected: string, got: string): never =>
    refuseExample(op, { file, line }, '', expected, got);
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    return refuse(1, 'the begin of a table in UTF-8', 'a file with other bytes');
  }
  const [head, ...rows] = new TableReader(text, separator, refuse).rows();
  if (head === undefined) return [];
  const names = head.cells.map((name) => name.trim());
  const other = [...',;\t'].find((c) => c !== separator && head.cells[0]?.includes(c));
  if (names.length === 1 && other !== undefined) {
    const got = `one column, ${printable(head.cells[0] as string)}`;
    refuse(
      head.line,
      `names with ${kSeparators[separator] ?? printable(separator)} between them`,
      got,
    );
  }
  const twice = names.find((name, i) => name === '' || names.indexOf(name) !== i);
  if (twice !== undefined) {
    const got = twice === '' ? 'an empty one' : `${printable(twice)} twice`;
    refuse(head.line, 'distinct names of columns', got);
  }
  return rows.map(({ line, cells }) => {
    if (cells.length !== names.length) {
      refuse(line, `${names.length} cells, as the first row has`, String(cells.length));
    }
    const fields = Object.fromEntries(names.map((name, i) => [name, cells[i] as string]));
    return { place: { file, line }, fields };
  });
}

class TableReader {
  #at = 0;
  #line = 1;

  constructor(
    private readonly text: string,
    private readonly separator: string,
    private readonly refuse: (line: number, expected: string, got: string) => never,
  ) {}

  rows(): Row[] {
    const found: Row[] = [];
    while (this.#at < this.text.length) {
      const line = this.#line;
      const begin = this.#at;
      const cells = [this.#cell()];
      while (this.text[this.#at] === this.separator) {
        this.#at++;
        cells.push(this.#cell());
      }
      const blank = this.text.slice(begin, this.#at).trim() === '';
      this.#lineBreak();
      if (!blank) found.push({ line, cells });
    }
    return found;
  }

  #lineBreak(): void {
    if (this.text[this.#at] === '\r') this.#at++;
    if (this.text[this.#at] === '\n') this.#at++;
    this.#line++;
  }

  #cell(): string {
    if (this.text[this.#at] === '"') return this.#quoted();
    const begin = this.#at;
    for (; this.#at < this.text.length; this.#at++) {
      const c = this.text[this.#at];
      if (c === this.separator || c === '\n' || c === '\r') break;
    }
    return this.text.slice(begin, this.#at);
  }

  #quoted(): string {
    const opened = this.#line;
    let cell = '';
    for (;;) {
      const end = this.text.indexOf('"', this.#at + 1);
      if (end < 0) this.refuse(opened, 'a row whose quotes are closed', 'an open one');
      const part = this.text.slice(this.#at + 1, end);
      this.#line += part.split('\n').length - 1;
      cell += part;
      this.#at = end + 1;
      if (this.text[this.#at] !== '"') break;
      cell += '"';
    }
    const next = this.text[this.#at];
    if (next !== undefined && next !== this.separator && next !== '\n' && next !== '\r') {
      const got = printable(next);
      this.refuse(this.#line, 'a separator behind the quote that closes a cell', got);
    }
    return cell.replace(/\r\n/g, '\n');
  }
}
