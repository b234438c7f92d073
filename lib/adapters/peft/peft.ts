import { checkName, checkObject } from '../../checkpoint/arguments.js';
import type { RawTensor } from '../../checkpoint/raw-tensor.js';
import { fail, LowrankError, wrongType } from '../../core/errors.js';
import { printableText, printableValue } from '../../core/printable.js';
import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import type { Adapter } from '../definition/adapter.js';
import { checkAdapters } from '../definition/adapter-map.js';
import { isMethod } from '../definition/load-method.js';
import type { AdapterPlace, AnyMethod } from '../definition/method.js';
import type { PeftForm, Regenerated } from '../definition/peft-form.js';
import { kPrefix } from '../definition/peft-form.js';
import { adapterMethods } from '../methods/adapter-methods.js';
import { largestOf, layersOf } from '../parts/folder-layers.js';
import { patternFields } from '../parts/scaling.js';
import {
  missing,
  type PeftFolder,
  PeftTensors,
  partOf,
  stackOf,
  unstacked,
} from './peft-tensors.js';
import { SharedParts } from './shared-parts.js';

/** `peft_type` for methods that PEFT does not have. */
const kOwnType = 'LOWRANK';

/** Features of PEFT's configs that change what most methods compute. A method's form lists the ones it supports. */
const kOtherFeatures = ['arrow_config', 'layer_replication', 'lora_bias'];

/** Fields of PEFT's configs that are false if the file leaves frozen tensors out. */
const kStored = ['save_projection', 'save_indices'];

/** @internal PEFT's form of a method. For a method that PEFT does not have, it uses the method's own names. */
export function formOf({ definition }: Pick<AnyMethod, 'definition'>): PeftForm<object, string> {
  if (definition.peft !== undefined) return definition.peft;
  const names = [...definition.trained, ...(definition.frozen ?? [])];
  return {
    type: kOwnType,
    when: ({ lowrank_method }) => lowrank_method === definition.method,
    tensors: Object.fromEntries(names.map((name) => [name, name])),
    read: ({ settings }) => settings as object,
    write: (config) => ({ lowrank_method: definition.method, settings: config }),
  };
}

/** @throws ERR_TYPE */
function checkMethods(op: string, methods: unknown): void {
  if (!Array.isArray(methods)) throw wrongType(op, 'methods', 'an array of methods', methods);
  for (const [i, method] of methods.entries()) {
    if (isMethod(method)) continue;
    throw wrongType(op, `methods[${i}]`, 'what defineAdapter returns', method);
  }
}

/**
 * The method of a PEFT config, from its `peft_type` and the flags that tell methods of one type
 * apart.
 * @param module some configs name the modules of a variant
 * @param methods the candidates; add your own methods here
 * @throws ERR_TYPE · ERR_UNSUPPORTED
 * @example
 * const folder = readAdapterFolder('./adapter');
 * const { method } = methodOfPeft(folder.config, 'model.layers.0.self_attn.q_proj'); // 'dora'
 */
export function methodOfPeft(
  config: Readonly<Record<string, unknown>>,
  module: string,
  methods: readonly AnyMethod[] = adapterMethods,
): AnyMethod {
  const own = 'methodOfPeft';
  checkObject(own, 'config', config);
  checkName(own, 'module', module);
  checkMethods(own, methods);
  const forms = methods.map((method) => ({ method, form: formOf(method) }));
  const fits = forms.filter(
    ({ form }) => form.type === config.peft_type && (form.when?.(config, module) ?? true),
  );
  // A form with a condition is the more specific one.
  const found = fits.find(({ form }) => form.when !== undefined) ?? fits[0];
  const other = kOtherFeatures.find(
    (name) =>
      found?.form.features?.includes(name) !== true &&
      ![undefined, null, false].includes(config[name] as null),
  );
  if (other !== undefined) {
    const of = found === undefined ? '' : ` of ${found.method.method}`;
    const instead = other === 'arrow_config' ? '; arrowFromPeft reads it' : '';
    const text = `adapterFromPeft: ${other}${of} must be null (it changes what the adapter computes${instead}), got a value`;
    throw new LowrankError('ERR_UNSUPPORTED', text, { op: 'adapterFromPeft' });
  }
  if (found !== undefined) return found.method;
  if (config.peft_type === kOwnType && typeof config.lowrank_method === 'string') {
    const name = config.lowrank_method;
    const given = methods === adapterMethods ? 'none' : methods.map((m) => m.method).join(', ');
    const expected = `an array with the method ${printableText(name)}, which is not the library's: give what defineAdapter returned`;
    fail('ERR_UNSUPPORTED', 'adapterFromPeft', 'methods', expected, given || 'none');
  }
  const same = forms.filter(({ form }) => form.type === config.peft_type);
  if (same.length > 0 && config.peft_type !== kOwnType) {
    const names = same.map(({ method }) => method.method).join(' or ');
    const expected = `of a form that ${names} supports`;
    fail(
      'ERR_UNSUPPORTED',
      'adapterFromPeft',
      `a ${config.peft_type} config`,
      expected,
      'another form',
    );
  }
  const known = [...new Set(forms.map(({ form }) => form.type))].sort().join(', ');
  const given = [config.peft_type, config.lowrank_method].filter((v) => v !== undefined);
  const got = given.map(printableValue).join(' ') || 'nothing';
  const text = `adapterFromPeft: peft_type must be one of ${known}, got ${got}`;
  throw new LowrankError('ERR_UNSUPPORTED', text, { op: 'adapterFromPeft' });
}

/** The names of an adapter's tensors in the file. They depend on its settings if the layer is of another kind. */
function namesOf(
  peft: PeftForm<object, string>,
  config: object,
): Readonly<Partial<Record<string, string>>> {
  return { ...peft.tensors, ...peft.otherNames?.(config) };
}

/**
 * The adapter of one module from a PEFT folder of any supported method. Frozen tensors that the
 * folder leaves out are drawn from PEFT's seed if the method supports it, otherwise from
 * `place.seed`, as {@link AdapterMethod.create} draws them. The latter throws if the config says that
 * the tensors were not saved.
 * @param module name in the base model, e.g. `model.layers.0.self_attn.q_proj`
 * @param place sizes, device and dtype, and for some methods the base weight
 * @param methods the candidates for the folder's method: add your own here; default those of the library
 * @throws ERR_TYPE · ERR_UNSUPPORTED for another method, an option that would change what it computes, or random tensors
 * that were not saved · ERR_FILE if a trained tensor is missing · ERR_SHAPE · ERR_VALUE if `layers` do not fit the
 * module, or are required and missing
 * @example
 * const adapter = adapterFromPeft({ config, tensors }, 'lin', { inFeatures: 64, outFeatures: 32 });
 */
export function adapterFromPeft(
  folder: PeftFolder,
  module: string,
  place: AdapterPlace,
  methods?: readonly AnyMethod[],
): Adapter {
  const op = 'adapterFromPeft';
  const tensorsOfFolder = PeftTensors.of(op, folder);
  checkName(op, 'module', module);
  checkObject(op, 'place', place, 'an object of inFeatures, outFeatures and more');
  if (methods !== undefined) checkMethods(op, methods);
  const method = methodOfPeft(folder.config, module, methods);
  const peft = formOf(method);
  const set = peft.zeros?.find((name) => Number(folder.config[name] ?? 0) !== 0);
  if (set !== undefined) {
    fail(
      'ERR_UNSUPPORTED',
      op,
      set,
      `0 (${method.method} has none)`,
      printableValue(folder.config[set]),
    );
  }
  const { trained, frozen = [], init } = method.definition;
  const stored = (key: string) => tensorsOfFolder.own(module, key);
  const shapeOf = (name: string) => stored(`${peft.tensors[name]}`)?.shape;
  const { inFeatures, outFeatures } = place;
  const layers = layersOf(op, folder.layers, module, place);
  const largest = folder.largest ?? (layers === undefined ? place : largestOf(layers));
  const modules = layers === undefined ? undefined : [...layers.keys()];
  const settings = peft.read(folder.config, module, shapeOf, { stored, inFeatures, outFeatures });
  const options = { ...place, ...settings };
  const make = method.maker(options);
  const names = namesOf(peft, make.config);
  const indexes: Record<string, Int32Array> = {};
  for (const [name, key] of Object.entries(peft.indexes ?? {})) {
    const kind = peft.kind?.(module);
    const raw =
      stored(key) ?? (kind === undefined ? undefined : tensorsOfFolder.shared(`${key}.${kind}`));
    if (raw !== undefined) indexes[name] = Int32Array.from(raw.data as ArrayLike<number>, Number);
  }
  return scope(() => {
    let fresh: Readonly<Partial<Record<string, Tensor>>> | undefined;
    let again: Regenerated<string> | undefined;
    const tensors: Record<string, Tensor> = {};
    const regenerated = (): Regenerated<string> => {
      again ??= peft.regenerate?.(folder.config, make, largest, tensors, { module, layers }) ?? {};
      return again;
    };
    for (const name of [...trained, ...frozen]) {
      if (make.shapes[name] === undefined) continue;
      const own = names[name];
      const shared =
        peft.sharedName?.(name, module, tensorsOfFolder.keys(), modules) ?? peft.shared?.[name];
      const keyOf = peft.stacks?.[name];
      const raw =
        (keyOf === undefined
          ? stored(`${own ?? shared}`)
          : stackOf(op, module, make.shapes[name], keyOf, tensorsOfFolder)) ??
        (shared === undefined ? undefined : tensorsOfFolder.shared(shared)) ??
        peft.unpack?.(name, folder.config, stored);
      if (raw !== undefined) {
        const shape = make.shapes[name] as readonly number[];
        const { device, dtype } = make;
        const values = partOf(op, name, raw, shape, (own ?? keyOf) === undefined);
        tensors[name] = Tensor.from(values, shape, { device, dtype });
        continue;
      }
      if (trained.includes(name) || peft.required?.includes(name)) {
        missing(op, module, `${own ?? keyOf?.(0) ?? shared}`);
      }
      const values = regenerated().tensors?.[name];
      if (values !== undefined) {
        const { device, dtype, shapes } = make;
        tensors[name] = Tensor.from(values, shapes[name] as readonly number[], { device, dtype });
        continue;
      }
      const unsaved = kStored.find((field) => folder.config[field] === false);
      if (unsaved !== undefined) {
        fail(
          'ERR_UNSUPPORTED',
          op,
          unsaved,
          `true (${name} of ${method.method} is not drawn again from a seed)`,
          'false',
        );
      }
      fresh ??= init(make);
      tensors[name] = fresh[name] as Tensor;
    }
    if (Object.keys(indexes).length === 0) Object.assign(indexes, regenerated().indexes);
    return method.from(tensors, options, Object.keys(indexes).length > 0 ? indexes : undefined);
  });
}

/**
 * Converts the adapters of one method to tensors under their PEFT names, and the fields of their
 * `adapter_config.json`. Methods that PEFT does not have are written in the same way under a
 * `peft_type` of this library. The `warnings` of the result say what PEFT would compute
 * differently.
 * @param adapters by module, in the order of the model: PEFT uses it to number what groups of layers
 * share
 * @throws ERR_TYPE · ERR_VALUE if there are no adapters, or several methods, or if tensors that the method
 * shares between layers differ (see {@link AdapterMethod.createAll}), or settings that PEFT stores only
 * once
 * @example
 * const folder = await adaptersToPeft(new Map([['model.layers.0.self_attn.q_proj', adapter]]));
 */
export async function adaptersToPeft(adapters: ReadonlyMap<string, Adapter>): Promise<PeftFolder> {
  const op = 'adaptersToPeft';
  checkAdapters(op, adapters);
  const methods = new Set([...adapters.values()].map(({ method }) => method));
  const [first] = adapters.values();
  if (first === undefined || methods.size !== 1) {
    fail('ERR_VALUE', op, 'adapters', 'of one method', [...methods].join(', ') || 'none');
  }
  const peft = formOf(first);
  const modules = [...adapters.keys()];
  const configs = [...adapters.values()].map(({ config }) => config);
  const fields = [...adapters.values()].map((own) => peft.write(own.config, modules, configs, own));
  const own = patternFields(op, peft.patterns ?? {}, modules, fields);
  const names = Object.values(peft.tensors) as string[];
  // If groups of layers share, each layer is considered separately.
  const groups = Object.values(peft.shared ?? {}).flatMap((name) =>
    modules.map((_, i) => `base_model.${String(name).replace(/\.0$/, '')}.${i}`),
  );
  const keys = [...modules.flatMap((m) => names.map((key) => `${kPrefix}${m}.${key}`)), ...groups];
  const tensors = new Map<string, RawTensor>();
  const parts = new SharedParts(op);
  const largest = largestOf(adapters);
  for (const [module, adapter] of adapters) {
    const { parameters, buffers, indexes, config, inFeatures: K, outFeatures: N } = adapter;
    const names = namesOf(peft, config);
    const shapes = peft.fileShapes?.({ N, K, config }) ?? {};
    for (const [name, tensor] of Object.entries({ ...parameters, ...buffers })) {
      const keyOf = peft.stacks?.[name];
      if (keyOf !== undefined) {
        unstacked(await rawOf(tensor)).forEach((raw, i) => {
          tensors.set(`${kPrefix}${module}.${keyOf(i)}`, raw);
        });
        continue;
      }
      const shared = peft.sharedName?.(name, module, keys, modules) ?? peft.shared?.[name];
      const own = names[name];
      const raw = await rawOf(tensor);
      if (own !== undefined) {
        tensors.set(`${kPrefix}${module}.${own}`, { ...raw, shape: shapes[name] ?? raw.shape });
      } else if (shared !== undefined) {
        const size = { N: largest.outFeatures, K: largest.inFeatures, config };
        // Shared by a group of layers, or by one kind of them, only.
        const whole = peft.sharedName ? raw.shape : first.definition.shapes(size)[name];
        tensors.set(
          `base_model.${shared}`,
          parts.put(`${shared}`, name, raw, whole as readonly number[], module),
        );
      }
    }
    const kind = peft.kind?.(module);
    const behind = kind === undefined ? '' : `.${kind}`;
    const before = kind === undefined ? `${kPrefix}${module}.` : 'base_model.';
    for (const [name, key] of Object.entries(peft.indexes ?? {})) {
      const data = indexes[name];
      if (data === undefined) continue;
      const shape = peft.indexShapes?.({ N, K, config })[name] ?? [data.length];
      const raw: RawTensor = { dtype: 'I32', shape, data: data.slice() };
      const full = `${before}${key}${behind}`;
      tensors.set(full, parts.put(full, name, raw, shape, module));
    }
    for (const [key, values] of Object.entries(peft.constants?.({ N, K, config }) ?? {})) {
      const data = BigInt64Array.from(values, BigInt);
      tensors.set(`${before}${key}${behind}`, { dtype: 'I64', shape: [data.length], data });
    }
  }
  const warnings = [...new Set(configs.flatMap((each) => peft.caveat?.(each) ?? []))];
  return { config: { peft_type: peft.type, target_modules: modules, ...own }, tensors, warnings };
}

/** A tensor in the form that files hold. */
export async function rawOf(tensor: Tensor): Promise<RawTensor> {
  const { dtype, shape } = tensor;
  if (dtype === 'f32') return { dtype: 'F32', shape, data: await tensor.read() };
  return { dtype: dtype === 'bf16' ? 'BF16' : 'F16', shape, data: await tensor.readBits() };
}
