/** A LoRA adapter of llama.cpp as a PEFT adapter. */

import { LowrankError, wrongType } from '../../../core/errors.js';
import { printable } from '../../../core/printable.js';
import type { PeftAdapterParts } from '../../peft/peft-write.js';
import { planarToFloat32 } from '../../planar/decode.js';
import type { RawTensor } from '../../raw-tensor.js';
import { ggufToPlanar } from '../blocks/planar.js';
import { GgufFile, ggufToFloat32 } from '../gguf.js';
import { ggufToHf } from '../names.js';
import {
  adapterKeys,
  checkHeads,
  type GgufAdapterHeads,
  kEmbeddingTensor,
  rowsOf,
  transposed,
} from './base.js';

const kOp = 'ggufToAdapter';

/**
 * A LoRA adapter in GGUF as what `writePeftAdapter` writes; the other way of {@link adapterToGguf}.
 *
 * - Every module is a target by its full name. Where ranks differ, `rank_pattern` has those that are not the most frequent one.
 * - `lora_alpha` is `adapter.lora.alpha`. Without one, or with 0, llama.cpp does not scale, so every alpha is its rank.
 * - F32, F16 and BF16 factors keep their bits; Q8_0 is decoded to F32, and so is a module whose factors have two types.
 *
 * @param file of `general.type` adapter
 * @param base the heads of the base model, needed for q and k of `llama`
 * @returns config and modules
 * @throws `ERR_TYPE` · LowrankError `ERR_FILE` if the file is not an adapter, or its tensors do not fit each other ·
 *   `ERR_UNSUPPORTED` for another kind of adapter, an activated one, another architecture or type · `ERR_VALUE`, `ERR_SHAPE` if the
 *   heads are missing or do not divide the rows · `ERR_FILE_CHANGED`
 * @example
 * const parts = ggufToAdapter(openGguf('adapter.gguf'), { heads: 32, kvHeads: 8 });
 * writePeftAdapter('./adapter', parts);
 */
export function ggufToAdapter(file: GgufFile, base: GgufAdapterHeads = {}): PeftAdapterParts {
  if (!((file as unknown) instanceof GgufFile)) {
    throw wrongType(kOp, 'file', 'a file that openGguf opened', file);
  }
  checkHeads(kOp, base);
  const { architecture, alpha } = readMetadata(file);
  const modules = [...pairsOf(file)].map(([name, pair]) =>
    readModule(file, architecture, name, pair, base),
  );
  if (modules.length === 0) malformed(file, 'must hold at least one pair of factors, got none');
  const ranks = modules.map(({ loraA }) => loraA.shape[0] as number);
  const counts = new Map<number, number>();
  for (const r of ranks) counts.set(r, (counts.get(r) ?? 0) + 1);
  const [[r] = [0]] = [...counts].sort(([a, m], [b, n]) => n - m || a - b);
  const other = modules.flatMap(({ module }, i) =>
    ranks[i] === r ? [] : [[module, ranks[i] as number] as const],
  );
  return {
    config: {
      r,
      loraAlpha: alpha === 0 ? r : alpha,
      rankPattern: new Map(other),
      ...(alpha === 0 && { alphaPattern: new Map(other) }),
      targetModules: modules.map(({ module }) => module),
      taskType: 'CAUSAL_LM',
    },
    modules,
  };
}

function malformed(file: GgufFile, what: string): never {
  throw new LowrankError('ERR_FILE', `${kOp}: ${printable(file.path)} ${what}`, { op: kOp });
}

function unsupported(file: GgufFile, what: string): never {
  throw new LowrankError('ERR_UNSUPPORTED', `${kOp}: ${printable(file.path)} ${what}`, { op: kOp });
}

function readMetadata(file: GgufFile): { architecture: string; alpha: number } {
  const { metadata } = file;
  const textOf = (key: string): string => {
    const found = metadata.get(key);
    if (found?.type === 'string' && typeof found.value === 'string') return found.value;
    return malformed(file, `must have a text ${key}, got ${found?.type ?? 'none'}`);
  };
  const kind = textOf(adapterKeys.type);
  if (kind !== 'adapter')
    malformed(file, `must be an adapter, got general.type ${printable(kind)}`);
  const method = textOf(adapterKeys.method);
  if (method !== 'lora') unsupported(file, `must be a LoRA adapter, got ${printable(method)}`);
  if (metadata.has(adapterKeys.invocation)) {
    unsupported(file, 'must be active for every token, got an adapter with invocation tokens');
  }
  const alpha = metadata.get(adapterKeys.alpha);
  if (alpha === undefined) return { architecture: textOf(adapterKeys.architecture), alpha: 0 };
  if (alpha.type !== 'f32' || !Number.isFinite(alpha.value)) {
    const got = alpha.type === 'f32' ? String(alpha.value) : `a value of type ${alpha.type}`;
    malformed(file, `must have a finite ${adapterKeys.alpha} of type f32, got ${got}`);
  }
  return { architecture: textOf(adapterKeys.architecture), alpha: alpha.value as number };
}

/** Tensors of a factor each, by the name in the base. */
interface Pair {
  a?: string;
  b?: string;
}

function pairsOf(file: GgufFile): Map<string, Pair> {
  const pairs = new Map<string, Pair>();
  for (const name of file.names()) {
    const [, base, side] = /^(.+)\.lora_([ab])$/.exec(name) ?? [];
    if (base === undefined) {
      unsupported(file, `must hold factors lora_a and lora_b alone, got tensor ${printable(name)}`);
    }
    const pair = pairs.get(base as string) ?? {};
    pairs.set(base as string, pair);
    pair[side as 'a' | 'b'] = name;
  }
  return pairs;
}

function readModule(
  file: GgufFile,
  architecture: string,
  name: string,
  { a, b }: Pair,
  base: GgufAdapterHeads,
): PeftAdapterParts['modules'][number] {
  const place = ggufToHf(architecture, name);
  const module = place?.name.replace(/\.weight$/, '');
  if (place === undefined || module === undefined || !place.name.endsWith('.weight')) {
    const expected = `must adapt weights of ${architecture}`;
    return unsupported(file, `${expected}, got ${printable(name)}, which has no name in PEFT`);
  }
  if (a === undefined || b === undefined) {
    return malformed(file, `must hold both factors of ${printable(name)}, got one`);
  }
  const [first, second] = [factorOf(file, a), factorOf(file, b)];
  const embedding = name === kEmbeddingTensor;
  const [r, rOfB] = [first.shape[embedding ? 1 : 0] as number, second.shape[1] as number];
  if (r !== rOfB) {
    const shapes = `[${first.shape.join(', ')}] and [${second.shape.join(', ')}]`;
    malformed(file, `must have one rank in both factors of ${printable(name)}, got ${shapes}`);
  }
  // A PEFT folder has one dtype a module.
  const wide = first.dtype !== second.dtype;
  const [loraA, loraB] = [wide ? widened(first) : first, wide ? widened(second) : second];
  const permutation = { permuted: place.permuted, base, to: 'hf' as const };
  const rows = loraB.shape[0] as number;
  const data = rowsOf(kOp, printable(module), loraB.data, rows, permutation);
  const V = loraA.shape[0] as number;
  return {
    module,
    loraA: embedding ? { ...loraA, shape: [r, V], data: transposed(loraA.data, V, r) } : loraA,
    loraB: { ...loraB, data },
    ...(embedding && { embedding }),
  };
}

type Factor = RawTensor & {
  readonly dtype: 'F32' | 'F16' | 'BF16';
  readonly data: Uint8Array<ArrayBuffer>;
};

function factorOf(file: GgufFile, name: string): Factor {
  const tensor = file.read(name);
  const { type, shape, data } = tensor;
  if (shape.length !== 2) {
    malformed(file, `must have factors of 2 dimensions, got ${printable(name)} of ${shape.length}`);
  }
  if (type === 'Q8_0') {
    const values = planarToFloat32(ggufToPlanar(tensor));
    return { dtype: 'F32', shape, data: bytesOfFloats(values) };
  }
  if (type === 'F32' || type === 'F16' || type === 'BF16') return { dtype: type, shape, data };
  const got = `${printable(name)} of ${type}`;
  return unsupported(file, `must have factors in F32, F16, BF16 or Q8_0, got ${got}`);
}

const bytesOfFloats = (values: Float32Array<ArrayBuffer>): Uint8Array<ArrayBuffer> =>
  new Uint8Array(values.buffer);

const widened = ({ dtype, shape, data }: Factor): Factor => {
  const values = ggufToFloat32({ type: dtype, shape, data });
  return { dtype: 'F32', shape, data: bytesOfFloats(values) };
};
