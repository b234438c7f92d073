/**
 * The tolerance rules of the golden data. Each rule names a tensor of the case; `mine` is what the
 * library gave for it. A broken rule throws an Error that names the element.
 */
import { type GoldenCase, numbersOf, type Rule } from './case-file.js';

/** A result: its raw bytes for `bytes`, `nibbles` and `u8` of packed data, its values otherwise. */
export type Mine = ArrayLike<number>;

function failure(golden: GoldenCase, rule: Rule, index: number, text: string): Error {
  return new Error(`${golden.id}: ${rule.tensor}[${index}] ${text} (${rule.rule}: ${rule.why})`);
}

/** The sign by which to multiply each row or column so that it agrees best with the reference. */
function signs(
  mine: Mine,
  reference: Float64Array,
  cols: number,
  by: 'rows' | 'columns',
): number[] {
  const agreement: number[] = [];
  for (let i = 0; i < reference.length; i++) {
    const line = by === 'rows' ? Math.floor(i / cols) : i % cols;
    agreement[line] = (agreement[line] ?? 0) + (mine[i] as number) * (reference[i] as number);
  }
  return agreement.map((value) => (value < 0 ? -1 : 1));
}

function checkTolerance(golden: GoldenCase, rule: Rule, mine: Mine): void {
  const tensor = golden.tensor(rule.reference ?? rule.tensor);
  const reference = numbersOf(tensor);
  const cols = tensor.shape[tensor.shape.length - 1] ?? 1;
  const by = rule.upToSign;
  const sign = by === undefined ? undefined : signs(mine, reference, cols, by);
  let outliers = 0;
  for (let i = 0; i < reference.length; i++) {
    const line = by === 'columns' ? i % cols : Math.floor(i / cols);
    const value = (mine[i] as number) * (sign?.[line] ?? 1);
    const expected = reference[i] as number;
    const relative = rule.rule === 'relative' ? (rule.rtol ?? 0) * Math.abs(expected) : 0;
    const error = Math.abs(value - expected);
    if (error <= (rule.atol ?? 0) + relative) continue;
    outliers += 1;
    const hopeless = !(error <= (rule.outlierAtol ?? Number.MAX_VALUE));
    if (hopeless || outliers > (rule.outlierFraction ?? 0) * reference.length) {
      throw failure(golden, rule, i, `is ${value}, expected ${expected}, error ${error}`);
    }
  }
}

/**
 * Rows are right as a whole, by the tensor or by its alternative. NaN codes are those whose level in
 * the codebook is NaN.
 */
function checkBytes(
  golden: GoldenCase,
  rule: Rule,
  mine: Mine,
  codebook?: ArrayLike<number>,
): void {
  const { bytes, shape } = golden.tensor(rule.tensor);
  const other = rule.alternative === undefined ? undefined : golden.tensor(rule.alternative).bytes;
  if (rule.nan !== undefined && codebook === undefined) {
    throw new Error(`${golden.id}: ${rule.tensor} needs a codebook`);
  }
  const isNaNCode = (code: number | undefined): boolean =>
    rule.nan !== undefined && Number.isNaN(codebook?.[code as number]);
  const same = (a: number | undefined, b: number | undefined): boolean =>
    a === b || (isNaNCode(a) && isNaNCode(b));
  const elements = shape.reduce((product, n) => product * n, 1);
  const pitch = (shape.at(-1) ?? 1) * (bytes.length / elements);
  for (let i = 0; i < bytes.length; i++) {
    if (same(mine[i], bytes[i])) continue;
    const start = i - (i % pitch);
    const alternative = other?.subarray(start, start + pitch);
    if (!alternative?.every((code, j) => same(mine[start + j], code))) {
      throw failure(golden, rule, i, `is byte ${mine[i]}, expected ${bytes[i]}`);
    }
  }
}

/** Codes of which some may be a neighbour. */
function checkInt8(golden: GoldenCase, rule: Rule, mine: Mine): void {
  const expected = golden.numbers(rule.tensor);
  const { maxDiff = 0, maxDiffFraction = 0 } = rule;
  let others = 0;
  expected.forEach((code, i) => {
    const off = Math.abs((mine[i] as number) - code);
    if (off !== 0) others += 1;
    if (!(off <= maxDiff) || others > maxDiffFraction * expected.length) {
      throw failure(golden, rule, i, `is code ${mine[i]}, expected ${code}`);
    }
  });
}

function checkValues(golden: GoldenCase, rule: Rule, mine: Mine): void {
  golden.numbers(rule.tensor).forEach((expected, i) => {
    // As numbers: -0 equals 0.
    const bothNaN = rule.rule === 'bits' && Number.isNaN(expected) && Number.isNaN(mine[i]);
    if (mine[i] !== expected && !bothNaN) {
      throw failure(golden, rule, i, `is ${mine[i]}, expected ${expected}`);
    }
  });
}

/** Of a quantiser that searches: rms error of what it made of a tensor, decoded. */
function checkQuantised(golden: GoldenCase, rule: Rule, mine: Mine): void {
  const { from = [], peerRmsErr = 0, factor = 1 } = rule;
  const weight = golden.numbers(from[0] as string);
  if (mine.length !== weight.length) {
    throw new Error(`${golden.id}: ${mine.length} decoded values, expected ${weight.length}`);
  }
  const squares = weight.reduce((sum, value, i) => sum + ((mine[i] as number) - value) ** 2, 0);
  const error = Math.sqrt(squares / weight.length);
  if (!(error <= factor * peerRmsErr)) {
    throw new Error(
      `${golden.id}: ${rule.tensor} has an rms error of ${error}, expected at most ` +
        `${factor} x ${peerRmsErr} (${rule.why})`,
    );
  }
}

/** Codes of a packed tensor, one an element. */
function codesOf(rule: Rule, packed: ArrayLike<number>, count: number): number[] {
  return Array.from({ length: count }, (_, i) => {
    if (rule.rule === 'u8') return packed[i] as number;
    const pair = packed[i >> 1] as number;
    return i % 2 === 0 ? pair >> 4 : pair & 15;
  });
}

export interface CodeContext {
  /** Elements (4-bit tensors hold two a byte). */
  readonly count: number;
  /** Elements a block, for `blockKind`. */
  readonly blocksize: number;
  /** Value of each code, for "a neighbouring level". */
  readonly codebook: ArrayLike<number>;
}

function checkCodes(golden: GoldenCase, rule: Rule, mine: Mine, context: CodeContext): void {
  const { count, blocksize, codebook } = context;
  const read = (name: string | undefined): number[] | undefined =>
    name === undefined ? undefined : codesOf(rule, golden.tensor(name).bytes, count);
  const actual = codesOf(rule, mine, count);
  const expected = read(rule.tensor) as number[];
  const alternative = read(rule.alternative);
  const mask = rule.mask === undefined ? undefined : golden.tensor(rule.mask).bytes;
  const other = rule.alternativeMask && golden.tensor(rule.alternativeMask).bytes;
  const kinds = rule.blockKind === undefined ? undefined : golden.tensor(rule.blockKind).bytes;
  const order = Array.from({ length: codebook.length }, (_, code) => code).sort(
    (a, b) => (codebook[a] as number) - (codebook[b] as number),
  );
  const same = (a: number, b: number | undefined): boolean =>
    a === b ||
    (b !== undefined &&
      (rule.equivalentNibbles ?? []).some((group) => group.includes(a) && group.includes(b)));
  // Levels in ascending order without duplicates of zero: neighbours are one step apart.
  const rank = (code: number): number => {
    const level = codebook[code] as number;
    return new Set(order.map((c) => (codebook[c] as number) + 0).filter((v) => v < level)).size;
  };
  for (let i = 0; i < count; i++) {
    const code = actual[i] as number;
    if (same(code, expected[i])) continue;
    const kind = kinds?.[Math.floor(i / blocksize)] ?? 0;
    const near = mask?.[i] === 1 || kind !== 0;
    if (near && same(code, alternative?.[i])) continue;
    if (near && kind === 0 && Math.abs(rank(code) - rank(expected[i] as number)) <= 1) continue;
    if (other && other[i] === 0 && same(code, alternative?.[i])) continue;
    throw failure(golden, rule, i, `is code ${code}, expected ${expected[i]}`);
  }
}

/** Applies one rule. `context` is needed for the rules about codes, its codebook for NaN codes. */
export function checkRule(
  golden: GoldenCase,
  rule: Rule,
  mine: Mine,
  context?: CodeContext | Pick<CodeContext, 'codebook'>,
): void {
  if (rule.rule === 'quantised' && rule.peerRmsErr !== undefined) {
    checkQuantised(golden, rule, mine);
    return;
  }
  const { shape, bytes } = golden.tensor(rule.tensor);
  const elements = shape.reduce((product, dim) => product * dim, 1);
  const raw = rule.rule === 'bytes' || rule.rule === 'nibbles' || rule.rule === 'u8';
  const length = raw ? bytes.length : elements;
  if (mine.length !== length) {
    throw new Error(`${golden.id}: ${rule.tensor} has ${mine.length} entries, expected ${length}`);
  }
  switch (rule.rule) {
    case 'absolute':
    case 'relative':
      checkTolerance(golden, rule, mine);
      break;
    case 'bytes':
      checkBytes(golden, rule, mine, context?.codebook);
      break;
    case 'bits':
    case 'values':
      checkValues(golden, rule, mine);
      break;
    case 'int8':
      checkInt8(golden, rule, mine);
      break;
    case 'nibbles':
    case 'u8':
      if (rule.maxDiff !== undefined && rule.mask === undefined) {
        checkInt8(golden, rule, mine);
        break;
      }
      if (context === undefined || !('count' in context)) {
        throw new Error(`${golden.id}: ${rule.tensor} needs a codebook`);
      }
      checkCodes(golden, rule, mine, context);
      break;
    default:
      throw new Error(`${golden.id}: rule ${rule.rule} is about another tensor`);
  }
}

/**
 * Applies the rules of a case and remembers which: `finish` fails if one was never applied, so that
 * a case cannot pass by leaving its rules out.
 */
export class RuleBook {
  readonly #golden: GoldenCase;
  readonly #open: Set<Rule>;

  constructor(golden: GoldenCase) {
    this.#golden = golden;
    this.#open = new Set(golden.rules);
  }

  has(tensor: string): boolean {
    return this.#golden.rules.some((rule) => rule.tensor === tensor);
  }

  rule(tensor: string): Rule {
    const found = this.#golden.rules.find((rule) => rule.tensor === tensor);
    if (found === undefined) throw new Error(`${this.#golden.id}: no rule for ${tensor}`);
    return found;
  }

  check(tensor: string, mine: Mine, context?: CodeContext): void {
    this.apply(this.rule(tensor), mine, context);
  }

  /** One of several rules for a tensor. */
  apply(rule: Rule, mine: Mine, context?: Parameters<typeof checkRule>[3]): void {
    checkRule(this.#golden, rule, mine, context);
    this.#open.delete(rule);
  }

  /** A rule that another one stands for, or that is about a format that is not here. */
  waive(tensor: string, reason: string): void {
    if (reason === '') throw new Error('a waived rule needs a reason');
    this.#open.delete(this.rule(tensor));
  }

  finish(): void {
    const open = [...this.#open].map(({ tensor }) => tensor);
    if (open.length > 0) {
      throw new Error(`${this.#golden.id}: rules never applied: ${open.join(', ')}`);
    }
  }
}
