import type { RawTensor } from '../../checkpoint/raw-tensor.js';
import { fail } from '../../core/errors.js';
import { showShape } from '../../core/validate.js';
import { kPrefix } from '../definition/peft-form.js';
import { formOf, methodOfPeft } from './peft.js';
import { type PeftFolder, PeftTensors } from './peft-tensors.js';

type Config = Readonly<Record<string, unknown>>;

/**
 * Layer sizes that no setting reaches, so that shapes differ exactly where settings do, whatever
 * the real sizes are.
 */
const kSize = { inFeatures: 7 * 2 ** 16, outFeatures: 5 * 2 ** 16 };

/** Fields that say how adapters were made or are routed. Other readers may need them. */
const kOthers = { arrow_config: undefined, layer_replication: undefined };

/** The adapter that a config describes for the module. @throws as {@link methodOfPeft} */
function readAs(config: Config, module: string, tensors: PeftTensors) {
  const method = methodOfPeft({ ...config, ...kOthers }, module);
  const form = formOf(method);
  const { definition } = method;
  const stored = (key: string) => tensors.own(module, key);
  const shapeOf = (name: string) => stored(`${form.tensors[name]}`)?.shape;
  const settings = form.read(config, module, shapeOf, { stored, ...kSize });
  const { inFeatures: K, outFeatures: N } = kSize;
  const full = { ...definition.defaults, ...settings };
  const shapes: Readonly<Partial<Record<string, readonly number[]>>> = definition.shapes({
    N,
    K,
    config: full,
  });
  return { method: method.method, form, shapes };
}

/** The modules whose tensors a folder has. */
function modulesOf({ config, tensors }: PeftFolder): string[] {
  const ends = Object.values(formOf(methodOfPeft({ ...config, ...kOthers }, '')).tensors);
  const names = [...tensors.keys()].flatMap((key) => {
    const end = ends.find((each) => key.startsWith(kPrefix) && key.endsWith(`.${each}`));
    return end === undefined ? [] : [key.slice(kPrefix.length, -1 - end.length)];
  });
  return [...new Set(names)];
}

/** Nothing can be checked for a folder that no method of the library reads. */
function orNothing<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}

/** The first tensor that contradicts a changed config, in words. */
function contradiction(folder: PeftFolder, changed: Config): string | undefined {
  const tensors = PeftTensors.of('writeAdapterFolder', folder);
  for (const module of orNothing(() => modulesOf(folder)) ?? []) {
    const before = orNothing(() => readAs(folder.config, module, tensors));
    if (before === undefined) continue;
    const targets = changed.target_modules;
    if (before.form.wholeTargets && !(Array.isArray(targets) && targets.includes(module))) {
      return `PEFT needs the full name of ${module} in target_modules`;
    }
    const after = orNothing(() => readAs(changed, module, tensors));
    if (after?.method !== before.method) return `${module} is an adapter of ${before.method}`;
    for (const [name, shape] of Object.entries(after.shapes)) {
      const own = before.form.tensors[name];
      const shared = before.form.shared?.[name];
      const raw =
        (own === undefined ? undefined : tensors.own(module, own)) ??
        (shared === undefined ? undefined : tensors.shared(shared));
      const of = `${own ?? shared ?? name} of ${module}`;
      if (shape === undefined) continue;
      if (!fits(shape, before.shapes[name], raw)) {
        return raw === undefined ? `there is no ${of}` : `${of} is ${showShape(raw.shape)}`;
      }
    }
  }
  return undefined;
}

/** Is a shape unchanged, or, if the config was wrong before, now that of the tensor? */
function fits(
  after: readonly number[],
  before: readonly number[] | undefined,
  raw: RawTensor | undefined,
): boolean {
  if (before === undefined) return raw !== undefined;
  if (after.length !== before.length) return false;
  return after.every((dim, i) => dim === before[i] || dim === raw?.shape[i]);
}

/**
 * Checks that custom fields do not contradict the tensors: with another `r` nothing would read them.
 * @throws ERR_VALUE
 */
export function checkFields(op: string, folder: PeftFolder, fields: Config): void {
  const changedBy = (own: Config) => contradiction(folder, { ...folder.config, ...own });
  const all = changedBy(fields);
  if (all === undefined) return;
  for (const [name, value] of Object.entries(fields)) {
    const found = changedBy({ [name]: value });
    if (found === undefined) continue;
    const had = folder.config[name];
    const right = had === undefined ? 'left out' : `${JSON.stringify(had)}, or left out`;
    fail('ERR_VALUE', op, `fields.${name}`, `${right} (${found})`, `${JSON.stringify(value)}`);
  }
  const given = Object.keys(fields).join(', ');
  fail('ERR_VALUE', op, 'fields', `such that the tensors can be read (${all})`, given);
}
