/**
 * Options of a subcommand: node:util's parseArgs, with messages that name the option, the expected
 * and the given value, and a suggestion for a mistyped name.
 */

import { type ParseArgsConfig, parseArgs } from 'node:util';
import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { suggestion } from '../../core/suggestion.js';

type OptionConfigs = NonNullable<ParseArgsConfig['options']>;

/** An invalid command line. The message is complete. */
export class UsageError extends LowrankError {
  constructor(message: string) {
    super('ERR_VALUE', message);
  }
}

/** Parsed options of one subcommand. */
export class Arguments {
  private constructor(
    private readonly command: string,
    private readonly values: ReadonlyMap<string, unknown>,
    readonly positionals: readonly string[],
  ) {}

  /**
   * @param allowed how many positional arguments the command takes
   * @throws UsageError
   */
  static parse(
    command: string,
    args: readonly string[],
    options: OptionConfigs,
    allowed: { readonly min: number; readonly max: number; readonly names: string },
  ): Arguments {
    const all: OptionConfigs = { ...options, help: { type: 'boolean', short: 'h' } };
    const { values, positionals, tokens } = parseArgs({
      args: [...args],
      options: all,
      allowPositionals: true,
      strict: false,
      tokens: true,
    });
    for (const token of tokens) {
      if (token.kind !== 'option') continue;
      const known = all[token.name];
      if (known === undefined) {
        const hint = suggestion(token.name, Object.keys(all), '--');
        throw usage(command, `${printable(token.rawName)} is not an option${hint}`);
      }
      if (known.type === 'string' && token.value === undefined) {
        throw usage(command, `${token.rawName} needs a value`);
      }
      if (known.type === 'boolean' && token.value !== undefined) {
        throw usage(command, `${token.rawName} takes no value, got ${printable(token.value)}`);
      }
    }
    const asksForHelp = values.help === true;
    if (!asksForHelp && (positionals.length < allowed.min || positionals.length > allowed.max)) {
      const expected = allowed.max === 0 ? 'no further arguments' : allowed.names;
      const got = positionals.length === 0 ? 'none' : positionals.map(printable).join(' ');
      throw usage(command, `takes ${expected}, got ${got}`);
    }
    return new Arguments(command, new Map(Object.entries(values)), positionals);
  }

  /** The same command line with values for options that were not given; `set` replaces the texts of `--set`. */
  withDefaults({ set, ...values }: Readonly<Record<string, unknown>>): Arguments {
    const all = new Map([...Object.entries(values), ...this.values, ['set', set] as const]);
    return new Arguments(this.command, all, this.positionals);
  }

  /** The first of these options that was given. */
  firstGiven(names: readonly string[]): string | undefined {
    return names.find((name) => this.values.has(name));
  }

  flag(name: string): boolean {
    return this.values.get(name) === true;
  }

  text(name: string): string | undefined {
    const value = this.values.get(name);
    return typeof value === 'string' ? value : undefined;
  }

  /** All values of an option that may be repeated. */
  texts(name: string): readonly string[] {
    const value = this.values.get(name);
    return Array.isArray(value) ? value.filter((item) => typeof item === 'string') : [];
  }

  /** @throws UsageError */
  integer(name: string, fallback: number, min: number, max: number): number {
    const text = this.text(name);
    if (text === undefined) return fallback;
    const value = /^-?\d{1,16}$/.test(text.trim()) ? Number(text) : Number.NaN;
    if (!(value >= min && value <= max)) {
      throw this.refuse(name, `an integer from ${min} to ${max}`, text);
    }
    return value;
  }

  /** @throws UsageError */
  powerOfTwo(name: string, min: number, max: number): number | undefined {
    const text = this.text(name);
    if (text === undefined) return undefined;
    const value = /^\d{1,9}$/.test(text.trim()) ? Number(text) : Number.NaN;
    if (!(value >= min && value <= max && Number.isInteger(Math.log2(value)))) {
      throw this.refuse(name, `a power of two from ${min} to ${max}`, text);
    }
    return value;
  }

  /** @throws UsageError */
  number(name: string, fallback: number, expected: string, holds: (n: number) => boolean): number {
    const text = this.text(name);
    if (text === undefined) return fallback;
    const value = text.trim() === '' ? Number.NaN : Number(text);
    if (!Number.isFinite(value) || !holds(value)) throw this.refuse(name, expected, text);
    return value;
  }

  /** @throws UsageError */
  choice<T extends string>(name: string, fallback: T, choices: readonly T[]): T {
    const text = this.text(name);
    if (text === undefined) return fallback;
    const found = choices.find((choice) => choice === text);
    if (found === undefined) throw this.refuse(name, `one of ${choices.join(', ')}`, text);
    return found;
  }

  /** An error about the command line as a whole. */
  wrong(text: string): UsageError {
    return usage(this.command, text);
  }

  refuse(name: string, expected: string, got: string): UsageError {
    return usage(this.command, refusalOf(name, expected, got));
  }

  /** An error for a valid device that this machine does not have. */
  refuseDevice(name: string, expected: string, got: string, reason: string): LowrankError {
    const text = `${this.command}: ${refusalOf(name, expected, got)} (${reason})`;
    return new LowrankError('ERR_DEVICE', text);
  }
}

function refusalOf(name: string, expected: string, got: string): string {
  return `--${name} must be ${expected}, got ${printable(got)}`;
}

function usage(command: string, text: string): UsageError {
  return new UsageError(`${command}: ${text}. See: lowrank ${command} --help`);
}
