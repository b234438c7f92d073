/** The backward pass of `GroupedLora`. */
import { type NativeHandle, native, type RawAdapters } from '../../core/binding.js';
import { checkShape, checkTensor, checkVector } from '../../core/check-tensor.js';
import type { DType } from '../../core/dtype.js';
import { fail, wrongType } from '../../core/errors.js';
import { Tensor } from '../../core/tensor.js';
import {
  checkSameDevice,
  ownFields,
  readNames,
  readOptions,
  seedWords,
} from '../../core/validate.js';
import { QuantizedWeight } from '../../quant/quantized-weight.js';
import { withLast } from '../base-weight.js';
import { addZeroGrad, zeroTermOf } from '../zero-points.js';
import { type GroupedEntry, GroupedSaved } from './grouped-saved.js';

/** The gradients of one adapter of a group. */
export type GroupedAdapterGradient = 'dLoraA' | 'dLoraB' | 'dLoraBias';
export type GroupedAdapterGradients = { [name in GroupedAdapterGradient]?: Tensor };

/** The gradients that `GroupedLora.backward` can compute. */
export type GroupedGradient = 'dx' | 'dBias' | 'dRowScale' | 'adapters';

/** The gradients of a batch. */
export interface GroupedGradients {
  dx?: Tensor;
  dBias?: Tensor;
  /** Gradient of the gates: the shape and dtype of `rowScale`, 0 where a slot has no adapter. */
  dRowScale?: Tensor;
  /**
   * By name: the adapters that have rows in the batch and a trained factor, and those in
   * `accumulateInto`, unchanged if the batch has no rows of them.
   */
  adapters: Map<string, GroupedAdapterGradients>;
}

/** Tensors that `GroupedLora.backward` adds to instead of making new ones. */
export interface GroupedTargets {
  dx?: Tensor;
  dBias?: Tensor;
  dRowScale?: Tensor;
  /** By name. Missing ones are made. */
  adapters?: ReadonlyMap<string, GroupedAdapterGradients>;
}

/** Options of `GroupedLora.backward`. */
export interface GroupedBackwardOptions {
  /**
   * The wanted gradients. `adapters` stands for every trained factor of every adapter with rows,
   * and for the loraBias of those whose loraB is trained. Default: all.
   */
  needs?: readonly GroupedGradient[];
  /** Adds to these tensors and returns them. A tensor whose gradient is not among the `needs` stays unchanged. */
  accumulateInto?: GroupedTargets;
  /** Keep the saved state for another backward pass. Default false: it is freed. */
  keep?: boolean;
}

/** The gradients that do not belong to an adapter, in the order that the addon uses. */
const SHARED = ['dx', 'dBias', 'dRowScale'] as const;
const NEEDS: readonly GroupedGradient[] = [...SHARED, 'adapters'];
const PARTS: readonly GroupedAdapterGradient[] = ['dLoraA', 'dLoraB', 'dLoraBias'];

/** One output, in the order that the addon uses. */
interface Slot {
  readonly wanted: boolean;
  readonly operand: string;
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly target: Tensor | undefined;
}

function checkNeeds(op: string, needs: unknown, saved: GroupedSaved): ReadonlySet<string> {
  const { x, h, entries, rowScale } = saved;
  const trains = x !== undefined || (h !== undefined && entries.some((e) => e.adapter.trainB));
  const gated = rowScale !== undefined && h !== undefined;
  if (needs === undefined) {
    return new Set([
      'dx',
      ...(saved.hasBias ? ['dBias'] : []),
      ...(gated ? ['dRowScale'] : []),
      ...(trains ? ['adapters'] : []),
    ]);
  }
  const wanted = new Set(readNames(op, 'needs', needs, NEEDS));
  if (wanted.has('dRowScale') && !gated) {
    const why = 'without dRowScale (no rowScale was given, or training was off)';
    fail('ERR_VALUE', op, 'needs', why, 'dRowScale');
  }
  if (wanted.has('adapters') && !trains && entries.length > 0) {
    const why = 'without adapters (all adapters with rows were frozen, or training was off)';
    fail('ERR_VALUE', op, 'needs', why, 'adapters');
  }
  return wanted;
}

/** The targets of one adapter, with checked names. */
function partsOf(op: string, operand: string, value: unknown): GroupedAdapterGradients {
  const given = ownFields(op, value as GroupedAdapterGradients | undefined);
  readNames(op, operand, Object.keys(given), PARTS);
  return given;
}

function targetsOf(
  op: string,
  into: GroupedTargets | undefined,
  entries: readonly GroupedEntry[],
): Omit<GroupedTargets, 'adapters'> & { adapters: GroupedAdapterGradients[] } {
  const given = ownFields(op, into);
  readNames(op, 'accumulateInto', Object.keys(given), NEEDS);
  const { adapters } = given;
  if (adapters !== undefined && !(adapters instanceof Map)) {
    throw wrongType(op, 'accumulateInto.adapters', 'a Map', adapters);
  }
  return {
    ...(given.dx === undefined ? {} : { dx: given.dx }),
    ...(given.dBias === undefined ? {} : { dBias: given.dBias }),
    ...(given.dRowScale === undefined ? {} : { dRowScale: given.dRowScale }),
    adapters: entries.map(({ name }) =>
      partsOf(op, `accumulateInto.adapters['${name}']`, adapters?.get(name)),
    ),
  };
}

/** Implements `GroupedLora.backward`, which documents it. */
export function groupedBackward(
  op: string,
  dy: Tensor,
  saved: GroupedSaved,
  options: GroupedBackwardOptions | undefined,
): GroupedGradients {
  checkTensor(op, 'dy', dy);
  if (!GroupedSaved.is(saved)) {
    throw wrongType(op, 'saved', 'the saved state of GroupedLora.forward', saved);
  }
  if (saved.disposed) fail('ERR_DISPOSED', op, 'saved', 'live saved state', 'a disposed one');
  checkShape(op, 'dy', dy, saved.yShape);
  const { w, x, h, entries, rowScale, dropoutMask, inFeatures } = saved;
  checkSameDevice(op, 'dy', dy, w);
  if (x !== undefined && x.dtype !== dy.dtype) {
    fail('ERR_DTYPE', op, 'dy', `${x.dtype}, as x was`, dy.dtype);
  }
  const given = readOptions(op, options, { needs: true, accumulateInto: true, keep: true });
  const wanted = checkNeeds(op, given.needs, saved);
  const targets = targetsOf(op, given.accumulateInto, entries);
  const xShape = withLast(dy, inFeatures);
  const N = [saved.yShape.at(-1) ?? 0];

  const slots: Slot[] = [
    {
      wanted: wanted.has('dx'),
      operand: 'accumulateInto.dx',
      shape: xShape,
      dtype: dy.dtype,
      target: targets.dx,
    },
    {
      wanted: wanted.has('dBias'),
      operand: 'accumulateInto.dBias',
      shape: N,
      dtype: dy.dtype,
      target: targets.dBias,
    },
    {
      wanted: wanted.has('dRowScale'),
      operand: 'accumulateInto.dRowScale',
      shape: rowScale?.shape ?? [saved.adapterOf.length],
      dtype: rowScale?.dtype ?? 'f32',
      target: targets.dRowScale,
    },
  ];
  const group = wanted.has('adapters');
  entries.forEach(({ name, adapter }, e) => {
    const { loraA, loraB, loraBias, trainA, trainB } = adapter;
    const trained = {
      dLoraA: group && trainA && x !== undefined,
      dLoraB: group && trainB && h !== undefined,
      dLoraBias: group && trainB && h !== undefined && loraBias !== undefined,
    };
    const like = { dLoraA: loraA, dLoraB: loraB, dLoraBias: loraBias };
    for (const part of PARTS) {
      slots.push({
        wanted: trained[part],
        operand: `accumulateInto.adapters['${name}'].${part}`,
        shape: part === 'dLoraBias' ? N : (like[part] as Tensor).shape,
        dtype: like[part]?.dtype ?? dy.dtype,
        target: targets.adapters[e]?.[part],
      });
    }
  });
  for (const { operand, shape, target } of slots) {
    if (target === undefined) continue;
    checkTensor(op, operand, target);
    if (shape.length === 1) checkVector(op, operand, target, shape[0] as number);
    else checkShape(op, operand, target, shape);
    checkSameDevice(op, operand, target, dy);
  }

  const words = seedWords(op, saved.seed);
  const dyHandle = Tensor.handleOf(dy, op, 'dy');
  const xHandle = group && x !== undefined ? Tensor.handleOf(x, op, 'saved.x') : null;
  const needsH = group || wanted.has('dRowScale');
  const hHandle = needsH && h !== undefined ? Tensor.handleOf(h, op, 'saved.h') : null;
  const wHandle = !wanted.has('dx')
    ? null
    : w instanceof QuantizedWeight
      ? QuantizedWeight.handleOf(w, op, 'w')
      : Tensor.handleOf(w, op, 'w');
  const raw = rawAdapters(op, entries);
  const scale = rowScale === undefined ? null : Tensor.handleOf(rowScale, op, 'rowScale');
  const mask = dropoutMask === undefined ? null : Tensor.handleOf(dropoutMask, op, 'dropoutMask');
  const wantedRaw = slots.map(({ wanted: want, target, operand, dtype }) => {
    if (!want) return null;
    return target === undefined ? dtype : Tensor.handleOf(target, op, operand);
  });
  const handles = native(op, (binding) =>
    binding.groupedBackward(
      dyHandle,
      xHandle,
      wHandle,
      hHandle,
      inFeatures,
      raw,
      saved.adapterOf,
      saved.slots,
      scale,
      words[0],
      words[1],
      mask,
      wantedRaw,
    ),
  );
  const results = slots.map(({ wanted: want, target, shape, dtype }, i) => {
    const handle = handles[i];
    if (!want) return undefined;
    return handle === null || handle === undefined
      ? target
      : Tensor.adopt(handle, shape, dtype, dy.device);
  });
  const gradients: GroupedGradients = { adapters: new Map() };
  SHARED.forEach((name, i) => {
    const tensor = results[i];
    if (tensor !== undefined) gradients[name] = tensor;
  });
  const zeros = zeroTermOf(w);
  if (zeros !== undefined && gradients.dx !== undefined) {
    gradients.dx = addZeroGrad(op, zeros, dy, gradients.dx, targets.dx !== undefined);
  }
  entries.forEach(({ name }, e) => {
    const parts: GroupedAdapterGradients = {};
    PARTS.forEach((part, i) => {
      const tensor = results[SHARED.length + PARTS.length * e + i];
      if (tensor !== undefined) parts[part] = tensor;
    });
    if (Object.keys(parts).length > 0) gradients.adapters.set(name, parts);
  });
  // Sums over several batches are passed on, even for adapters without rows in this one.
  for (const [name, parts] of given.accumulateInto?.adapters ?? []) {
    gradients.adapters.set(name, { ...parts, ...gradients.adapters.get(name) });
  }
  if (given.keep !== true) saved.dispose();
  return gradients;
}

/** The adapters in the addon's form. @throws ERR_DISPOSED */
export function rawAdapters(op: string, entries: readonly GroupedEntry[]): RawAdapters {
  const raw: Array<NativeHandle | Float64Array | null> = [];
  const numbers = new Float64Array(2 * entries.length);
  entries.forEach(({ name, adapter, dropout }, e) => {
    const { loraA, loraB, loraBias, scaling } = adapter;
    raw.push(
      Tensor.handleOf(loraA, op, `adapters['${name}'].loraA`),
      Tensor.handleOf(loraB, op, `adapters['${name}'].loraB`),
      loraBias === undefined ? null : Tensor.handleOf(loraBias, op, `adapters['${name}'].loraBias`),
    );
    numbers[2 * e] = scaling;
    numbers[2 * e + 1] = dropout;
  });
  raw.push(numbers);
  return raw;
}
