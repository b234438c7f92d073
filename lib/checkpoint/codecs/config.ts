/** What a `quantization_config` says about one layer: its group or override, and whether it is left as it is. */
import { fail, shown } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { LinearRegex, type MatchBudget, matchBudget } from '../linear-regex.js';
import type { QuantizationConfig } from './layer-tensors.js';

const isObject = (value: unknown): value is QuantizationConfig =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** Does a config of compressed-tensors name a format? */
export const announcesFormat =
  (...formats: readonly string[]) =>
  ({ quant_method, format }: QuantizationConfig): boolean =>
    quant_method === 'compressed-tensors' && formats.includes(format as string);

/** Is it the config of ModelOpt, with an algorithm that `pattern` matches or none? */
export const announcesModelopt =
  (pattern: RegExp) =>
  ({ quant_method, quant_algo }: QuantizationConfig): boolean =>
    typeof quant_method === 'string' &&
    quant_method.startsWith('modelopt') &&
    (typeof quant_algo !== 'string' || pattern.test(quant_algo));

/** Fields that list modules that stay as they are. */
const kSkipFields = [
  'modules_to_not_convert',
  'llm_int8_skip_modules',
  'skip_modules',
  'ignored_layers',
  'ignore',
  'exclude_modules',
] as const;

/** More entries than layers and experts of the largest models. */
const kMaxEntries = 100_000;

/** The config of one folder, asked about its layers. */
export class FolderConfig {
  readonly config: QuantizationConfig;
  private readonly budget: MatchBudget = matchBudget();
  private readonly patterns = new Map<string, LinearRegex>();
  private readonly skipped: readonly { readonly field: string; readonly entry: string }[];

  /** @throws ERR_FORMAT if a field has another type */
  constructor(
    private readonly op: string,
    config: QuantizationConfig,
  ) {
    // hf_quant_config.json of ModelOpt has its fields one level further down.
    const { quantization } = config;
    this.config = isObject(quantization) ? { quant_method: 'modelopt', ...quantization } : config;
    this.skipped = kSkipFields.flatMap((field) =>
      this.strings(field, this.config[field]).map((entry) => ({ field, entry })),
    );
  }

  private strings(field: string, value: unknown): readonly string[] {
    if (value === undefined || value === null) return [];
    const list: readonly unknown[] = Array.isArray(value) ? value : [];
    const texts = list.filter((entry) => typeof entry === 'string');
    if (!Array.isArray(value) || texts.length < list.length || list.length > kMaxEntries) {
      const expected = `a list of at most ${kMaxEntries} names`;
      fail('ERR_FORMAT', this.op, `${field} in the config`, expected, shown(value));
    }
    return texts;
  }

  private matches(pattern: string, name: string): boolean {
    let regex = this.patterns.get(pattern);
    if (regex === undefined) {
      regex = new LinearRegex(this.op, pattern, this.budget);
      this.patterns.set(pattern, regex);
    }
    return regex.fullMatch(name);
  }

  /** As Python's re.match: from the start of the name on. */
  private startsLike(pattern: string, name: string): boolean {
    return this.matches(`(?:${pattern})(?:.|\\n)*`, name);
  }

  /**
   * Does an entry name a module or one that it is in? An entry is a whole name, the last or middle parts of one, a name
   * with `*`, or `re:` and a regular expression.
   */
  private names(entry: string, name: string): boolean {
    if (entry.startsWith('re:')) return this.startsLike(entry.slice(3), name);
    if (!entry.includes('*')) return `.${name}.`.includes(`.${entry}.`);
    // gpt-oss has `.*`, a regular expression; the dot before the star is a dot there too.
    const text = entry.replace(/[\\^$.|?+()[\]{}]/g, '\\$&').replaceAll('*', '.*');
    return this.matches(`(?:.*\\.)?(?:${text})(?:\\..*)?`, name);
  }

  /** The entry by which a module stays as it is, in words; `undefined` if it does not. */
  skipOf(name: string): string | undefined {
    const found = this.skipped.find(({ entry }) => this.names(entry, name));
    if (found !== undefined) return `${printable(found.entry)} in ${found.field}`;
    const rule = this.dynamicRule(name);
    return rule?.startsWith('-:') ? `${printable(rule)} in dynamic` : undefined;
  }

  /** The key of GPTQModel's `dynamic` that names a module. */
  private dynamicRule(name: string): string | undefined {
    const { dynamic } = this.config;
    if (!isObject(dynamic)) return undefined;
    return Object.keys(dynamic).find((rule) =>
      this.startsLike(rule.startsWith('-:') || rule.startsWith('+:') ? rule.slice(2) : rule, name),
    );
  }

  /** The config of a layer: its group of compressed-tensors or ModelOpt, or its override of GPTQModel, merged in. */
  of(name: string): QuantizationConfig {
    const { config_groups, dynamic } = this.config;
    if (isObject(config_groups)) return this.withGroup(name, config_groups);
    const rule = this.dynamicRule(name);
    const override = rule === undefined ? undefined : (dynamic as QuantizationConfig)[rule];
    return isObject(override) ? { ...this.config, ...override } : this.config;
  }

  private withGroup(name: string, groups: QuantizationConfig): QuantizationConfig {
    const rows = Object.values(groups).filter(isObject);
    const targetsOf = (group: QuantizationConfig) =>
      this.strings('targets of config_groups', group.targets);
    const isClass = (target: string): boolean => /^[A-Z]\w*$/.test(target);
    const named = rows.find((group) =>
      targetsOf(group).some((target) =>
        target.startsWith('re:')
          ? this.startsLike(target.slice(3), name)
          : !isClass(target) && this.names(target, name),
      ),
    );
    // The class of a module is not in the file.
    const byClass = rows.filter((group) => targetsOf(group).some(isClass));
    const group = named ?? byClass[0] ?? (rows.length === 1 ? rows[0] : undefined);
    if (group === undefined) {
      const what = `a group whose targets include ${printable(name)}, which has quantised tensors`;
      return fail('ERR_FORMAT', this.op, 'config_groups in the config', what, 'none');
    }
    const { weights, format } = group;
    return {
      ...this.config,
      ...(isObject(weights) ? weights : {}),
      ...(typeof format === 'string' ? { format } : {}),
    };
  }
}
