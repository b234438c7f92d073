import { checkObject } from '../../checkpoint/arguments.js';
import type { RawTensor } from '../../checkpoint/raw-tensor.js';
import { fail, wrongType } from '../../core/errors.js';
import type { Tensor } from '../../core/tensor.js';
import { ownFields } from '../../core/validate.js';
import type { Adapter } from '../definition/adapter.js';
import { checkAdapters, checkMethodAdapter } from '../definition/adapter-map.js';
import { kPrefix } from '../definition/peft-form.js';
import { type AlphaConfig, alphaFields, kAlphaPatterns, patternFields } from '../parts/scaling.js';
import { adaptersToPeft, rawOf } from './peft.js';
import type { PeftFolder } from './peft-tensors.js';

const kOp = 'expertsToPeft';

/** The experts of one parameter [E, ..., ...], as {@link expertsFromPeft} returns them. */
export interface ExpertsParameter {
  /** Its name in the module: `gate_up_proj`. */
  parameter: string;
  /** LoRA adapters with the same size, rank, alpha and dtype, in the order of the experts. */
  experts: readonly Adapter[];
  /** Does lora_A read the outputs, and lora_B the inputs? Default false. See {@link ExpertsPlace.transposed}. */
  transposed?: boolean;
}

/** Typed arrays of the dtypes that adapters have. */
type Values = Float32Array | Uint16Array;

/** Transposes [rows, cols] to [cols, rows]. */
function turned(values: Values, rows: number, cols: number): Values {
  return values.map((_, i) => values[(i % rows) * cols + Math.floor(i / rows)] as number);
}

/** The properties that all experts must share with the first, in words. */
function describe({ method, config, inFeatures: K, outFeatures: N, parameters }: Adapter): string {
  const { r, loraAlpha, rslora } = config as AlphaConfig;
  const scaled = rslora ? 'loraAlpha over sqrt(r)' : 'loraAlpha';
  return `${method} of K = ${K}, N = ${N}, r = ${r}, ${scaled} = ${loraAlpha}, ${parameters.loraA?.dtype}`;
}

/** @throws ERR_TYPE · ERR_VALUE · ERR_UNSUPPORTED */
function checkExperts(name: string, experts: unknown): readonly [Adapter, ...Adapter[]] {
  if (!Array.isArray(experts)) throw wrongType(kOp, `${name}.experts`, 'an array', experts);
  if (experts.length === 0) fail('ERR_VALUE', kOp, `${name}.experts`, 'at least one', 'none');
  const all = experts as unknown as readonly [Adapter, ...Adapter[]];
  const [first] = all;
  all.forEach((expert, e) => {
    const place = `${name}.experts[${e}]`;
    checkMethodAdapter(kOp, place, expert);
    if (expert.method !== 'lora') {
      fail('ERR_UNSUPPORTED', kOp, place, 'an adapter of lora', expert.method);
    }
    const { kernel, embedding, loraBias, dropout } = expert.config as unknown as {
      readonly kernel: readonly number[];
      readonly embedding: boolean;
      readonly loraBias: boolean;
      readonly dropout: number;
    };
    if (kernel.length > 0 || embedding || loraBias || dropout !== 0) {
      const expected =
        'of a linear layer, without dropout and loraBias (PEFT supports neither here)';
      const got = `kernel [${kernel}], embedding ${embedding}, dropout ${dropout}, loraBias ${loraBias}`;
      fail('ERR_UNSUPPORTED', kOp, place, expected, got);
    }
    const [expected, got] = [describe(first), describe(expert)];
    if (got !== expected) fail('ERR_VALUE', kOp, place, `like experts[0] (${expected})`, got);
  });
  return all;
}

/** lora_A [r · E, i], expert by expert, and lora_B [o, r · E], rank by rank, with the experts' bits. */
async function stacked(
  experts: readonly [Adapter, ...Adapter[]],
  transposed: boolean,
): Promise<{ readonly loraA: RawTensor; readonly loraB: RawTensor }> {
  const [first] = experts;
  const { r } = first.config as AlphaConfig;
  const [K, N, E] = [first.inFeatures, first.outFeatures, experts.length];
  const raws = await Promise.all(
    experts.map(async ({ parameters }) => {
      const [a, b] = [parameters.loraA as Tensor, parameters.loraB as Tensor];
      return [await rawOf(a), await rawOf(b)] as const;
    }),
  );
  const [inner, outer] = transposed ? [N, K] : [K, N];
  const empty = (size: number): Values => {
    const like = raws[0]?.[0].data as Values;
    return like instanceof Float32Array ? new Float32Array(size) : new Uint16Array(size);
  };
  const [wide, tall] = [empty(E * r * inner), empty(outer * r * E)];
  raws.forEach(([a, b], e) => {
    const [rows, columns] = transposed
      ? [turned(b.data as Values, N, r), turned(a.data as Values, r, K)]
      : [a.data as Values, b.data as Values];
    wide.set(rows, e * r * inner);
    columns.forEach((value, i) => {
      tall[i * E + e] = value;
    });
  });
  const { dtype } = (raws[0] as (typeof raws)[number])[0];
  return {
    loraA: { dtype, shape: [E * r, inner], data: wide } as RawTensor,
    loraB: { dtype, shape: [outer, r * E], data: tall } as RawTensor,
  };
}

/**
 * A PEFT folder for experts whose weights are one parameter, which PEFT targets by `target_parameters`: what
 * {@link expertsFromPeft} reads, with the same bits in the same places. {@link writeAdapterFolder} writes it.
 * @param modules by module name, the adapted parameters in the order of {@link ExpertsPlace.level}. PEFT wraps them in the order
 * in which the module registers them, so the module's last parameter is level 0, and first here
 * @param adapters LoRA of other modules in the same folder, by their names: attention next to experts
 * @throws ERR_VALUE if there are none, for experts that differ in size, rank, alpha or dtype, a parameter or a module given twice,
 * or dropout of the other modules (PEFT's experts have none, and a folder has one value) · ERR_UNSUPPORTED for a method other than
 * plain LoRA of linear layers · ERR_TYPE, ERR_DISPOSED
 * @example
 * const folder = await expertsToPeft(new Map([['model.layers.0.mlp.experts', [{ parameter: 'down_proj', experts }]]]));
 * await writeAdapterFolder('./adapter', folder);
 */
export async function expertsToPeft(
  modules: ReadonlyMap<string, readonly ExpertsParameter[]>,
  adapters: ReadonlyMap<string, Adapter> = new Map(),
): Promise<PeftFolder> {
  if (!(modules instanceof Map)) throw wrongType(kOp, 'modules', 'a Map', modules);
  if (modules.size === 0) fail('ERR_VALUE', kOp, 'modules', 'at least one', 'none');
  checkAdapters(kOp, adapters);
  const rest: PeftFolder | undefined = adapters.size === 0 ? undefined : await others(adapters);
  const tensors = new Map<string, RawTensor>(rest?.tensors);
  const names: string[] = [];
  const configs: AlphaConfig[] = [];
  for (const [module, parameters] of modules) {
    if (!Array.isArray(parameters)) throw wrongType(kOp, module, 'an array', parameters);
    if (adapters.has(module)) fail('ERR_VALUE', kOp, 'adapters', 'other modules', module);
    for (const [level, own] of parameters.entries()) {
      const entry = `${module}[${level}]`;
      checkObject(kOp, entry, own, 'an object of parameter and experts');
      const { parameter, experts, transposed = false } = ownFields(kOp, own) as ExpertsParameter;
      if (typeof parameter !== 'string') {
        throw wrongType(kOp, `${entry}.parameter`, 'a string', parameter);
      }
      const name = `${module}.${parameter}`;
      if (names.includes(name)) fail('ERR_VALUE', kOp, 'parameter', 'named once', `${name} twice`);
      const all = checkExperts(name, experts);
      names.push(name);
      configs.push(all[0].config as AlphaConfig);
      const { loraA, loraB } = await stacked(all, transposed);
      const key = `${kPrefix}${module}${'.base_layer'.repeat(level)}`;
      tensors.set(`${key}.lora_A.weight`, loraA);
      tensors.set(`${key}.lora_B.weight`, loraB);
    }
  }
  if (names.length === 0) fail('ERR_VALUE', kOp, 'modules', 'at least one parameter', 'none');
  const layers = [...adapters.keys()];
  for (const { config } of adapters.values()) configs.push(config as unknown as AlphaConfig);
  const fields = patternFields(
    kOp,
    kAlphaPatterns,
    [...names, ...layers],
    configs.map((config) => alphaFields(config)),
  );
  const config = {
    ...rest?.config,
    peft_type: 'LORA',
    target_modules: layers,
    target_parameters: names,
    ...fields,
  };
  return { config, tensors };
}

/** The part of the folder for the other modules. */
async function others(adapters: ReadonlyMap<string, Adapter>): Promise<PeftFolder> {
  for (const [module, { method, config }] of adapters) {
    const { dropout, loraBias } = config as {
      readonly dropout: number;
      readonly loraBias: boolean;
    };
    if (method !== 'lora') {
      fail('ERR_UNSUPPORTED', kOp, module, 'an adapter of lora', method);
    }
    if (dropout !== 0 || loraBias) {
      const expected = 'without dropout and loraBias (the experts of PEFT support neither)';
      fail('ERR_VALUE', kOp, module, expected, `dropout ${dropout}, loraBias ${loraBias}`);
    }
  }
  return adaptersToPeft(adapters);
}
