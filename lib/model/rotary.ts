/**
 * Rotary position embeddings (Su et al., 2021, arXiv:2104.09864): the angles by which pairs of dimensions are turned.
 */

import { fail, shown } from '../core/errors.js';
import type { RotaryConfig, RotaryScaling } from './config/decoder-config.js';

/**
 * The table of rotary angles, computed in float64 and rounded to f32: cos(p · fᵢ) in columns 0 to dims/2 - 1, sin(p · fᵢ) in
 * the columns after them, both times the attention factor of `yarn` and `longrope`. Column i turns dimensions i and
 * i + dims/2 of a head. fᵢ = theta^(-2i/dims), stretched as the scaling says.
 *
 * `longrope` takes its long factors for all positions of a call whose largest position reaches its original length.
 *
 * @param positions P whole numbers from 0 on; in a packed row each document counts from 0
 * @returns [P, dims]
 * @throws LowrankError `ERR_VALUE`
 * @example
 * const table = rotaryTable(config.layers[0].attention.rotary, [0, 1, 2]);
 */
export function rotaryTable(
  config: RotaryConfig,
  positions: ArrayLike<number>,
): Float32Array<ArrayBuffer> {
  let length = 0;
  for (let p = 0; p < positions.length; p++) {
    const position = positions[p] as number;
    if (!Number.isSafeInteger(position) || position < 0) {
      const expected = 'a whole number from 0 on';
      fail('ERR_VALUE', 'rotaryTable', `positions[${p}]`, expected, shown(position));
    }
    length = Math.max(length, position + 1);
  }
  const half = config.dims / 2;
  const frequencies = rotaryFrequencies(config, length);
  const factor = attentionFactor(config.scaling);
  const table = new Float32Array(positions.length * config.dims);
  for (let p = 0; p < positions.length; p++) {
    for (let i = 0; i < half; i++) {
      const angle = (positions[p] as number) * (frequencies[i] as number);
      table[p * config.dims + i] = factor * Math.cos(angle);
      table[p * config.dims + half + i] = factor * Math.sin(angle);
    }
  }
  return table;
}

/**
 * The frequencies of a table, radians a position.
 * @param length of the call: its largest position + 1
 * @returns [dims / 2]
 */
export function rotaryFrequencies(
  { theta, dims, scaling }: RotaryConfig,
  length: number,
): Float64Array<ArrayBuffer> {
  const plain = Float64Array.from({ length: dims / 2 }, (_, i) => theta ** ((-2 * i) / dims));
  switch (scaling.type) {
    case 'default':
      return plain;
    case 'linear':
      return plain.map((frequency) => frequency / scaling.factor);
    case 'llama3':
      return plain.map((frequency) => llama3Frequency(scaling, frequency));
    case 'yarn':
      return yarnFrequencies(plain, scaling, { theta, dims });
    case 'longrope': {
      const { shortFactors, longFactors, originalMaxPositionEmbeddings } = scaling;
      const factors = length > originalMaxPositionEmbeddings ? longFactors : shortFactors;
      return plain.map((frequency, i) => frequency / (factors[i] as number));
    }
  }
}

function attentionFactor(scaling: RotaryScaling): number {
  return scaling.type === 'yarn' || scaling.type === 'longrope' ? scaling.attentionFactor : 1;
}

/** Long waves are stretched, short ones stay, those between are blended. */
function llama3Frequency(
  scaling: Extract<RotaryScaling, { type: 'llama3' }>,
  frequency: number,
): number {
  const { factor, lowFreqFactor, highFreqFactor, originalMaxPositionEmbeddings } = scaling;
  const turns = (originalMaxPositionEmbeddings * frequency) / (2 * Math.PI);
  if (turns > highFreqFactor) return frequency;
  if (turns < lowFreqFactor) return frequency / factor;
  const blend = (turns - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
  return (1 - blend) * (frequency / factor) + blend * frequency;
}

/** Dimensions that turn often in the original length stay, those that turn seldom are stretched. */
function yarnFrequencies(
  plain: Float64Array<ArrayBuffer>,
  scaling: Extract<RotaryScaling, { type: 'yarn' }>,
  { theta, dims }: { readonly theta: number; readonly dims: number },
): Float64Array<ArrayBuffer> {
  const { factor, betaFast, betaSlow, originalMaxPositionEmbeddings, truncate } = scaling;
  const dimensionOf = (turns: number) =>
    (dims * Math.log(originalMaxPositionEmbeddings / (turns * 2 * Math.PI))) /
    (2 * Math.log(theta));
  const [first, last] = [dimensionOf(betaFast), dimensionOf(betaSlow)];
  const begin = Math.max(truncate ? Math.floor(first) : first, 0);
  const until = Math.min(truncate ? Math.ceil(last) : last, dims - 1);
  // A range of one dimension would divide by zero.
  const width = until === begin ? 0.001 : until - begin;
  return plain.map((frequency, i) => {
    const stretched = Math.min(Math.max((i - begin) / width, 0), 1);
    return (frequency / factor) * stretched + frequency * (1 - stretched);
  });
}
