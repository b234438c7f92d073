/** The method of `lowrank finetune --adapter` and its settings. */

import { existsSync } from 'node:fs';
import { readFile, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { printable } from '../checkpoint/printable.js';
import { LowrankError } from '../core/errors.js';
import { methodNamed, type TrainedMethod } from '../train/adapter-set.js';
import type { Arguments } from './arguments.js';

const kOp = 'finetune';

/** A method with what the command line says about it. */
export interface ChosenMethod {
  readonly method: TrainedMethod;
  readonly settings: Readonly<Record<string, unknown>>;
}

/**
 * The methods of `--adapter`: one, or several with commas between them.
 * @throws UsageError · LowrankError `ERR_FILE`, `ERR_FILE_NOT_FOUND`, `ERR_VALUE`
 */
export async function readAdapters(parsed: Arguments): Promise<[ChosenMethod, ...ChosenMethod[]]> {
  const names = (parsed.text('adapter') ?? 'lora').split(',').map((name) => name.trim());
  const chosen: ChosenMethod[] = [];
  for (const name of names) {
    const method = /[./\\]/.test(name) ? await loadMethod(name) : methodNamed(kOp, name);
    chosen.push({ method, settings: settingsOf(parsed, method, names.length === 1) });
  }
  const twice = chosen.find(({ method }, i) => chosen.findIndex((c) => c.method === method) < i);
  if (twice !== undefined) throw parsed.refuse('adapter', 'distinct methods', twice.method.method);
  return chosen as [ChosenMethod, ...ChosenMethod[]];
}

/**
 * What the command line says about a method.
 * @param alone options that it does not have are refused; among several methods they are the others'
 */
function settingsOf(
  parsed: Arguments,
  { method, definition }: TrainedMethod,
  alone: boolean,
): Readonly<Record<string, unknown>> {
  const defaults = definition.defaults as Readonly<Record<string, unknown>>;
  const settings: Record<string, unknown> = {};
  const put = (option: string, setting: string, value: () => unknown) => {
    if (setting in defaults) settings[setting] = value();
    else if (alone && (parsed.text(option) !== undefined || parsed.flag(option))) {
      throw parsed.refuse(option, `left out (${method} has no ${setting})`, 'it');
    }
  };
  const r = parsed.integer('rank', 8, 1, 4096);
  const positive = (value: number) => value > 0;
  put('rank', 'r', () => r);
  put('lora-alpha', 'loraAlpha', () =>
    parsed.number('lora-alpha', 2 * r, 'a positive number', positive),
  );
  put('rslora', 'rslora', () => parsed.flag('rslora'));
  put('dropout', 'dropout', () => parsed.number('dropout', 0, 'in [0, 1)', (p) => p >= 0 && p < 1));
  for (const text of parsed.texts('set')) {
    const [setting = '', ...rest] = text.split('=');
    const value = rest.join('=');
    if (!(setting in defaults) && rest.length > 0 && !alone) continue;
    if (!(setting in defaults) || rest.length === 0) {
      const known = Object.keys(defaults).join(', ') || 'none';
      throw parsed.refuse('set', `NAME=VALUE with a setting of ${method} (${known})`, text);
    }
    settings[setting] = valueLike(defaults[setting], value) ?? refuseValue();
    function refuseValue(): never {
      throw parsed.refuse('set', `${setting}=<${typeof defaults[setting]}>`, text);
    }
  }
  return settings;
}

/** Text as a value of the type of `standard`; `undefined` where it is none. */
function valueLike(standard: unknown, text: string): unknown {
  if (typeof standard === 'string') return text;
  if (typeof standard === 'boolean') return { true: true, false: false }[text];
  const value = text.trim() === '' ? Number.NaN : Number(text);
  return Number.isFinite(value) ? value : undefined;
}

/**
 * A method from a module whose default export is what `defineAdapter` returned. TypeScript is
 * loaded as it is where Node strips types (22.18 on), else through esbuild.
 */
async function loadMethod(file: string): Promise<TrainedMethod> {
  const full = path.resolve(file);
  if (!existsSync(full)) {
    const text = `${kOp}: ${printable(file)} must be a file, got nothing there`;
    throw new LowrankError('ERR_FILE_NOT_FOUND', text, { op: kOp });
  }
  let exported: unknown;
  try {
    exported = ((await importFile(full)) as { default?: unknown }).default;
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    throw new LowrankError('ERR_FILE', `${kOp}: ${printable(file)} does not load: ${text}`, {
      op: kOp,
    });
  }
  const method = exported as Partial<TrainedMethod> | undefined;
  if (typeof method?.create !== 'function' || typeof method.definition?.forward !== 'function') {
    const text = `${kOp}: the default export of ${printable(file)} must be what defineAdapter returns, got ${typeof exported}`;
    throw new LowrankError('ERR_FILE', text, { op: kOp });
  }
  return method as TrainedMethod;
}

async function importFile(full: string): Promise<unknown> {
  const typescript = /\.[cm]?ts$/.test(full);
  const strips = (process.features as { typescript?: string | false }).typescript;
  if (!typescript || strips) return import(pathToFileURL(full).href);
  const { transform } = await esbuild();
  const { code } = await transform(await readFile(full, 'utf8'), { loader: 'ts', format: 'esm' });
  // Beside the original, so that its imports mean the same.
  const compiled = path.join(path.dirname(full), `.${path.basename(full)}.${process.pid}.mjs`);
  try {
    await writeFile(compiled, code);
    return await import(pathToFileURL(compiled).href);
  } finally {
    await rm(compiled, { force: true });
  }
}

interface Esbuild {
  transform(code: string, options: object): Promise<{ code: string }>;
}

async function esbuild(): Promise<Esbuild> {
  const name = 'esbuild';
  try {
    return (await import(name)) as Esbuild;
  } catch {
    throw new Error(
      `Node ${process.versions.node} does not read TypeScript. Use Node 22.18 or later, npm install esbuild, or give a .mjs file`,
    );
  }
}
