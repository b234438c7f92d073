/**
 * Rotary embeddings in `config.json`: `rope_parameters` of transformers 5, or `rope_theta`, `rope_scaling` and
 * `partial_rotary_factor` of transformers 4.
 */

import type { Fields } from '../../checkpoint/files/json-file.js';
import { printable } from '../../core/printable.js';
import { kMaxDim } from './common.js';
import type { RotaryConfig, RotaryScaling } from './decoder-config.js';

/** What the reader of rotary fields is told. */
export interface RotaryContext {
  readonly headDim: number;
  readonly maxPositionEmbeddings: number;
  /** Where neither generation gives one; default 10,000. */
  readonly theta?: number;
  /** Does the architecture rotate only a part of a head where the file says so? */
  readonly partial?: boolean;
  /** The key of `rope_parameters` under which this table stands where a model has several. */
  readonly layerType?: string;
  /** Other spellings of a type. */
  readonly spellings?: Readonly<Record<string, RotaryScaling['type']>>;
  /** For files that do not say; default the file's max_position_embeddings. */
  readonly originalMaxPositionEmbeddings?: number;
}

const kTypes = ['default', 'linear', 'llama3', 'yarn', 'longrope'] as const;
const positive = (value: number): boolean => value > 0;

/** Reads one table. @throws LowrankError `ERR_FILE` · `ERR_UNSUPPORTED` another type of scaling */
export function readRotary(fields: Fields, context: RotaryContext): RotaryConfig {
  const { newer, key, scaling } = scalingFields(fields, context);
  // Published files mix generations: what rope_parameters leaves out may stand at the top.
  const holder = (name: string) =>
    newer && scaling !== undefined && !scaling.absent(name) ? scaling : fields;
  const theta = holder('rope_theta').number(
    'rope_theta',
    'a positive number',
    positive,
    context.theta ?? 10_000,
  );
  const dims = rotatedDims(holder('partial_rotary_factor'), context);
  if (scaling === undefined) return { theta, dims, scaling: { type: 'default' } };

  const name = scaling.optionalString('rope_type') ?? scaling.optionalString('type') ?? 'default';
  const spellings = context.spellings ?? {};
  const type = Object.hasOwn(spellings, name) ? spellings[name] : kTypes.find((t) => t === name);
  if (type === undefined) {
    const expected = `of type ${kTypes.map((each) => `"${each}"`).join(', ')}`;
    return fields.refuse(key, `${expected} (its type is ${printable(name)})`, 'ERR_UNSUPPORTED');
  }
  return { theta, dims, scaling: readScaling(type, scaling, fields, { ...context, dims }) };
}

/** The object that describes the scaling, and its key; `undefined` where the rotation is as it was trained. */
function scalingFields(fields: Fields, { layerType }: RotaryContext) {
  const newer = fields.optionalObject('rope_parameters');
  if (newer === undefined) {
    const object = fields.optionalObject('rope_scaling');
    const key = 'rope_scaling';
    return { newer: false, key, scaling: object && fields.nested(key, object) } as const;
  }
  const key = 'rope_parameters';
  const flat = fields.nested(key, newer);
  if (layerType === undefined) return { newer: true, key, scaling: flat } as const;
  const own = flat.optionalObject(layerType);
  if (own === undefined) return flat.refuse(layerType, 'an object');
  return { newer: true, key, scaling: flat.nested(layerType, own) } as const;
}

function rotatedDims(holder: Fields, { headDim, partial = false }: RotaryContext): number {
  const inRange = (value: number) => value > 0 && value <= 1;
  const factor = holder.number('partial_rotary_factor', 'a number in (0, 1]', inRange, 1);
  const dims = Math.trunc(headDim * factor);
  if (!partial && dims !== headDim) {
    holder.refuse('partial_rotary_factor', '1 with this architecture', 'ERR_UNSUPPORTED');
  }
  if (dims < 2 || dims % 2 !== 0) {
    const expected = `such that an even number of the ${headDim} dimensions of a head is rotated`;
    holder.refuse('partial_rotary_factor', expected);
  }
  return dims;
}

function readScaling(
  type: RotaryScaling['type'],
  scaling: Fields,
  fields: Fields,
  context: RotaryContext & { readonly dims: number },
): RotaryScaling {
  const factor = () => scaling.number('factor', 'a number of at least 1', (value) => value >= 1);
  switch (type) {
    case 'default':
      return { type };
    case 'linear':
      return { type, factor: factor() };
    case 'llama3': {
      const lowFreqFactor = scaling.number('low_freq_factor', 'a positive number', positive);
      const above = (value: number) => value > lowFreqFactor;
      const expected = `a number above low_freq_factor (${lowFreqFactor})`;
      return {
        type,
        factor: factor(),
        lowFreqFactor,
        highFreqFactor: scaling.number('high_freq_factor', expected, above),
        originalMaxPositionEmbeddings: scaling.integer(
          'original_max_position_embeddings',
          1,
          kMaxDim,
        ),
      };
    }
    case 'yarn':
      return readYarn(scaling, fields, context);
    case 'longrope':
      return readLongrope(scaling, fields, context);
  }
}

/** The length of the training: in the scaling, or at the top (Phi-3). */
function originalLength(scaling: Fields, fields: Fields, context: RotaryContext): number {
  const key = 'original_max_position_embeddings';
  const holder = scaling.absent(key) ? fields : scaling;
  const { maxPositionEmbeddings, originalMaxPositionEmbeddings } = context;
  return holder.integer(key, 1, kMaxDim, originalMaxPositionEmbeddings ?? maxPositionEmbeddings);
}

/** 0.1 · m · ln(factor) + 1, of Peng et al., 2023, arXiv:2309.00071. */
const yarnFactor = (factor: number, m = 1): number =>
  factor <= 1 ? 1 : 0.1 * m * Math.log(factor) + 1;

function readYarn(scaling: Fields, fields: Fields, context: RotaryContext): RotaryScaling {
  const original = originalLength(scaling, fields, context);
  const factor = scaling.number(
    'factor',
    'a number of at least 1',
    (value) => value >= 1,
    Math.max(1, context.maxPositionEmbeddings / original),
  );
  const optional = (key: string) =>
    scaling.absent(key)
      ? undefined
      : scaling.number(key, 'a number of at least 0', (value) => value >= 0);
  // 0 counts as left out, as for the peer.
  const [m, mAll] = [optional('mscale'), optional('mscale_all_dim')];
  const standard =
    m && mAll ? yarnFactor(factor, m) / yarnFactor(factor, mAll) : yarnFactor(factor);
  const betaSlow = optional('beta_slow') || 1;
  const betaFast = optional('beta_fast') || 32;
  if (betaFast < betaSlow) scaling.refuse('beta_fast', `at least beta_slow (${betaSlow})`);
  return {
    type: 'yarn',
    factor,
    betaFast,
    betaSlow,
    originalMaxPositionEmbeddings: original,
    truncate: scaling.boolean('truncate', true),
    attentionFactor: scaling.number('attention_factor', 'a positive number', positive, standard),
  };
}

function readLongrope(
  scaling: Fields,
  fields: Fields,
  context: RotaryContext & { readonly dims: number },
): RotaryScaling {
  const original = originalLength(scaling, fields, context);
  const factor = scaling.number(
    'factor',
    'a positive number',
    positive,
    context.maxPositionEmbeddings / original,
  );
  const standard = factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(original));
  const factors = (key: string): readonly number[] => {
    const list = scaling.raw(key);
    const half = context.dims / 2;
    const fits =
      Array.isArray(list) &&
      list.length === half &&
      list.every((value) => typeof value === 'number' && Number.isFinite(value) && value > 0);
    if (!fits) scaling.refuse(key, `a list of ${half} positive numbers`);
    return list as number[];
  };
  return {
    type: 'longrope',
    shortFactors: factors('short_factor'),
    longFactors: factors('long_factor'),
    originalMaxPositionEmbeddings: original,
    attentionFactor: scaling.number('attention_factor', 'a positive number', positive, standard),
  };
}
