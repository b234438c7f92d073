/** At which token of a tokenised text a character stands. */

/** A place in the tokens of a text. */
export interface TokenPlace {
  /** Tokens before it. */
  readonly tokens: number;
  /** Does the next token also hold characters before it? */
  readonly inside: boolean;
}

/** A part of a text whose own tokens tell a place: they are those of the text from `from` on, as far as they agree. */
export interface Probe {
  readonly text: string;
  readonly from: number;
}

/**
 * Finds places without tokenising every text up to each of them. A tokenizer cuts texts at special tokens and works on
 * what is between alone, so a place beside one is known, and any other follows from the part behind the last one before it.
 */
export class TokenPlaces {
  readonly #ids: ReadonlyMap<string, number>;
  readonly #pattern: RegExp | undefined;

  /** @param special ids with their texts */
  constructor(special: readonly (readonly [id: number, text: string])[]) {
    const named = special.filter(([, text]) => text !== '');
    this.#ids = new Map(named.map(([id, text]) => [text, id]));
    const texts = [...this.#ids.keys()].sort((a, b) => b.length - a.length);
    const escaped = texts.map((text) => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'));
    this.#pattern = texts.length === 0 ? undefined : new RegExp(escaped.join('|'), 'g');
  }

  /**
   * Where characters stand, or what to tokenise to know it.
   * @param ids the tokens of the whole text
   * @param at ascending, inside of the text
   */
  find(text: string, ids: Int32Array, at: readonly number[]): (TokenPlace | Probe)[] {
    const marks = this.#marks(text, ids);
    return at.map((place) => {
      const next = marks.findIndex(({ end }) => end > place);
      const before = marks[(next < 0 ? marks.length : next) - 1];
      if (before?.end === place) return { tokens: before.token + 1, inside: false };
      const behind = marks[next];
      if (behind?.begin === place) return { tokens: behind.token, inside: false };
      if (before === undefined) return { text: text.slice(0, place), from: 0 };
      return { text: text.slice(before.begin, place), from: before.token };
    });
  }

  /** The special tokens of a text in its characters and its tokens; none if the two do not agree. */
  #marks(text: string, ids: Int32Array) {
    if (this.#pattern === undefined) return [];
    const found = [...text.matchAll(this.#pattern)];
    const known = new Set(this.#ids.values());
    const tokens: number[] = [];
    for (const [i, id] of ids.entries()) if (known.has(id)) tokens.push(i);
    const same =
      found.length === tokens.length &&
      found.every(([mark], i) => this.#ids.get(mark) === ids[tokens[i] as number]);
    if (!same) return [];
    return found.map(({ 0: mark, index }, i) => ({
      begin: index,
      end: index + mark.length,
      token: tokens[i] as number,
    }));
  }
}

/** The place that a probe tells, by its tokens. */
export function probed({ from }: Probe, ids: Int32Array, own: Int32Array): TokenPlace {
  let same = 0;
  while (same < own.length && own[same] === ids[from + same]) same++;
  return { tokens: from + same, inside: same < own.length };
}
