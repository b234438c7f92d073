import { type RawTensor, rawToFloat32 } from '../checkpoint/raw-tensor.js';
import { fail, LowrankError } from '../core/errors.js';
import { scope } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import { showShape } from '../core/validate.js';
import type { Adapter } from './adapter.js';
import type { AdapterPlace } from './method.js';
import { type AnyMethod, adapterMethods } from './methods.js';

/** An adapter folder's contents: its config as JSON, its tensors by their names in the file. */
export interface PeftFolder {
  readonly config: Readonly<Record<string, unknown>>;
  readonly tensors: ReadonlyMap<string, RawTensor>;
}

const kPrefix = 'base_model.model.';

/**
 * The method of a PEFT config: its `peft_type`, and the flags that tell apart what shares one.
 * @throws ERR_UNSUPPORTED
 */
export function methodOfPeft(config: Readonly<Record<string, unknown>>): AnyMethod {
  const ofType = adapterMethods.filter(
    ({ definition: { peft } }) => peft?.type === config.peft_type,
  );
  const [method] = ofType
    .filter(({ definition: { peft } }) => peft?.when?.(config) ?? true)
    .sort(
      (a, b) =>
        Number(b.definition.peft?.when !== undefined) -
        Number(a.definition.peft?.when !== undefined),
    );
  if (method !== undefined) return method;
  const known = [
    ...new Set(adapterMethods.flatMap(({ definition: { peft } }) => peft?.type ?? [])),
  ];
  throw new LowrankError(
    'ERR_UNSUPPORTED',
    `adapterFromPeft: peft_type must be one of ${known.sort().join(', ')}, got ${String(config.peft_type)}`,
    { op: 'adapterFromPeft' },
  );
}

/**
 * The values of a tensor in the file; of one that all layers share, the leading part that this layer
 * uses.
 */
function partOf(
  op: string,
  name: string,
  raw: RawTensor,
  shape: readonly number[],
  shared: boolean,
): Float32Array {
  const values = rawToFloat32(raw);
  const fits = (dim: number, i: number) =>
    shared ? dim <= (raw.shape[i] ?? 0) : dim === raw.shape[i];
  if (raw.shape.length !== shape.length || !shape.every(fits)) {
    const expected = `of shape ${showShape(shape)}${shared ? ' or larger' : ''}`;
    fail('ERR_SHAPE', op, name, expected, showShape(raw.shape));
  }
  const out = new Float32Array(shape.reduce((product, dim) => product * dim, 1));
  for (let i = 0; i < out.length; i++) {
    let rest = i;
    let at = 0;
    let stride = 1;
    for (let d = shape.length - 1; d >= 0; d--) {
      const dim = shape[d] as number;
      at += (rest % dim) * stride;
      rest = Math.floor(rest / dim);
      stride *= raw.shape[d] as number;
    }
    out[i] = values[at] as number;
  }
  return out;
}

/**
 * The adapter of one module from a PEFT folder of any supported method. Frozen tensors that the
 * folder leaves out are drawn from `place.seed`, as {@link AdapterMethod.create} draws them.
 * @param module name in the base model, e.g. `model.layers.0.self_attn.q_proj`
 * @param place sizes, device and dtype, and for some methods the base weight
 * @throws ERR_UNSUPPORTED another method · ERR_FILE a trained tensor is missing · ERR_SHAPE
 * @example
 * const adapter = adapterFromPeft({ config, tensors }, 'lin', { inFeatures: 64, outFeatures: 32 });
 */
export function adapterFromPeft(folder: PeftFolder, module: string, place: AdapterPlace): Adapter {
  const op = 'adapterFromPeft';
  const method = methodOfPeft(folder.config);
  const { peft, trained, frozen = [], init } = method.definition;
  if (peft === undefined) throw new TypeError(`${method.method} has no PEFT form`);
  const options = { ...place, ...peft.read(folder.config, module) };
  const make = method.maker(options);
  const indexes: Record<string, Int32Array> = {};
  for (const [name, key] of Object.entries(peft.indexes ?? {})) {
    const raw = folder.tensors.get(`${kPrefix}${module}.${key}`);
    if (raw !== undefined) indexes[name] = Int32Array.from(raw.data as ArrayLike<number>, Number);
  }
  return scope(() => {
    let fresh: Readonly<Record<string, Tensor>> | undefined;
    const tensors: Record<string, Tensor> = {};
    for (const name of [...trained, ...frozen]) {
      const own = peft.tensors[name];
      const shared =
        peft.sharedName?.(name, module, [...folder.tensors.keys()]) ?? peft.shared?.[name];
      const raw =
        folder.tensors.get(`${kPrefix}${module}.${own ?? shared}`) ??
        folder.tensors.get(`base_model.${shared}`);
      if (raw !== undefined) {
        const shape = make.shapes[name] as readonly number[];
        const { device, dtype } = make;
        const values = partOf(op, name, raw, shape, own === undefined);
        tensors[name] = Tensor.from(values, shape, { device, dtype });
        continue;
      }
      if (trained.includes(name)) {
        const text = `${op}: ${module} must have the tensor ${own ?? shared}, got none of that name`;
        throw new LowrankError('ERR_FILE', text, { op });
      }
      fresh ??= init(make);
      tensors[name] = fresh[name] as Tensor;
    }
    return method.from(tensors, options, Object.keys(indexes).length > 0 ? indexes : undefined);
  });
}

/**
 * The tensors of an adapter under their PEFT names, and the fields of its `adapter_config.json`.
 * Write them with {@link encodeSafetensors}.
 * @throws ERR_UNSUPPORTED where PEFT has no such method
 */
export async function adapterToPeft(adapter: Adapter, module: string): Promise<PeftFolder> {
  const { peft } = adapter.definition;
  if (peft === undefined) {
    fail('ERR_UNSUPPORTED', 'adapterToPeft', 'the method', 'one that PEFT has', adapter.method);
  }
  const tensors = new Map<string, RawTensor>();
  const all = { ...adapter.parameters, ...adapter.buffers };
  for (const [name, tensor] of Object.entries(all)) {
    const own = peft.tensors[name];
    const shared = peft.shared?.[name];
    const key = own !== undefined ? `${kPrefix}${module}.${own}` : `base_model.${shared}`;
    if (own === undefined && shared === undefined) continue;
    const { dtype, shape } = tensor;
    tensors.set(
      key,
      dtype === 'f32'
        ? { dtype: 'F32', shape, data: await tensor.read() }
        : { dtype: dtype === 'bf16' ? 'BF16' : 'F16', shape, data: await tensor.readBits() },
    );
  }
  for (const [name, key] of Object.entries(peft.indexes ?? {})) {
    const table = adapter.indexes[name];
    if (table === undefined) continue;
    tensors.set(`${kPrefix}${module}.${key}`, { dtype: 'I32', shape: [table.length], data: table });
  }
  const config = { peft_type: peft.type, target_modules: [module], ...peft.write(adapter.config) };
  return { config, tensors };
}
