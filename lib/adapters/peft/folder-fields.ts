import type { RawTensor } from '../../checkpoint/raw-tensor.js';
import { fail } from '../../core/errors.js';
import { showShape } from '../../core/validate.js';
import { kPrefix } from '../definition/peft-form.js';
import { formOf, methodOfPeft } from './peft.js';
import { type PeftFolder, PeftTensors } from './peft-tensors.js';

type Config = Readonly<Record<string, unknown>>;

/** Sizes of a layer that no setting reaches: shapes differ where settings do, whatever the layer's own are. */
const kSize = { inFeatures: 7 * 2 ** 16, outFeatures: 5 * 2 ** 16 };

/** Fields that say how adapters came about or are routed, and that other readers than ours may want. */
const kOthers = { arrow_config: undefined, layer_replication: undefined };

/** What a config says that the adapter of a module is. @throws as {@link methodOfPeft} */
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

/** The modules that a folder has tensors of. */
function modulesOf({ config, tensors }: PeftFolder): string[] {
  const ends = Object.values(formOf(methodOfPeft({ ...config, ...kOthers }, '')).tensors);
  const names = [...tensors.keys()].flatMap((key) => {
    const end = ends.find((each) => key.startsWith(kPrefix) && key.endsWith(`.${each}`));
    return end === undefined ? [] : [key.slice(kPrefix.length, -1 - end.length)];
  });
  return [...new Set(names)];
}

/** Of a folder that no method of the library's reads nothing can be told. */
function orNothing<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}

/** The first tensor that is not what a changed config says, in words. */
function contradiction(folder: PeftFolder, changed: Config): string | undefined {
  const tensors = PeftTensors.of('writeAdapterFolder', folder);
  for (const module of orNothing(() => modulesOf(folder)) ?? []) {
    const before = orNothing(() => readAs(folder.config, module, tensors));
    if (before === undefined) continue;
    const targets = changed.target_modules;
    if (before.form.wholeTargets && !(Array.isArray(targets) && targets.includes(module))) {
      return `PEFT wants ${module} by its whole name in target_modules`;
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

/** Is a shape what it was, or, where the config had been wrong, now that of the tensor? */
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
 * That fields of one's own leave the tensors what the config says that they are: with another `r` nothing would read them.
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
