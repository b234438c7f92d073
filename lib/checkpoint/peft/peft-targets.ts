/**
 * Which modules a PEFT config adapts, and with which rank and alpha, by PEFT's matching rules.
 */

import { LinearRegex, matchBudget } from '../linear-regex.js';
import { parsePattern } from '../regex-syntax.js';
import type { PeftLoraConfig } from './peft-config.js';

/** Rank and scaling of one module. */
export interface ModuleScaling {
  readonly r: number;
  readonly loraAlpha: number;
  /** lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA. */
  readonly scaling: number;
}

/** Patterns, compiled once per adapter. All matches share one budget of steps. */
export class PeftTargets {
  private readonly budget = matchBudget();
  private readonly rank: readonly CompiledPattern[];
  private readonly alpha: readonly CompiledPattern[];
  private readonly target: (module: string) => boolean;
  private readonly excluded: (module: string) => boolean;
  private readonly saved: ReadonlySet<string>;
  private readonly named: ReadonlySet<string>;
  private readonly layerPatterns: readonly LinearRegex[] | undefined;

  /**
   * @throws LowrankError `ERR_FILE` for an invalid pattern · `ERR_UNSUPPORTED` for one that cannot be
   * matched in linear time
   */
  constructor(
    op: string,
    private readonly config: PeftLoraConfig,
  ) {
    // PEFT matches `(.*\.)?(pattern)$`: the pattern covers the end of the name, from a dot on.
    const compile = (map: ReadonlyMap<string, number>) =>
      [...map].map(([pattern, value]) => ({
        value,
        regex: new LinearRegex(op, `(.*\\.)?(${checked(op, pattern)})`, this.budget),
      }));
    this.rank = compile(config.rankPattern);
    this.alpha = compile(config.alphaPattern);
    this.target = this.matcher(op, config.targetModules, true);
    this.excluded = this.matcher(op, config.excludeModules, false);
    this.saved = new Set(config.modulesToSave);
    this.named = new Set(Array.isArray(config.targetModules) ? config.targetModules : []);
    this.layerPatterns = config.layersPattern?.map(
      (pattern) => new LinearRegex(op, `.*\\.(${checked(op, pattern)})`, this.budget),
    );
  }

  /** Would PEFT put an adapter on a linear layer of this name? */
  adapts(module: string): boolean {
    if (this.excluded(module)) return false;
    if (this.savesInFull(module)) return false;
    if (!this.target(module)) return false;
    const { targetModules, layersToTransform } = this.config;
    // PEFT checks layer indexes only after a list of name endings, not after full names.
    if (!Array.isArray(targetModules) || layersToTransform === undefined) return true;
    if (this.named.has(module)) return true;
    const index = this.layerIndex(module);
    return index !== undefined && layersToTransform.includes(index);
  }

  /** Rank, alpha and scaling of a module by the config. */
  scalingOf(module: string): ModuleScaling {
    const r = this.lookUp(this.rank, this.config.rankPattern, module) ?? this.config.r;
    const loraAlpha =
      this.lookUp(this.alpha, this.config.alphaPattern, module) ?? this.config.loraAlpha;
    return { r, loraAlpha, scaling: loraAlpha / (this.config.useRslora ? Math.sqrt(r) : r) };
  }

  /** Is a run of whole segments of the name in modules_to_save? */
  savesInFull(module: string): boolean {
    if (this.saved.size === 0) return false;
    const segments = module.split('.');
    for (let from = 0; from < segments.length; from++) {
      let run = '';
      for (let to = from; to < segments.length; to++) {
        run = to === from ? (segments[to] as string) : `${run}.${segments[to]}`;
        if (this.saved.has(run)) return true;
      }
    }
    return false;
  }

  private lookUp(
    compiled: readonly CompiledPattern[],
    exact: ReadonlyMap<string, number>,
    module: string,
  ): number | undefined {
    const found = compiled.find(({ regex }) => regex.fullMatch(module));
    // If no pattern matches, PEFT looks up the exact name.
    return found === undefined ? exact.get(module) : found.value;
  }

  private matcher(
    op: string,
    modules: readonly string[] | string | undefined,
    fallback: boolean,
  ): (module: string) => boolean {
    if (modules === undefined || modules === 'all-linear') return () => fallback;
    if (typeof modules === 'string') {
      const regex = new LinearRegex(op, modules, this.budget);
      return (module) => regex.fullMatch(module);
    }
    const names = new Set(modules);
    return (module) => {
      // Tries every ending that starts at a dot, rather than every listed name: linear in the
      // module's name.
      let at = 0;
      do {
        if (names.has(module.slice(at))) return true;
        at = module.indexOf('.', at) + 1;
      } while (at > 0);
      return false;
    };
  }

  /** The number after the last segment that matches `layers_pattern` (by default any segment). */
  private layerIndex(module: string): number | undefined {
    const segments = module.split('.');
    const before = (at: number) => segments.slice(0, at).join('.');
    const findLast = (isLayer: (at: number) => boolean): number | undefined => {
      // Something must follow the number, because PEFT's pattern ends in a dot.
      for (let at = segments.length - 2; at >= 2; at--) {
        if (/^[0-9]{1,15}$/.test(segments[at] as string) && isLayer(at)) {
          return Number(segments[at]);
        }
      }
      return undefined;
    };
    if (this.layerPatterns === undefined) return findLast(() => true);
    for (const pattern of this.layerPatterns) {
      const index = findLast((at) => pattern.fullMatch(before(at)));
      if (index !== undefined) return index;
    }
    return undefined;
  }
}

interface CompiledPattern {
  readonly value: number;
  readonly regex: LinearRegex;
}

/**
 * Parses a pattern alone first, so that `a)
 * (b` is rejected before it is put between parentheses.
 */
function checked(op: string, pattern: string): string {
  parsePattern(op, pattern);
  return pattern;
}
