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

/** The first pattern that covers the end of a module's name decides, as in PEFT. */
export function patternOf(patterns: unknown, module: string): number | undefined {
  for (const [pattern, value] of Object.entries((patterns ?? {}) as Record<string, number>)) {
    if (new RegExp(`(.*\\.)?(${pattern})$`).test(module)) return value;
  }
  return undefined;
}

/** From `adapter_config.json`. */
export function readAlpha(
  config: Readonly<Record<string, unknown>>,
  module: string,
): { r: number; loraAlpha: number; rslora: boolean; dropout: number } {
  return {
    r: patternOf(config.rank_pattern, module) ?? Number(config.r),
    loraAlpha: patternOf(config.alpha_pattern, module) ?? Number(config.lora_alpha),
    rslora: config.use_rslora === true,
    dropout: Number(config.lora_dropout ?? 0),
  };
}

/** To `adapter_config.json`. */
export function alphaFields({ r, loraAlpha, rslora, dropout }: AlphaConfig) {
  return { r, lora_alpha: loraAlpha, use_rslora: rslora, lora_dropout: dropout };
}
