/**
 * Makes text from a file safe to show. Names in checkpoints can contain terminal escapes,
 * bidirectional overrides and megabytes of padding, and they reach error messages and progress lines.
 */

const kMaxShown = 96;

/** C0, DEL, C1, zero-width and bidirectional controls, line separators, BOM, surrogates. */
const kUnsafe =
  // biome-ignore lint/suspicious/noControlCharactersInRegex: finding them is the point
  /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]/g;

/**
 * The text in double quotes. Everything that could move a cursor is escaped, and the middle of a
 * long text is cut.
 *
 * @param text anything
 * @returns at most about 100 visible characters
 * @example
 * printable('a\u001b[2Jb'); // "a\u001b[2Jb" with the escape spelled out
 */
export function printable(text: string): string {
  return `"${escapeUnsafe(shortened(text).replace(/[\\"]/g, (c) => `\\${c}`))}"`;
}

/** For text that is already part of a message and has its own quotes: like {@link printable}, without the quotes. */
export function printableText(text: string): string {
  return escapeUnsafe(shortened(text));
}

/**
 * The whole text without quotes, for a line of its own. Everything that could move a cursor is
 * escaped, including line breaks.
 */
export function escapeUnsafe(text: string): string {
  return text.replace(kUnsafe, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

function shortened(text: string): string {
  if (text.length <= kMaxShown) return text;
  return `${text.slice(0, kMaxShown / 2)}…${text.slice(-kMaxShown / 4)} (${text.length} characters)`;
}

/** A short description of a JSON value, for the "got ..." part of a message. */
export function printableValue(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (typeof value === 'string') return printable(value);
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (value !== null && typeof value === 'object') return 'an object';
  return String(value);
}
