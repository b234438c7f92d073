/**
 * Reads PTX as nvcc prints it, inline assembly included, into plain objects. Nothing is understood
 * here but the shape of statements: what an instruction means stands in the instruction files.
 *
 *   module     { files, variables, functions }
 *   function   { kind: 'entry' | 'func', name, params, returns, directives, body | null, line }
 *   variable   { kind: 'variable', space, align, type, name, count, initial, external, line }
 *   statement  register · variable · label · targets · location · instruction, each with its scope
 */
import { bytesOf } from './types.mjs';

export class PtxError extends Error {
  constructor(line, message) {
    super(message);
    this.line = line;
  }
}

/** A pair of braces in a function: registers, variables and labels belong to one. */
class Scope {
  constructor(id, parent) {
    this.id = id;
    this.parent = parent;
    this.registers = new Map(); // name -> { name in C++, type }
    this.variables = new Map();
    this.labels = new Map(); // name -> name in C++
  }
  /** The nearest entry of that name, from here outwards. */
  find(table, name) {
    for (let scope = this; scope; scope = scope.parent) {
      const entry = scope[table].get(name);
      if (entry !== undefined) return entry;
    }
    return undefined;
  }
}

/** Splits at commas that no bracket encloses. */
export function splitOperands(text) {
  const parts = [];
  let depth = 0;
  let part = '';
  for (const c of text) {
    if ('{[('.includes(c)) depth++;
    if ('}])'.includes(c)) depth--;
    if (c === ',' && depth === 0) {
      parts.push(part.trim());
      part = '';
    } else {
      part += c;
    }
  }
  if (part.trim()) parts.push(part.trim());
  return parts;
}

const kLineDirective = /^\.(loc|file|version|target|address_size)\b/;
const kLabel = /^([A-Za-z_$%][\w$]*)\s*:(?!:)/;

/** Walks the text statement by statement, knowing the line it is at. */
class Reader {
  constructor(text) {
    // Comments become blanks: places stay where they were. Strings may hold two slashes.
    const blank = (match) => (match.startsWith('"') ? match : match.replace(/[^\n]/g, ' '));
    this.text = text.replace(/"[^"\n]*"|\/\*[\s\S]*?\*\/|\/\/.*/g, blank);
    this.at = 0;
    this.line = 1;
  }

  skipBlanks() {
    while (this.at < this.text.length && /\s/.test(this.text[this.at])) this.advance();
  }

  advance() {
    if (this.text[this.at] === '\n') this.line++;
    this.at++;
  }

  peek() {
    this.skipBlanks();
    return this.text[this.at];
  }

  /** The text up to one of the ending characters outside brackets and strings, which is consumed. */
  until(endings) {
    let depth = 0;
    let quoted = false;
    const start = this.at;
    while (this.at < this.text.length) {
      const c = this.text[this.at];
      if (c === '"') quoted = !quoted;
      if (!quoted) {
        if (depth === 0 && endings.includes(c)) {
          const text = this.text.slice(start, this.at);
          this.advance();
          return { text, ending: c };
        }
        if ('{[('.includes(c)) depth++;
        if ('}])'.includes(c)) depth--;
      }
      this.advance();
    }
    return { text: this.text.slice(start), ending: '' };
  }

  restOfLine() {
    const end = this.text.indexOf('\n', this.at);
    const text = this.text.slice(this.at, end < 0 ? undefined : end);
    this.at += text.length;
    return text;
  }

  startsWith(pattern) {
    return pattern.exec(this.text.slice(this.at, this.at + 200));
  }
}

/** `.visible .global .align 8 .b8 name[16] = {...}` */
function parseVariable(text, line) {
  const match =
    /\.(shared|const|global|local|param)\b(?:\s+\.(?:align|attribute)\s*\(?(\d+)\)?)?\s+(?:\.v\d\s+)?\.(\w+)\s+([\w$%]+)((?:\[\d*\])*)(?:\s*=\s*([\s\S]*))?$/.exec(
      text,
    );
  if (!match) throw new PtxError(line, `a declaration that is not understood: ${text}`);
  const [, space, align, type, name, dimensions, initial] = match;
  const counts = [...dimensions.matchAll(/\[(\d*)\]/g)].map((m) => Number(m[1] || 0));
  return {
    kind: 'variable',
    space,
    align: Number(align ?? bytesOf(type)),
    type,
    name,
    count: counts.reduce((product, count) => product * count, 1),
    initial,
    external: /\.extern\b/.test(text),
    line,
  };
}

/** `.param .align 8 .b8 name[16]`, with what nvcc says of a pointer. */
function parseParam(text, line) {
  const match =
    /^\.(?:param|reg)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.(?:global|shared|const|local)\s+)?(?:\.align\s+\d+\s+)?)?([\w$%]+)(?:\[(\d+)\])?$/.exec(
      text.trim(),
    );
  if (!match) throw new PtxError(line, `a parameter that is not understood: ${text}`);
  const [, align, type, name, count] = match;
  const bytes = bytesOf(type) * Number(count ?? 1);
  return { name, type, bytes, align: Number(align ?? bytesOf(type)) };
}

function parseInstruction(text, line, scope) {
  const match = /^(?:@(!?)([\w$%]+)\s+)?([\w.:]+)\s*([\s\S]*)$/.exec(text);
  if (!match) throw new PtxError(line, `a statement that is not understood: ${text}`);
  const [, not, guard, opcode, operands] = match;
  // "::" belongs to a word: shared::cluster
  const [name, ...modifiers] = opcode.split('.');
  return {
    kind: 'instruction',
    guard: guard && { register: guard, negated: not === '!' },
    opcode,
    name,
    modifiers,
    operands: splitOperands(operands),
    text,
    line,
    scope,
  };
}

function parseLocation(text, line, scope) {
  const match = /^\.loc\s+(\d+)\s+(\d+)\s+(\d+)(?:.*\binlined_at\s+(\d+)\s+(\d+)\s+(\d+))?/.exec(
    text,
  );
  if (!match) throw new PtxError(line, `a .loc that is not understood: ${text}`);
  const numbers = match.slice(1).map((digits) => digits && Number(digits));
  const inlinedAt =
    numbers[3] === undefined ? null : { file: numbers[3], line: numbers[4], column: numbers[5] };
  const place = { file: numbers[0], line: numbers[1], column: numbers[2] };
  return { kind: 'location', place, inlinedAt, line, scope };
}

/** `.reg .b32 %r<7>, x;` */
function parseRegisters(text, line, scope) {
  const match = /^\.reg\s+\.(\w+)\s+([\s\S]*)$/.exec(text);
  if (!match) throw new PtxError(line, `a .reg that is not understood: ${text}`);
  const [, type, list] = match;
  const names = splitOperands(list).flatMap((item) => {
    const range = /^([\w$%]+)<(\d+)>$/.exec(item);
    if (!range) return [item];
    return Array.from({ length: Number(range[2]) }, (_, i) => range[1] + i);
  });
  return { kind: 'register', type, names, line, scope };
}

function parseBody(reader) {
  const statements = [];
  let scopes = 0;
  const root = new Scope(scopes++, null);
  let scope = root;
  for (;;) {
    const c = reader.peek();
    const { line } = reader;
    if (c === undefined) throw new PtxError(line, 'the end of the file inside a function');
    if (c === '{') {
      reader.advance();
      scope = new Scope(scopes++, scope);
      continue;
    }
    if (c === '}') {
      reader.advance();
      if (scope === root) return statements;
      scope = scope.parent;
      continue;
    }
    const label = reader.startsWith(kLabel);
    if (label) {
      for (let i = 0; i < label[0].length; i++) reader.advance();
      statements.push({ kind: 'label', name: label[1], line, scope });
      continue;
    }
    if (reader.startsWith(kLineDirective)) {
      const text = reader.restOfLine();
      if (text.startsWith('.loc')) statements.push(parseLocation(text, line, scope));
      continue;
    }
    const text = reader.until(';').text.trim();
    if (text === '' || text.startsWith('.pragma')) continue;
    if (text.startsWith('.reg')) {
      statements.push(parseRegisters(text, line, scope));
    } else if (/^\.(shared|local|param|const|global)\b/.test(text)) {
      statements.push({ ...parseVariable(text, line), scope });
    } else if (text.startsWith('.branchtargets')) {
      const targets = splitOperands(text.slice('.branchtargets'.length));
      const named = statements.pop(); // the label before it is the list's name
      if (named?.kind !== 'label') throw new PtxError(line, 'a list of targets without a name');
      statements.push({ kind: 'targets', name: named.name, targets, line, scope });
    } else {
      statements.push(parseInstruction(text, line, scope));
    }
  }
}

const kFunction = /\.(entry|func)\b/;

function parseFunction(head, ending, reader, line) {
  const match = /\.(entry|func)\s*(?:\(([^)]*)\)\s*)?([\w$]+)\s*(?:\(([\s\S]*?)\))?([\s\S]*)$/.exec(
    head,
  );
  if (!match) throw new PtxError(line, `a function that is not understood: ${head}`);
  const [, kind, returns, name, params, directives] = match;
  const list = (text) => splitOperands(text ?? '').map((item) => parseParam(item, line));
  return {
    kind,
    name,
    params: list(params),
    returns: list(returns),
    directives: new Map(
      [...directives.matchAll(/\.(\w+)([\s\d,]*)/g)].map((m) => [
        m[1],
        m[2].split(',').map(Number),
      ]),
    ),
    body: ending === '{' ? parseBody(reader) : null,
    line,
  };
}

/** Up to `{` that opens a body (not an initialiser) or `;`. */
function readTopLevel(reader) {
  const start = reader.at;
  let parens = 0;
  while (reader.at < reader.text.length) {
    const c = reader.text[reader.at];
    if (c === '(') parens++;
    if (c === ')') parens--;
    const soFar = reader.text.slice(start, reader.at);
    if (parens === 0 && c === ';') {
      reader.advance();
      return { text: soFar.trim(), ending: ';' };
    }
    if (c === '{' && (kFunction.test(soFar) || /^\s*\.section/.test(soFar))) {
      reader.advance();
      return { text: soFar.trim(), ending: '{' };
    }
    if (c === '=') return { text: (soFar + reader.until(';').text).trim(), ending: ';' };
    reader.advance();
  }
  return { text: reader.text.slice(start).trim(), ending: '' };
}

export function parse(text) {
  const reader = new Reader(text);
  const module = { version: 0, files: new Map(), variables: [], functions: [] };
  while (reader.peek() !== undefined) {
    const { line } = reader;
    if (reader.startsWith(kLineDirective)) {
      const directive = reader.restOfLine();
      const file = /^\.file\s+(\d+)\s+"([^"]*)"/.exec(directive);
      if (file) module.files.set(Number(file[1]), file[2]);
      const target = /^\.target\s+sm_(\d+)/.exec(directive);
      if (target) module.version = Number(target[1]);
      continue;
    }
    const { text: head, ending } = readTopLevel(reader);
    if (head.startsWith('.section')) {
      reader.until('}');
    } else if (kFunction.test(head)) {
      module.functions.push(parseFunction(head, ending, reader, line));
    } else if (/\.(shared|const|global)\b/.test(head)) {
      module.variables.push(parseVariable(head, line));
    } else if (head !== '' && !head.startsWith('.pragma')) {
      throw new PtxError(line, `a statement that is not understood: ${head.slice(0, 80)}`);
    }
  }
  return module;
}
