import { LinearRegex, matchBudget } from '../checkpoint/linear-regex.js';
import { parsePattern } from '../checkpoint/regex-syntax.js';

/** Settings that most low-rank methods share, and PEFT's names for them. */
export interface AlphaConfig {
  readonly r: number;
  readonly loraAlpha: number;
  readonly rslora: boolean;
  readonly dropout: number;
}

/** `loraAlpha / r`, or `loraAlpha / sqrt(r)` (Kalajdzievski, 2023). */
export function scalingOf({ r, loraAlpha, rslora }: AlphaConfig): number {
  return loraAlpha / (rslora ? Math.sqrt(r) : r);
}

/**
 * The first pattern that covers the end of a module's name decides, as in PEFT.
 * @throws ERR_FILE not a pattern · ERR_UNSUPPORTED one that may take long to match
 */
export function patternOf(patterns: unknown, module: string): number | undefined {
  const budget = matchBudget();
  for (const [pattern, value] of Object.entries((patterns ?? {}) as Record<string, number>)) {
    // By itself first: what it is put into could make a whole of what is none.
    parsePattern(kOp, pattern);
    if (new LinearRegex(kOp, `(.*\\.)?(${pattern})`, budget).fullMatch(module)) return value;
  }
  return undefined;
}
const kOp = 'adapterFromPeft';

/** Whether a pattern is all of a module's name (Python's `re.fullmatch`). The same errors. */
export function coversModule(pattern: string, module: string): boolean {
  return new LinearRegex(kOp, pattern).fullMatch(module);
}

/** From `adapter_config.json`; what it leaves out has the default of PEFT. */
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

/** To `adapter_config.json`. */
export function alphaFields({ r, loraAlpha, rslora, dropout }: AlphaConfig) {
  return { r, lora_alpha: loraAlpha, use_rslora: rslora, lora_dropout: dropout };
}
