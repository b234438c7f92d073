/** Examples as tokens, with those that the model learns. */

import { printable } from '../core/printable.js';
import type { LearnedConversation } from '../text/chat-turns.js';
import type { OnTick, TextTokenizer } from '../text/tokenizer.js';
import type { Content, Example } from './examples.js';
import { type Place, placeText, refuseExample } from './place.js';
import { type Probe, probed, type TokenPlace, TokenPlaces } from './token-places.js';

/** A text of its own: its tokens see each other, and no others. */
export interface DataDocument {
  readonly ids: Int32Array;
  /** Tokens [begin, end) that are learned, ascending; the first token of a document never is. */
  readonly learned: readonly (readonly [begin: number, end: number])[];
}

/** Documents that stay together: one, or the two answers of a preference. */
export interface DataUnit {
  /** Index of its example. */
  readonly example: number;
  readonly place: Place;
  readonly documents: readonly DataDocument[];
}

/** {@link tokenizeExamples}'s result. */
export interface TokenizedExamples {
  readonly units: readonly DataUnit[];
  /** Examples with a token that holds the end of a prompt and the begin of what is learned. */
  readonly straddling: readonly Place[];
  /** Conversations whose template renders a turn in another way once others follow. */
  readonly rewritten: readonly Place[];
}

/** A text on its way to tokens. */
interface Rendered {
  readonly example: number;
  /** Of a preference: 0 for the chosen answer, 1 for the rejected one. */
  readonly answer: number;
  readonly text: string;
  readonly learned: readonly (readonly [begin: number, end: number])[];
  /** Do begin and end of the text have tokens of their own? Templates write them. */
  readonly bare: boolean;
}

/** Learned tokens of a document. */
export const learnedOf = ({ learned }: DataDocument): number =>
  learned.reduce((sum, [begin, end]) => sum + end - begin, 0);

/** Rows that a unit takes: each token but the last of a document predicts the next one. */
export const lengthOf = ({ documents }: DataUnit): number =>
  documents.reduce((sum, { ids }) => sum + ids.length - 1, 0);

/**
 * Tokenises examples as whole texts. What is learned begins at the first token that the text before it alone would not have,
 * so a token that holds characters of two parts is learned if one of them is.
 * @param T longer documents of plain text are cut into parts of T rows
 * @throws LowrankError `ERR_FILE` with file and line, for what the template rejects and for examples with nothing to learn · as
 * {@link TextTokenizer.encodeAll}
 */
export async function tokenizeExamples(
  op: string,
  examples: readonly Example[],
  tokenizer: TextTokenizer,
  T: number,
  onTick: OnTick,
): Promise<TokenizedExamples> {
  const rendered = await renderAll(op, examples, tokenizer, onTick);
  const all = await encodeAll(
    rendered.map(({ text }) => text),
    tokenizer,
    onTick,
  );
  const ranges = await rangesOf(rendered, all, tokenizer, onTick);
  const straddling = new Set<Example>();
  const documents = ranges.map(({ learned, straddles }, i): DataDocument[] => {
    const { text, bare, example: index } = rendered[i] as Rendered;
    const example = examples[index] as Example;
    if (straddles) straddling.add(example);
    const whole = framed(all[i] as Int32Array, learned, bare, tokenizer);
    if (learnedOf(whole) === 0) {
      const expected = 'an example with tokens to learn';
      refuseExample(op, example.place, '', expected, printable(text));
    }
    return example.kind === 'text' ? cut(whole, T) : [whole];
  });
  const places = (chosen: (example: Example, index: number) => boolean) =>
    examples.filter(chosen).map(({ place }) => place);
  const counts = new Map<number, number>();
  for (const { example, answer } of rendered) {
    if (answer === 0) counts.set(example, (counts.get(example) ?? 0) + 1);
  }
  return {
    units: unitsOf(examples, rendered, documents),
    straddling: places((example) => straddling.has(example)),
    rewritten: places((_, i) => (counts.get(i) ?? 0) > 1),
  };
}

/** The texts of all examples, in order. */
async function renderAll(
  op: string,
  examples: readonly Example[],
  tokenizer: TextTokenizer,
  onTick: OnTick,
): Promise<Rendered[]> {
  const all = examples.flatMap(({ contents }, example) =>
    contents.map((content, answer) => ({ content, example, answer })),
  );
  const isChat = (content: Content): content is LearnedConversation => 'messages' in content;
  const chats = all.flatMap(({ content }) => (isChat(content) ? [content] : []));
  const names = all.filter(({ content }) => isChat(content)).map(({ example }) => example);
  const texts: (readonly { text: string; learned: Rendered['learned'] }[])[] = [];
  if (chats.length > 0) {
    const nameOf = (i: number) => placeText((examples[names[i] as number] as Example).place);
    await tokenizer.renderAll(
      chats,
      nameOf,
      (found) => {
        for (const each of found) texts.push(each);
      },
      onTick,
    );
  }
  let next = 0;
  return all.flatMap(({ content, example, answer }): Rendered[] => {
    const of = { example, answer };
    if (isChat(content)) {
      const found = texts[next++] ?? [];
      if (found.length > 1 && (examples[example] as Example).contents.length > 1) {
        const { place } = examples[example] as Example;
        const expected = 'one answer to choose, as the template rewrites earlier turns';
        refuseExample(op, place, '', expected, `${found.length}`);
      }
      return found.map((each) => ({ ...of, ...each, bare: false }));
    }
    if ('text' in content) {
      const { text } = content;
      return [{ ...of, text, learned: [[0, text.length]], bare: true }];
    }
    const { prompt, completion } = content;
    const text = prompt + completion;
    return [{ ...of, text, learned: [[prompt.length, text.length]], bare: true }];
  });
}

/** The tokens of texts, in order. */
async function encodeAll(
  texts: readonly string[],
  tokenizer: TextTokenizer,
  onTick: OnTick,
): Promise<Int32Array[]> {
  const found: Int32Array[] = [];
  const keep = (ids: Int32Array, lengths: readonly number[]) => {
    let begin = 0;
    for (const length of lengths) {
      found.push(ids.slice(begin, begin + length));
      begin += length;
    }
  };
  await tokenizer.encodeAll(texts, 'text', keep, onTick);
  return found;
}

/** Learned parts in tokens. */
interface TokenRanges {
  readonly learned: readonly (readonly [begin: number, end: number])[];
  /** Does a token hold characters of two parts? */
  readonly straddles: boolean;
}

/** The learned parts of texts in their tokens. */
async function rangesOf(
  rendered: readonly Rendered[],
  all: readonly Int32Array[],
  tokenizer: TextTokenizer,
  onTick: OnTick,
): Promise<TokenRanges[]> {
  const places = new TokenPlaces(tokenizer.special);
  const boundaries = rendered.map(({ text, learned }) =>
    [...new Set(learned.flat())].filter((at) => at > 0 && at < text.length),
  );
  const found = rendered.map(({ text }, i) =>
    places.find(text, all[i] as Int32Array, boundaries[i] as number[]),
  );
  // Many turns begin with the same words.
  const isProbe = (place: TokenPlace | Probe): place is Probe => 'from' in place;
  const texts = [...new Set(found.flat().flatMap((place) => (isProbe(place) ? [place.text] : [])))];
  const own = await encodeAll(texts, tokenizer, onTick);
  const probes = new Map(texts.map((text, i) => [text, own[i] as Int32Array]));
  return rendered.map(({ text, learned }, i) => {
    const ids = all[i] as Int32Array;
    const at = new Map<number, TokenPlace>([
      [0, { tokens: 0, inside: false }],
      [text.length, { tokens: ids.length, inside: false }],
    ]);
    for (const [k, place] of (found[i] as (TokenPlace | Probe)[]).entries()) {
      const known = isProbe(place)
        ? probed(place, ids, probes.get(place.text) as Int32Array)
        : place;
      at.set(boundaries[i]?.[k] as number, known);
    }
    const placeOf = (character: number) => at.get(character) as TokenPlace;
    return {
      learned: learned.map(([begin, end]) => {
        const { tokens, inside } = placeOf(end);
        return [placeOf(begin).tokens, inside ? Math.min(tokens + 1, ids.length) : tokens];
      }),
      straddles: [...at.values()].some(({ inside }) => inside),
    };
  });
}

/** With the tokens around a bare text, and without those behind the last that is learned. */
function framed(
  ids: Int32Array,
  learned: TokenRanges['learned'],
  bare: boolean,
  { bosId, eosId }: TextTokenizer,
): DataDocument {
  const start = bosId ?? eosId;
  const before = bare && start !== undefined ? [start] : [];
  const after = bare && eosId !== undefined ? [eosId] : [];
  const shift = before.length;
  const last = learned.length - 1;
  const moved = learned.map(([begin, end], i): readonly [number, number] => [
    Math.max(1, begin + shift),
    end + shift + (i === last ? after.length : 0),
  ]);
  const kept = moved.filter(([begin, end]) => begin < end);
  const all = Int32Array.from([...before, ...ids, ...after]);
  return { ids: all.subarray(0, kept.at(-1)?.[1] ?? 0), learned: kept };
}

/** Parts of at most T rows. The last token of a part begins the next. */
function cut({ ids }: DataDocument, T: number): DataDocument[] {
  const count = Math.max(1, Math.ceil((ids.length - 1) / T));
  return Array.from({ length: count }, (_, i) => {
    const part = ids.subarray(i * T, Math.min((i + 1) * T + 1, ids.length));
    return { ids: part, learned: [[1, part.length]] };
  });
}

/** Answers of a preference together, everything else on its own. */
function unitsOf(
  examples: readonly Example[],
  rendered: readonly Rendered[],
  documents: readonly DataDocument[][],
): DataUnit[] {
  const units: DataUnit[] = [];
  for (const [i, { example, answer }] of rendered.entries()) {
    const { place, contents } = examples[example] as Example;
    const own = documents[i] as DataDocument[];
    if (contents.length === 1) {
      for (const document of own) units.push({ example, place, documents: [document] });
    } else if (answer === 0) {
      units.push({ example, place, documents: [...own, ...(documents[i + 1] as DataDocument[])] });
    }
  }
  return units;
}
