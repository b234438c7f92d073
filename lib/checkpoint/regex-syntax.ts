/**
 * Parser for the subset of Python's `re` syntax that linear-regex.ts matches. The nesting of groups is
 * limited, which limits the recursion.
 */

import { LowrankError } from '../core/errors.js';
import { printable } from '../core/printable.js';

/** Does it match one character (a code point)? */
export type CharTest = (char: string) => boolean;

export type Node =
  | { readonly kind: 'char'; readonly test: CharTest }
  | { readonly kind: 'assert'; readonly assertion: string }
  | { readonly kind: 'sequence'; readonly items: readonly Node[] }
  | { readonly kind: 'choice'; readonly items: readonly Node[] }
  | {
      readonly kind: 'repeat';
      readonly item: Node;
      readonly min: number;
      readonly max: number;
    };

const kMaxPatternLength = 10_000;
const kMaxDepth = 100;
const kMaxRepeat = 1000;

const kClasses: Readonly<Record<string, CharTest>> = {
  d: (c) => /\p{Nd}/u.test(c),
  D: (c) => !/\p{Nd}/u.test(c),
  w: (c) => /[\p{L}\p{N}_]/u.test(c),
  W: (c) => !/[\p{L}\p{N}_]/u.test(c),
  s: (c) => /[\s\u0085]/.test(c),
  S: (c) => !/[\s\u0085]/.test(c),
};

const kEscapes: Readonly<Record<string, string>> = {
  n: '\n',
  r: '\r',
  t: '\t',
  f: '\f',
  v: '\v',
  a: '\u0007',
};

/**
 * @throws LowrankError `ERR_FILE` if invalid · `ERR_UNSUPPORTED` for a construct outside the subset
 */
export function parsePattern(op: string, pattern: string): Node {
  return new PatternParser(op, pattern).parse();
}

class PatternParser {
  private readonly chars: readonly string[];
  private at = 0;
  private depth = 0;

  constructor(
    private readonly op: string,
    private readonly pattern: string,
  ) {
    if (pattern.length > kMaxPatternLength) {
      this.unsupported(`of at most ${kMaxPatternLength} characters`, `${pattern.length}`);
    }
    this.chars = [...pattern];
  }

  parse(): Node {
    const node = this.choice();
    if (this.at < this.chars.length) this.invalid('a matching "(" before ")"');
    return node;
  }

  private choice(): Node {
    if (++this.depth > kMaxDepth) this.unsupported(`of at most ${kMaxDepth} nested groups`, 'more');
    const items = [this.sequence()];
    while (this.chars[this.at] === '|') {
      this.at++;
      items.push(this.sequence());
    }
    this.depth--;
    return items.length === 1 ? (items[0] as Node) : { kind: 'choice', items };
  }

  private sequence(): Node {
    const items: Node[] = [];
    for (;;) {
      const char = this.chars[this.at];
      if (char === undefined || char === '|' || char === ')') return { kind: 'sequence', items };
      items.push(this.quantified(this.atom()));
    }
  }

  private quantified(item: Node): Node {
    const bounds = this.quantifier();
    if (bounds === undefined) return item;
    if (item.kind === 'assert') this.invalid('something to repeat before a quantifier');
    if (this.chars[this.at] === '+') this.unsupported('free of possessive quantifiers', '"+"');
    if (this.chars[this.at] === '?') this.at++;
    if (this.quantifier() !== undefined) this.invalid('one quantifier, not two');
    return { kind: 'repeat', item, min: bounds[0], max: bounds[1] };
  }

  /** Reads `*`, `+`, `?` or `{m,n}`. A brace that is not a quantifier stays a literal. */
  private quantifier(): [number, number] | undefined {
    const char = this.chars[this.at];
    if (char === '*' || char === '+' || char === '?') {
      this.at++;
      return [char === '+' ? 1 : 0, char === '?' ? 1 : Number.POSITIVE_INFINITY];
    }
    if (char !== '{') return undefined;
    const rest = this.chars.slice(this.at, this.at + 24).join('');
    const match = /^\{(?:([0-9]+)|([0-9]*),([0-9]*))\}/.exec(rest);
    if (match === null) return undefined;
    this.at += match[0].length;
    const [, exact, low, high] = match;
    const min = Number(exact ?? (low || 0));
    const max = exact !== undefined ? min : high ? Number(high) : Number.POSITIVE_INFINITY;
    if (min > kMaxRepeat || (max > kMaxRepeat && max !== Number.POSITIVE_INFINITY)) {
      this.unsupported(`of at most ${kMaxRepeat} repeats`, match[0]);
    }
    if (max < min) this.invalid('bounds in order in {m,n}');
    return [min, max];
  }

  private atom(): Node {
    const char = this.chars[this.at++] as string;
    switch (char) {
      case '.':
        return { kind: 'char', test: (c) => c !== '\n' };
      case '^':
      case '$':
        return { kind: 'assert', assertion: char };
      case '(':
        return this.group();
      case '[':
        return { kind: 'char', test: this.charClass() };
      case '\\':
        return this.escape();
      case '*':
      case '+':
      case '?':
        return this.invalid('something to repeat before a quantifier');
      default:
        return { kind: 'char', test: (c) => c === char };
    }
  }

  private group(): Node {
    if (this.chars[this.at] === '?') {
      const opening = this.chars.slice(this.at, this.at + 260).join('');
      const plain = /^\?(?::|P<[A-Za-z_]\w*>)/.exec(opening);
      if (plain === null) {
        const known = /^\?(?:<?[=!]|>|P[=]|#|\(|[aiLmsux-]+[):])/.test(opening);
        if (!known) return this.invalid('a known group after "(?"');
        this.unsupported('free of lookaround, backreferences and flags', `(${opening.slice(0, 4)}`);
      } else {
        this.at += plain[0].length;
      }
    }
    const node = this.choice();
    if (this.chars[this.at] !== ')') return this.invalid('")" after "("');
    this.at++;
    return node;
  }

  private escape(): Node {
    const char = this.chars[this.at];
    if (char !== undefined && 'AZbB'.includes(char)) {
      this.at++;
      return { kind: 'assert', assertion: char };
    }
    if (char !== undefined && /[1-9]/.test(char)) {
      this.unsupported('free of backreferences', `\\${char}`);
    }
    const item = this.escapedItem();
    return { kind: 'char', test: typeof item === 'string' ? (c) => c === item : item };
  }

  /** What follows a backslash: a class, or the character that it denotes. */
  private escapedItem(): string | CharTest {
    const char = this.chars[this.at++];
    if (char === undefined) return this.invalid('a character after "\\"');
    const charClass = Object.hasOwn(kClasses, char) ? kClasses[char] : undefined;
    if (charClass !== undefined) return charClass;
    if (Object.hasOwn(kEscapes, char)) return kEscapes[char] as string;
    const digits = { x: 2, u: 4, U: 8 }[char];
    if (digits !== undefined) {
      const hex = this.chars.slice(this.at, this.at + digits).join('');
      const code = /^[0-9a-fA-F]+$/.test(hex) && hex.length === digits ? Number(`0x${hex}`) : -1;
      if (code < 0 || code > 0x10ffff) return this.invalid(`${digits} hexadecimal digits`);
      this.at += digits;
      return String.fromCodePoint(code);
    }
    if (char === '0') return '\0';
    if (/[A-Za-z0-9]/.test(char)) return this.invalid(`a known escape, not \\${char}`);
    return char;
  }

  private charClass(): CharTest {
    const negated = this.chars[this.at] === '^';
    if (negated) this.at++;
    const tests: CharTest[] = [];
    const first = this.at;
    for (;;) {
      const char = this.chars[this.at];
      if (char === undefined) return this.invalid('"]" after "["');
      if (char === ']' && this.at > first) break;
      const low = this.classItem();
      const isRange = this.chars[this.at] === '-' && this.chars[this.at + 1] !== ']';
      if (!isRange) {
        tests.push(typeof low === 'string' ? (c) => c === low : low);
        continue;
      }
      this.at++;
      const high = this.chars[this.at] === undefined ? undefined : this.classItem();
      if (typeof low !== 'string' || typeof high !== 'string') {
        return this.invalid('single characters around "-" in a class');
      }
      const from = low.codePointAt(0) as number;
      const to = high.codePointAt(0) as number;
      if (to < from) this.invalid('a range in order in a class');
      tests.push((c) => {
        const code = c.codePointAt(0) as number;
        return code >= from && code <= to;
      });
    }
    this.at++;
    return (c) => tests.some((test) => test(c)) !== negated;
  }

  private classItem(): string | CharTest {
    const char = this.chars[this.at++] as string;
    if (char !== '\\') return char;
    if (this.chars[this.at] === 'b') {
      this.at++;
      return '\b';
    }
    return this.escapedItem();
  }

  private invalid(expected: string): never {
    const text =
      `${this.op}: pattern ${printable(this.pattern)} must have ${expected} ` +
      `at character ${this.at}, got an invalid regular expression`;
    throw new LowrankError('ERR_FILE', text, { op: this.op });
  }

  private unsupported(expected: string, got: string): never {
    const text = `${this.op}: pattern ${printable(this.pattern)} must be ${expected}, got ${got}`;
    throw new LowrankError('ERR_UNSUPPORTED', text, { op: this.op });
  }
}
