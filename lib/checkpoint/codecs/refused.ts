/** Layouts that are not read on purpose: what they are called, why, and the way out. */
import { fail } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import type { QuantizationConfig } from './layer-tensors.js';

const kVectors = 'its codes are indices into tables of vectors';
const kKernel = 'its bytes are permuted for one GPU kernel';
const kSparse = 'it is sparse';

/** By `quant_method`. */
const kMethods: Readonly<Record<string, string>> = {
  eetq: kKernel,
  aqlm: kVectors,
  vptq: kVectors,
  quip: kVectors,
  'quip#': kVectors,
  'quip-sharp': kVectors,
  higgs: kVectors,
  spqr: 'it keeps outliers in a sparse matrix beside its codes',
  quanto: 'it keeps its tensors in pickles or in a packing of its own',
  torchao: 'it keeps its tensors as objects of torch',
  quark: 'its packing depends on the exporter',
  'auto-round': 'its packing depends on the exporter',
  'intel/auto-round': 'its packing depends on the exporter',
  bitnet: 'it multiplies in a layer of its own',
  fp_quant: 'it rotates the activations',
  sinq: 'it has two scales for each code',
  marlin: kKernel,
  fouroversix: 'its packing is not known here',
};

/** By `format` of compressed-tensors. */
const kFormats: Readonly<Record<string, string>> = {
  'marlin-24': kKernel,
  'sparse-bitmask': kSparse,
  'sparse-24-bitmask': kSparse,
};

/** By `checkpoint_format` of GPTQ and `version` of AWQ. */
const kVariants: Readonly<Record<string, string>> = {
  marlin: kKernel,
  gemv_fast: kKernel,
  bitblas: kKernel,
};

const kWayOut = 'take the model in GPTQ, AWQ, FP8, bitsandbytes or GGUF, or in bf16';

function reasonOf(table: Readonly<Record<string, string>>, value: unknown): string | undefined {
  const key = typeof value === 'string' ? value.toLowerCase() : '';
  return Object.hasOwn(table, key) ? table[key] : undefined;
}

/** @throws ERR_UNSUPPORTED if the config names a layout that is not read */
export function refuseUnreadable(op: string, config: QuantizationConfig): void {
  const { quant_method, format, checkpoint_format, version, fmt } = config;
  const fields: readonly (readonly [string, unknown, string | undefined])[] = [
    ['quant_method', quant_method, reasonOf(kMethods, quant_method)],
    ['format', format, reasonOf(kFormats, format)],
    ['checkpoint_format', checkpoint_format, reasonOf(kVariants, checkpoint_format)],
    ['version', version, reasonOf(kVariants, version)],
    [
      'fmt',
      fmt,
      typeof fmt === 'string' && fmt.endsWith('fnuz')
        ? 'its exponents have another bias'
        : undefined,
    ],
  ];
  for (const [field, value, reason] of fields) {
    if (reason === undefined) continue;
    const actual = `${printable(String(value))}, which is not read because ${reason}: ${kWayOut}`;
    fail('ERR_UNSUPPORTED', op, `${field} in the config`, 'a layout that is read', actual);
  }
}
