/**
 * `strip(characters)` of Python in templates. The engine strips white space whatever the argument says, and templates that take
 * line breaks off an answer would lose its spaces too.
 */

/** A node of a parsed template. */
interface TemplateNode {
  readonly type: string;
  callee?: TemplateNode;
  args?: readonly TemplateNode[];
  readonly object?: TemplateNode;
  readonly property?: TemplateNode;
  readonly value?: unknown;
}

const kSides = ['strip', 'lstrip', 'rstrip'];

/** The name of {@link stripped} in templates. */
export const kStrip = 'lowrank_strip';

/** Replaces calls of methods of strings that strip given characters by calls of {@link stripped}. */
export function replaceStrips(node: unknown): void {
  if (node === null || typeof node !== 'object') return;
  const children = node instanceof Map ? [...node.entries()].flat() : Object.values(node);
  for (const child of children) replaceStrips(child);
  const call = node as TemplateNode;
  const { object, property } = call.callee ?? {};
  const side = property?.type === 'Identifier' ? property.value : undefined;
  const given = call.args ?? [];
  if (call.type !== 'CallExpression' || object === undefined || given.length === 0) return;
  if (typeof side !== 'string' || !kSides.includes(side)) return;
  call.callee = { type: 'Identifier', value: kStrip };
  call.args = [object, { type: 'StringLiteral', value: side }, ...given];
}

/** A text without the characters of a set at its begin, its end, or both; without white space if the set is absent. */
export function stripped(text: unknown, side: string, characters: unknown): string {
  if (typeof text !== 'string') throw new Error(`${side} of a value that is no text`);
  const set = typeof characters === 'string' ? new Set(characters) : undefined;
  const goes = (c: string) => (set === undefined ? c.trim() === '' : set.has(c));
  const parts = [...text];
  let [begin, end] = [0, parts.length];
  while (side !== 'rstrip' && begin < end && goes(parts[begin] as string)) begin++;
  while (side !== 'lstrip' && begin < end && goes(parts[end - 1] as string)) end--;
  return parts.slice(begin, end).join('');
}
