/**
 * The work of `lowrank quantize`: selects and quantises tensors of a file.
 */

import type { RawTensor } from '../../checkpoint/raw-tensor.js';
import type { SafetensorsFile } from '../../checkpoint/safetensors.js';
import { LowrankError } from '../../core/errors.js';
import { type StoredFormat, storedAs } from '../../core/formats.js';
import { printable } from '../../core/printable.js';
import { type Device, type DType, quantize, Tensor } from '../../index.js';

/** Settings for quantising a checkpoint. */
export interface QuantizeSettings {
  readonly format: StoredFormat;
  readonly blocksize?: number;
  readonly doubleQuant: boolean;
  /** Tensors whose names contain one of these stay unchanged. */
  readonly skip: readonly string[];
  readonly device?: Device;
}

/** Sums over all files. */
export interface QuantizeTotals {
  layers: number;
  before_bytes: number;
  after_bytes: number;
}

export interface LayerQuantizer {
  readonly totals: QuantizeTotals;
  /** Why no layer was quantised, in words; `undefined` if one was, including in a file finished earlier. */
  reason(): string | undefined;
  /** Sets the total number of tensors, for the progress. */
  expect(tensors: number): void;
  /** Counts a file that was finished earlier. */
  skip(file: SafetensorsFile): void;
  /**
   * The tensors of a file, with linear layers quantised.
   * @throws LowrankError `ERR_CANCELLED` after the signal
   */
  quantizeAll(file: SafetensorsFile): Promise<Map<string, RawTensor>>;
}

const kDTypes: Readonly<Record<string, DType>> = { F32: 'f32', BF16: 'bf16', F16: 'f16' };

/** @param hooks progress per tensor, and the signal to stop at */
export function makeQuantizer(
  op: string,
  settings: QuantizeSettings,
  hooks: {
    readonly progress: (done: number, total: number, name: string) => void;
    readonly signal: AbortSignal;
  },
): LayerQuantizer {
  const totals: QuantizeTotals = { layers: 0, before_bytes: 0, after_bytes: 0 };
  let expected = 0;
  let done = 0;
  let doneBefore = false;
  const left = { quantised: 0, skipped: 0 };
  return {
    totals,
    reason: () => (totals.layers > 0 || doneBefore ? undefined : reasonOf(left, settings.skip)),
    expect(tensors) {
      expected = tensors;
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
        if (hooks.signal.aborted) throw new LowrankError('ERR_CANCELLED', `${op}: interrupted`);
        const tensor = file.read(name);
        const dtype = linearDType(name, tensor);
        const skipped = settings.skip.some((part) => name.includes(part));
        if (/\.(weight\.absmax|SCB)$/.test(name)) left.quantised++;
        if (dtype !== undefined && skipped) left.skipped++;
        if (dtype === undefined || skipped) tensors.set(name, tensor);
        else await quantizeInto(tensors, name, tensor, dtype, settings, totals);
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

/** The dtype of a linear layer's weight, or `undefined` for anything else. */
function linearDType(name: string, { dtype, shape }: RawTensor): DType | undefined {
  const linear = name.endsWith('.weight') && shape.length === 2 && !shape.includes(0);
  if (!linear) return undefined;
  return Object.hasOwn(kDTypes, dtype) ? kDTypes[dtype] : undefined;
}

async function quantizeInto(
  tensors: Map<string, RawTensor>,
  name: string,
  tensor: RawTensor,
  dtype: DType,
  { format, blocksize, doubleQuant, device }: QuantizeSettings,
  totals: QuantizeTotals,
): Promise<void> {
  const place = device === undefined ? {} : { device };
  // F32 is a Float32Array, BF16 and F16 are bits in a Uint16Array: as Tensor.from takes them.
  const values = tensor.data as Float32Array | Uint16Array;
  const full = Tensor.from(values, tensor.shape, { dtype, ...place });
  const options = {
    ...storedAs(format),
    doubleQuant,
    ...(blocksize === undefined ? {} : { blocksize }),
  };
  try {
    const weight = quantize(full, options);
    try {
      const layer = name.slice(0, -'weight'.length);
      const state = await weight.toBitsandbytes();
      totals.layers++;
      totals.before_bytes += tensor.data.byteLength;
      for (const [key, part] of Object.entries(state)) {
        totals.after_bytes += part.data.byteLength;
        tensors.set(layer + key, part);
      }
    } finally {
      weight.dispose();
    }
  } catch (error) {
    throw error instanceof LowrankError
      ? new LowrankError(error.code, `${printable(name)}: ${error.message}`, { cause: error })
      : error;
  } finally {
    full.dispose();
  }
}
