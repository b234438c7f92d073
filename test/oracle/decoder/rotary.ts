/** Rotary embeddings in float64, from the formulas of their papers. */
import type { RotaryConfig } from '../../../lib/index.js';

/** Angles of one call: cos and sin, scaled, of position p and pair i. */
export interface Angles {
  readonly dims: number;
  readonly of: (position: number, pair: number) => readonly [cos: number, sin: number];
}

/** @param longest the largest position of the call */
export function anglesOf({ theta, dims, scaling }: RotaryConfig, longest: number): Angles {
  const wavelength = (i: number) => 2 * Math.PI * theta ** ((2 * i) / dims);
  let [stretch, magnitude]: [(i: number) => number, number] = [() => 1, 1];
  if (scaling.type === 'linear') stretch = () => scaling.factor;
  if (scaling.type === 'llama3') {
    const { factor, lowFreqFactor: low, highFreqFactor: high } = scaling;
    const length = scaling.originalMaxPositionEmbeddings;
    stretch = (i) => {
      // How far a wave is from the short ones, 0 and below, to the long ones, 1 and above.
      const far = 1 - (length / wavelength(i) - low) / (high - low);
      const kept = 1 - Math.min(1, Math.max(0, far));
      return 1 / (kept + (1 - kept) / factor);
    };
  }
  if (scaling.type === 'yarn') {
    const { factor, betaFast, betaSlow, truncate } = scaling;
    magnitude = scaling.attentionFactor;
    const length = scaling.originalMaxPositionEmbeddings;
    /** The pair that turns `turns` times in the original length. */
    const pair = (turns: number) =>
      ((dims / 2) * Math.log(length / (2 * Math.PI * turns))) / Math.log(theta);
    const low = Math.max(0, truncate ? Math.floor(pair(betaFast)) : pair(betaFast));
    const high = Math.min(dims - 1, truncate ? Math.ceil(pair(betaSlow)) : pair(betaSlow));
    stretch = (i) => {
      const ramp = Math.min(1, Math.max(0, (i - low) / (high === low ? 1e-3 : high - low)));
      return 1 / (ramp / factor + 1 - ramp);
    };
  }
  if (scaling.type === 'longrope') {
    magnitude = scaling.attentionFactor;
    const long = longest + 1 > scaling.originalMaxPositionEmbeddings;
    stretch = (i) => (long ? scaling.longFactors : scaling.shortFactors)[i] as number;
  }
  return {
    dims,
    of: (position, i) => {
      const angle = (2 * Math.PI * position) / (wavelength(i) * stretch(i));
      return [magnitude * Math.cos(angle), magnitude * Math.sin(angle)];
    },
  };
}
