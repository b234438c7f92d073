/**
 * JSON text exactly as Python's `json.dumps` writes it, for files that are compared byte for byte.
 */

/** A number that Python holds as a float: written with a point or an exponent even if it is integral. */
export class PythonFloat {
  constructor(readonly value: number) {}
}

/** The values that {@link pythonJson} can write. */
export type PythonJson =
  | null
  | boolean
  | number
  | string
  | PythonFloat
  | readonly PythonJson[]
  | ReadonlyMap<string, PythonJson>;

/**
 * `repr` of a Python float: JavaScript's shortest digits, with an exponent of at least two digits
 * below 1e-4 and from 1e16 on, and `.0` after integers.
 *
 * @param value a finite number
 * @example
 * pythonFloatRepr(0.00001); // '1e-05'
 */
export function pythonFloatRepr(value: number): string {
  if (value === 0) return Object.is(value, -0) ? '-0.0' : '0.0';
  const [mantissa = '', exponentText = '0'] = value.toExponential().split('e');
  const exponent = Number(exponentText);
  if (exponent < -4 || exponent >= 16) {
    const digits = String(Math.abs(exponent)).padStart(2, '0');
    return `${mantissa}e${exponent < 0 ? '-' : '+'}${digits}`;
  }
  // In this range JavaScript writes no exponent either.
  const text = String(value);
  return text.includes('.') ? text : `${text}.0`;
}

/**
 * `json.dumps(value)`, or `json.dumps(value, indent=2)`.
 *
 * @param indent spaces per level; 0 (the default) writes one line with ", " and ": "
 */
export function pythonJson(value: PythonJson, indent = 0): string {
  return write(value, indent, 0);
}

function write(value: PythonJson, indent: number, level: number): string {
  if (value === null) return 'null';
  if (value instanceof PythonFloat) return pythonFloatRepr(value.value);
  if (typeof value === 'string') return pythonString(value);
  if (typeof value !== 'object') return String(value);
  const [open, close, items] =
    value instanceof Map
      ? ['{', '}', [...value].map(([k, v]) => `${pythonString(k)}: ${write(v, indent, level + 1)}`)]
      : ['[', ']', (value as readonly PythonJson[]).map((v) => write(v, indent, level + 1))];
  if (items.length === 0) return open + close;
  if (indent === 0) return open + items.join(', ') + close;
  const pad = ' '.repeat(indent * (level + 1));
  return `${open}\n${pad}${items.join(`,\n${pad}`)}\n${' '.repeat(indent * level)}${close}`;
}

/** Python's default `ensure_ascii`: everything above ASCII is escaped. */
function pythonString(text: string): string {
  return JSON.stringify(text).replace(/[\u007f-\uffff]/g, (c) =>
    c === '\u007f' ? c : `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}
