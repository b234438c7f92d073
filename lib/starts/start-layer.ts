import type { Adapter } from '../adapters/definition/adapter.js';
import { isMethod } from '../adapters/definition/load-method.js';
import type { AnyMethod } from '../adapters/definition/method.js';
import { lora } from '../adapters/methods/low-rank/lora.js';
import { checkShape, checkTensor } from '../core/check-tensor.js';
import { fail, wrongType } from '../core/errors.js';
import { scope } from '../core/scope.js';
import { settingsOver } from '../core/settings.js';
import type { Tensor } from '../core/tensor.js';
import { checkInteger, ownFields } from '../core/validate.js';
import { type BaseFormat, storeTensor } from '../model/base-format.js';
import { type BaseWeight, checkWeight } from '../ops/base-weight.js';
import { buildLayer, type StartPlan } from './build.js';
import { type AnyStart, isStart, type LayerInputs } from './definition/definition.js';
import { startNamed } from './start-methods.js';

const kOp = 'startLayer';

/** Options of {@link startLayer}: the start, what it needs to know, and settings of the start and of the method. */
export interface StartLayerOptions {
  /** A start's name, `pissa`, or what {@link defineStart} returned. */
  readonly start: string | AnyStart;
  /** A method that the start fits; default {@link adapters.lora}. */
  readonly method?: AnyMethod;
  /** How the base is stored: a format, or a function of the library's or one's own; default dense in f32. */
  readonly format?: BaseFormat | ((w: Tensor) => BaseWeight);
  /** Default 0. */
  readonly seed?: number;
  /** For a start from inputs: {@link InputSums}. */
  readonly inputs?: LayerInputs;
  /** [N, K] for a start from a gradient: that of the loss by w. */
  readonly dw?: Tensor;
  /** Name of the layer; default `layer`. */
  readonly module?: string;
  /** Settings, by name: those of the start, and those of the method (`r`, `loraAlpha`, ...). */
  readonly [setting: string]: unknown;
}

/**
 * Checks that a start and a method belong together.
 * @throws ERR_UNSUPPORTED
 */
export function requireMethod(op: string, start: AnyStart, method: string): void {
  const fits = start.adapters ?? ['lora'];
  if (fits.includes(method)) return;
  const expected = `one of ${fits.join(', ')}, which ${start.start} starts`;
  fail('ERR_UNSUPPORTED', op, 'the adapter', expected, method);
}

/**
 * Splits settings into those of a start and those of a method. A name that both have is the start's.
 * @throws ERR_TYPE · ERR_VALUE
 */
export function planOf(
  op: string,
  start: AnyStart,
  method: AnyMethod,
  given: Readonly<Record<string, unknown>>,
): StartPlan {
  const own: Record<string, unknown> = {};
  const config: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(given)) {
    if (Object.hasOwn(method.definition.defaults as object, name) && !(name in start.defaults)) {
      config[name] = value;
    } else own[name] = value;
  }
  const known = Object.keys(method.definition.defaults as object);
  const settings = settingsOver(op, start.start, start, own, known);
  return { start, settings, method, config };
}

/**
 * Starts the adapter of one layer: `const { adapter, weight } = startLayer(w, { start: 'pissa', r: 8, format: { format: 'nf4' } })`.
 * The layer is then `adapter.forward(x, weight)`. The starts, what they need and their settings are in docs/training/starts.md.
 * @param w [N, K] dense, before quantising
 * @returns the adapter, and the base as it is stored: quantised, and what the start left of it. Both are the caller's
 * @throws ERR_VALUE for a start without what it needs, a rank above the sides of w, other settings · ERR_UNSUPPORTED for a method
 * that the start does not fit · ERR_TYPE · ERR_SHAPE · ERR_NON_FINITE · ERR_DISPOSED · ERR_OOM
 * @example
 * const inputs = new InputSums(K);
 * for (const x of batches) inputs.add(x);
 * const { adapter, weight } = startLayer(w, { start: 'qera', r: 16, inputs, format: { format: 'nf4' } });
 */
export function startLayer(
  w: Tensor,
  options: StartLayerOptions,
): { readonly adapter: Adapter; readonly weight: BaseWeight } {
  checkTensor(kOp, 'w', w);
  const { N, K } = checkWeight(kOp, w);
  const { device } = w;
  const {
    start: named,
    method = lora,
    format = { format: 'none' },
    seed = 0,
    inputs,
    dw,
    module = 'layer',
    ...given
  } = ownFields<StartLayerOptions>(kOp, options) as StartLayerOptions;
  if (typeof named !== 'string' && !isStart(named)) {
    throw wrongType(kOp, 'start', 'the name of a start, or what defineStart returns', named);
  }
  if (!isMethod(method)) throw wrongType(kOp, 'method', 'what defineAdapter returns', method);
  if (typeof module !== 'string') throw wrongType(kOp, 'module', 'a string', module);
  const start = typeof named === 'string' ? startNamed(kOp, 'start', named) : named;
  if (start.from === 'model') {
    const expected = 'one of a single layer (a Starter or lowrank finetune starts whole models)';
    fail('ERR_UNSUPPORTED', kOp, 'start', expected, start.start);
  }
  requireMethod(kOp, start, method.method);
  const plan = planOf(kOp, start, method, given);
  method.makers([{ inFeatures: K, outFeatures: N, ...plan.config, device, weight: w }]);
  checkKnown(start, K, inputs);
  if (start.from === 'gradient') {
    if (dw === undefined) fail('ERR_VALUE', kOp, 'dw', `given (${start.start} needs it)`, 'none');
    checkShape(kOp, 'dw', checkTensor(kOp, 'dw', dw), [N, K]);
  }
  const quantised = typeof format === 'function' || format.format !== 'none';
  if (start.quantises === true && !quantised) {
    fail('ERR_VALUE', kOp, 'format', `a quantised one (${start.start} needs it)`, 'none');
  }
  const quantise =
    typeof format === 'function'
      ? format
      : (t: Tensor): BaseWeight => (format.format === 'none' ? t.to({}) : storeTensor(t, format));
  return scope(() => {
    const dense = w.to({ dtype: 'f32' });
    const known = {
      ...(inputs === undefined ? {} : { inputs }),
      ...(dw === undefined ? {} : { dw }),
    };
    const layer = { module, N, K, device, w: dense, ...known, quantise };
    const { adapter, base } = buildLayer(
      plan,
      layer,
      checkInteger(kOp, 'seed', seed, 0, Number.MAX_SAFE_INTEGER),
    );
    return { adapter, weight: base ?? quantise(dense) };
  });
}

function checkKnown(start: AnyStart, K: number, inputs: LayerInputs | undefined): void {
  if (start.from !== 'inputs') return;
  if (inputs === undefined) {
    fail(
      'ERR_VALUE',
      kOp,
      'inputs',
      `given (${start.start} needs sums of the layer's inputs)`,
      'none',
    );
  }
  if (inputs.gram?.length !== K * K || inputs.sum?.length !== K) {
    const expected = `sums of ${K} features`;
    fail('ERR_SHAPE', kOp, 'inputs', expected, `gram of ${inputs.gram?.length} values`);
  }
  if (!(inputs.rows > 0)) fail('ERR_VALUE', kOp, 'inputs', 'of at least one row', `${inputs.rows}`);
}
