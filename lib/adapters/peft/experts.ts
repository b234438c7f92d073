import { type RawTensor, rawToFloat32 } from '../../checkpoint/raw-tensor.js';
import { resolveDevice } from '../../core/device.js';
import { checkDType } from '../../core/dtype.js';
import { fail } from '../../core/errors.js';
import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import { checkInteger, readOptions, showShape } from '../../core/validate.js';
import type { Adapter } from '../definition/adapter.js';
import type { AdapterPlace } from '../definition/method.js';
import { lora } from '../methods/low-rank/lora.js';
import { readAlpha } from '../parts/scaling.js';
import { methodOfPeft } from './peft.js';
import { missing, type PeftFolder, PeftTensors } from './peft-tensors.js';

const kOp = 'expertsFromPeft';

/** Where {@link expertsFromPeft} finds its experts. */
export interface ExpertsPlace extends Pick<AdapterPlace, 'device' | 'dtype'> {
  /** K, of one expert. */
  inFeatures: number;
  /** N, of one expert. */
  outFeatures: number;
  /** Name of the parameter (`gate_up_proj`). Patterns of ranks and alphas may end in it. */
  parameter?: string;
  /**
   * Does lora_A read the outputs, and lora_B the inputs? PEFT's versions differ in which dimension of a parameter
   * [E, a, b] is the input. Default: what the shapes say, and false if both would fit.
   */
  transposed?: boolean;
  /** Which of the module's parameters: 0 is the outermost in the file; default the one whose shapes fit. */
  level?: number;
}

interface Pair {
  readonly level: number;
  readonly a: RawTensor;
  readonly b: RawTensor;
  readonly transposed: boolean;
}

/**
 * The LoRA adapters of a module whose experts' weights are one parameter [E, ..., ...], from a PEFT folder that
 * targets it by `target_parameters`: one adapter per expert, over its own weight w [N, K]. In the file lora_A
 * is [r · E, K], expert by expert, and lora_B [N, E · r], rank by rank. If a module has two parameters, the
 * second is under `base_layer` in the file; the shapes tell them apart.
 * @param module e.g. `model.layers.0.mlp.experts`
 * @returns the adapters in the order of the experts
 * @throws ERR_FILE if there are no such tensors · ERR_SHAPE if they fit no parameter of these sizes · ERR_VALUE if several fit and
 * no `level` is given · ERR_UNSUPPORTED for a method other than plain LoRA, which PEFT does not support here · ERR_TYPE, ERR_DEVICE,
 * ERR_OOM
 * @example
 * const experts = expertsFromPeft(folder, 'model.layers.0.mlp.experts', { inFeatures, outFeatures });
 * const { y } = (experts[3] as Adapter).forward(x, weights[3]);
 */
export function expertsFromPeft(
  folder: PeftFolder,
  module: string,
  place: ExpertsPlace,
): Adapter[] {
  const given = readOptions(kOp, place, {
    inFeatures: true,
    outFeatures: true,
    parameter: true,
    transposed: true,
    level: true,
    device: true,
    dtype: true,
  }) as ExpertsPlace;
  const K = checkInteger(kOp, 'inFeatures', given.inFeatures, 1, 2 ** 31);
  const N = checkInteger(kOp, 'outFeatures', given.outFeatures, 1, 2 ** 31);
  const tensors = PeftTensors.of(kOp, folder);
  const { method } = methodOfPeft(folder.config, module);
  if (method !== 'lora') fail('ERR_UNSUPPORTED', kOp, 'the method', 'lora', method);
  const biased = folder.config.lora_bias ?? false;
  if (biased !== false) fail('ERR_UNSUPPORTED', kOp, 'lora_bias', 'false', String(biased));
  const name = given.parameter === undefined ? module : `${module}.${given.parameter}`;
  const settings = readAlpha(folder.config, name);
  const { r, dropout } = settings;
  if (dropout !== 0) fail('ERR_UNSUPPORTED', kOp, 'lora_dropout', '0', String(dropout));
  const { a, b, transposed } = pairOf(tensors, module, { ...given, N, K, r });
  const E = (a.shape[0] as number) / r;
  const [wide, tall] = [rawToFloat32(a), rawToFloat32(b)];
  const [aCols, bRows] = [a.shape[1] as number, b.shape[0] as number];
  const device = resolveDevice(kOp, given.device);
  const dtype = checkDType(kOp, 'dtype', given.dtype ?? 'f32');
  return scope(() =>
    Array.from({ length: E }, (_, e) => {
      // Row k of lora_A and column k of lora_B of this expert.
      const rows = wide.slice(e * r * aCols, (e + 1) * r * aCols);
      const columns = new Float32Array(bRows * r);
      for (let n = 0; n < bRows; n++)
        for (let k = 0; k < r; k++) columns[n * r + k] = tall[(n * r + k) * E + e] as number;
      const [loraA, loraB] = transposed
        ? [turned(columns, bRows, r), turned(rows, r, aCols)]
        : [rows, columns];
      return lora.from(
        {
          loraA: Tensor.from(loraA, [r, K], { device, dtype }),
          loraB: Tensor.from(loraB, [N, r], { device, dtype }),
        },
        { inFeatures: K, outFeatures: N, device, dtype, ...settings },
      ) as Adapter;
    }),
  );
}

/** Transposes [rows, cols] to [cols, rows]. */
function turned(values: Float32Array, rows: number, cols: number): Float32Array {
  return Float32Array.from(
    values,
    (_, i) => values[(i % rows) * cols + Math.floor(i / rows)] as number,
  );
}

/** The factors under the module's name, or under a `base_layer` after it, that fit a parameter of these sizes. */
function pairOf(
  tensors: PeftTensors,
  module: string,
  { N, K, r, transposed: asked, level: only }: ExpertsPlace & { N: number; K: number; r: number },
): Pair {
  const found: Pair[] = [];
  let seen = '';
  for (let level = 0; ; level++) {
    const key = module + '.base_layer'.repeat(level);
    const [a, b] = [tensors.own(key, 'lora_A.weight'), tensors.own(key, 'lora_B.weight')];
    if (a === undefined && b === undefined) break;
    if (a === undefined || b === undefined) {
      missing(kOp, key, a === undefined ? 'lora_A.weight' : 'lora_B.weight');
    }
    seen += `${seen === '' ? '' : ', '}lora_A ${showShape(a.shape)}, lora_B ${showShape(b.shape)}`;
    const [height = 0, inner = 0] = a.shape;
    const [outer = 0, width = 0] = b.shape;
    const matrices = a.shape.length === 2 && b.shape.length === 2;
    if (!matrices || height !== width || height === 0 || height % r !== 0) continue;
    const direct = inner === K && outer === N;
    const swapped = inner === N && outer === K;
    const transposed = asked ?? !direct;
    if (!(transposed ? swapped : direct) || level !== (only ?? level)) continue;
    found.push({ level, a, b, transposed });
  }
  if (seen === '') missing(kOp, module, 'lora_A.weight');
  const [first, second] = found;
  if (first === undefined) {
    const expected = `of experts of rank ${r} with K = ${K} and N = ${N}`;
    fail('ERR_SHAPE', kOp, module, expected, seen);
  }
  if (second !== undefined) {
    const expected = `given if several parameters have K = ${K} and N = ${N}`;
    fail('ERR_VALUE', kOp, 'level', expected, `none of ${first.level} and ${second.level}`);
  }
  return first;
}
