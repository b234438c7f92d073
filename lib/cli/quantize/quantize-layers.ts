/**
 * The work of `lowrank quantize`: selects and quantises tensors of a file.
 */

import { writeQuantizedLayer } from '../../checkpoint/codecs/quantized-layers.js';
import { tensorName } from '../../checkpoint/codecs/registry.js';
import { planarToFloat32 } from '../../checkpoint/planar/decode.js';
import { quantizeLayer } from '../../checkpoint/quantize/quantize.js';
import { type RawTensor, rawToFloat32 } from '../../checkpoint/raw-tensor.js';
import type { SafetensorsFile } from '../../checkpoint/safetensors.js';
import { LowrankError } from '../../core/errors.js';
import { type StoredFormat, storedAs } from '../../core/formats.js';
import { printable } from '../../core/printable.js';
import { type DType, dequantize, quantize, Tensor } from '../../index.js';
import { isBitsandbytesLayout, planarOptions, type QuantizeSettings } from './settings.js';

export const kOp = 'quantize';

/** What quantising a layer changed. */
export interface LayerError {
  readonly name: string;
  /** Root mean square of the change, relative to that of the weight. */
  readonly error: number;
}

/** Sums over all files. */
export interface QuantizeTotals {
  layers: number;
  before_bytes: number;
  after_bytes: number;
}

export interface LayerQuantizer {
  readonly totals: QuantizeTotals;
  readonly errors: readonly LayerError[];
  /** The error of all layers together; 0 without any. */
  readonly error: number;
  /** Modules with matrices that stay as they are, by what {@link LayerQuantizer.expect} was told. */
  readonly left: readonly string[];
  /** Why no layer was quantised, in words; `undefined` if one was, including in a file finished earlier. */
  reason(): string | undefined;
  /** Tells which files follow. */
  expect(files: readonly SafetensorsFile[]): void;
  /** Counts a file that was finished earlier. */
  skip(file: SafetensorsFile): void;
  /**
   * The tensors of a file, with linear layers quantised.
   * @throws LowrankError `ERR_CANCELLED` after the signal
   */
  quantizeAll(file: SafetensorsFile): Promise<Map<string, RawTensor>>;
}

const kDTypes: Readonly<Record<string, DType>> = { F32: 'f32', BF16: 'bf16', F16: 'f16' };
const kWeight = '.weight';
/** Names of tensors of which a quantised layer has one. */
const kQuantised = /\.(weight\.absmax|SCB|qweight|W_q|weight_scale|weight_scale_inv)$|_scales$/;

/** Sums of squares, of which the errors are ratios. */
class ErrorSums {
  readonly layers: LayerError[] = [];
  #error = 0;
  #weight = 0;

  add(name: string, before: Float32Array, after: Float32Array): void {
    let [error, weight] = [0, 0];
    for (let i = 0; i < before.length; i++) {
      const value = before[i] as number;
      const off = (after[i] as number) - value;
      error += off * off;
      weight += value * value;
    }
    this.#error += error;
    this.#weight += weight;
    this.layers.push({ name, error: ratioOf(error, weight) });
  }

  get total(): number {
    return ratioOf(this.#error, this.#weight);
  }
}

const ratioOf = (error: number, weight: number): number =>
  error === 0 ? 0 : Math.sqrt(error / weight);

/** @param hooks progress per tensor, and the signal to stop at */
export function makeQuantizer(
  settings: QuantizeSettings,
  hooks: {
    readonly progress: (done: number, total: number, name: string) => void;
    readonly signal: AbortSignal;
  },
): LayerQuantizer {
  const totals: QuantizeTotals = { layers: 0, before_bytes: 0, after_bytes: 0 };
  const sums = new ErrorSums();
  let expected = 0;
  let done = 0;
  let doneBefore = false;
  let left: readonly string[] = [];
  const counts = { quantised: 0, skipped: 0 };
  const isSkipped = (name: string): boolean => settings.skip.some((part) => name.includes(part));
  return {
    totals,
    errors: sums.layers,
    get error() {
      return sums.total;
    },
    get left() {
      return left;
    },
    reason: () => (totals.layers > 0 || doneBefore ? undefined : reasonOf(counts, settings.skip)),
    expect(files) {
      expected = files.reduce((sum, file) => sum + file.names().length, 0);
      left = files.flatMap((file) =>
        file
          .names()
          .filter((name) => isMatrix(name, file.info(name)?.shape ?? []) && isSkipped(name))
          .map((name) => name.slice(0, -kWeight.length)),
      );
    },
    skip(file) {
      doneBefore = true;
      done += file.names().length;
    },
    async quantizeAll(file) {
      const tensors = new Map<string, RawTensor>();
      for (const name of file.names()) {
        hooks.progress(done, expected, name);
        await new Promise((resolve) => setImmediate(resolve));
        if (hooks.signal.aborted) throw new LowrankError('ERR_CANCELLED', `${kOp}: interrupted`);
        const tensor = file.read(name);
        const linear = isLinear(name, tensor);
        const skipped = isSkipped(name);
        if (kQuantised.test(name)) counts.quantised++;
        if (linear && skipped) counts.skipped++;
        if (!linear || skipped) tensors.set(name, tensor);
        else await quantizeInto(tensors, name, tensor, settings, { totals, sums });
        done++;
      }
      hooks.progress(done, expected, '');
      return tensors;
    },
  };
}

/** @param left how many layers are quantised already, and how many `skip` excludes */
function reasonOf(
  left: { readonly quantised: number; readonly skipped: number },
  skip: readonly string[],
): string {
  const are = (count: number, what: string) =>
    count === 0 ? [] : [`${count} ${count === 1 ? 'is' : 'are'} ${what}`];
  const parts = [
    ...are(left.quantised, 'quantised already'),
    ...are(left.skipped, `left out by --skip ${printable(skip.join(','))}`),
  ];
  return parts.join(', ') || 'none has a *.weight with two dimensions in f32, bf16 or f16';
}

const isMatrix = (name: string, shape: readonly number[]): boolean =>
  name.endsWith(kWeight) && shape.length === 2 && !shape.includes(0);

/** Is it the weight of a linear layer, in a dtype that is quantised? */
const isLinear = (name: string, { dtype, shape }: RawTensor): boolean =>
  isMatrix(name, shape) && Object.hasOwn(kDTypes, dtype);

/** The tensors of a quantised layer by what follows its name, and the values that they stand for. */
interface QuantizedTensors {
  readonly tensors: Readonly<Record<string, RawTensor>>;
  readonly values: Float32Array;
}

async function quantizeInto(
  tensors: Map<string, RawTensor>,
  name: string,
  tensor: RawTensor,
  settings: QuantizeSettings,
  { totals, sums }: { readonly totals: QuantizeTotals; readonly sums: ErrorSums },
): Promise<void> {
  try {
    const layer = isBitsandbytesLayout(settings.layout)
      ? await bitsandbytesLayer(tensor, settings)
      : planarLayer(tensor, settings);
    const module = name.slice(0, -kWeight.length);
    totals.layers++;
    totals.before_bytes += tensor.data.byteLength;
    for (const [suffix, part] of Object.entries(layer.tensors)) {
      totals.after_bytes += part.data.byteLength;
      tensors.set(tensorName(module, suffix), part);
    }
    sums.add(module, rawToFloat32(tensor), layer.values);
  } catch (error) {
    throw error instanceof LowrankError
      ? new LowrankError(error.code, `${printable(name)}: ${error.message}`, { cause: error })
      : error;
  }
}

function planarLayer(tensor: RawTensor, settings: QuantizeSettings): QuantizedTensors {
  // Scales of tiles are in f32, whatever the dtype of the model is.
  const source: RawTensor =
    settings.strategy === 'block'
      ? { dtype: 'F32', shape: tensor.shape, data: rawToFloat32(tensor) }
      : tensor;
  const layer = quantizeLayer(source, planarOptions(settings));
  return { tensors: writeQuantizedLayer(layer), values: planarToFloat32(layer.weight) };
}

async function bitsandbytesLayer(
  tensor: RawTensor,
  { format, blocksize, doubleQuant, device }: QuantizeSettings,
): Promise<QuantizedTensors> {
  const place = device === undefined ? {} : { device };
  // F32 is a Float32Array, BF16 and F16 are bits in a Uint16Array: as Tensor.from takes them.
  const values = tensor.data as Float32Array | Uint16Array;
  const dtype = kDTypes[tensor.dtype] as DType;
  using full = Tensor.from(values, tensor.shape, { dtype, ...place });
  using weight = quantize(full, {
    ...storedAs(format as StoredFormat),
    doubleQuant,
    ...(blocksize === undefined ? {} : { blocksize }),
  });
  const tensors = await weight.toBitsandbytes();
  using decoded = dequantize(weight, { dtype: 'f32' });
  return { tensors, values: await decoded.read() };
}
