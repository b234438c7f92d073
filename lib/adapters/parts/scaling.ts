import { LinearRegex, matchBudget } from '../../checkpoint/linear-regex.js';
import { parsePattern } from '../../checkpoint/regex-syntax.js';
import { fail } from '../../core/errors.js';

/** Settings that most low-rank methods share, with PEFT's names for them. */
export interface AlphaConfig {
  readonly r: number;
  readonly loraAlpha: number;
  readonly rslora: boolean;
  readonly dropout: number;
}

/** `loraAlpha / r`, or `loraAlpha / sqrt(r)` (Kalajdzievski, 2023). */
export function scalingOf({
  r,
  loraAlpha,
  rslora,
}: Partial<AlphaConfig> & Omit<AlphaConfig, 'dropout'>): number {
  return loraAlpha / (rslora ? Math.sqrt(r) : r);
}

/**
 * The first pattern that matches the end of a module's name applies, as in PEFT.
 * @throws ERR_FILE if it is not a pattern · ERR_UNSUPPORTED if it may take long to match
 */
export function patternOf(patterns: unknown, module: string): number | undefined {
  const budget = matchBudget();
  for (const [pattern, value] of Object.entries((patterns ?? {}) as Record<string, number>)) {
    // Parsed alone first: the surrounding pattern could turn an invalid one into a valid one.
    parsePattern(kOp, pattern);
    if (new LinearRegex(kOp, `(.*\\.)?(${pattern})`, budget).fullMatch(module)) return value;
  }
  return undefined;
}
const kOp = 'adapterFromPeft';

/** Does a pattern match the whole module name (Python's `re.fullmatch`)? Throws the same errors. */
export function coversModule(pattern: string, module: string): boolean {
  return new LinearRegex(kOp, pattern).fullMatch(module);
}

/** Reads `adapter_config.json`. Missing fields have PEFT's defaults. */
export function readAlpha(
  config: Readonly<Record<string, unknown>>,
  module: string,
): { r: number; loraAlpha: number; rslora: boolean; dropout: number } {
  return {
    r: patternOf(config.rank_pattern, module) ?? Number(config.r ?? 8),
    loraAlpha: patternOf(config.alpha_pattern, module) ?? Number(config.lora_alpha ?? 8),
    rslora: config.use_rslora === true,
    dropout: Number(config.lora_dropout ?? 0),
  };
}

/** The fields of LoRA and related methods, for {@link patternFields}. */
export const kAlphaPatterns = { r: 'rank_pattern', lora_alpha: 'alpha_pattern' } as const;

/** A pattern that matches the module of that name and no other, not even one whose name ends in it. */
export const exactly = (module: string): string => `^${module.replace(/[^\w]/g, '\\$&')}`;

/**
 * Fields of one config for modules with different values. The value of most modules goes into the field, those of the
 * others into its field of patterns. For dropout the largest value is written, because an embedding's layer has none.
 * @param patterns the fields that may differ, and the names of their pattern fields
 * @param fields the fields of each module
 * @throws ERR_VALUE if modules differ in a field that PEFT stores only once
 */
export function patternFields(
  op: string,
  patterns: Readonly<Record<string, string>>,
  modules: readonly string[],
  fields: readonly Readonly<Record<string, unknown>>[],
): Readonly<Record<string, unknown>> {
  const one: Record<string, unknown> = { ...fields[0] };
  for (const [field, value] of Object.entries(one)) {
    if (field in patterns || field === 'lora_dropout') continue;
    const text = JSON.stringify(value);
    const other = fields.find((own) => JSON.stringify(own[field]) !== text);
    if (other === undefined) continue;
    const expected = `the same in all layers (PEFT has one ${field})`;
    const actual = `${text} and ${JSON.stringify(other[field])}`;
    fail('ERR_VALUE', op, field, expected, actual);
  }
  if (typeof one.lora_dropout === 'number') {
    one.lora_dropout = Math.max(...fields.map(({ lora_dropout }) => Number(lora_dropout)));
  }
  for (const [field, pattern] of Object.entries(patterns)) {
    const values = fields.map((own) => own[field]);
    const count = (value: unknown) => values.filter((other) => other === value).length;
    const usual = values.reduce((best, value) => (count(value) > count(best) ? value : best));
    one[field] = usual;
    const others = modules.flatMap((module, i) => {
      return values[i] === usual ? [] : [[exactly(module), values[i]]];
    });
    if (others.length > 0) one[pattern] = Object.fromEntries(others);
  }
  return one;
}

/** The fields of `adapter_config.json`. */
export function alphaFields({ r, loraAlpha, rslora, dropout }: AlphaConfig) {
  return { r, lora_alpha: loraAlpha, use_rslora: rslora, lora_dropout: dropout };
}
