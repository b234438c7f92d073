import type { Tensor } from '../../core/tensor.js';
import type { AnyOptimizer, StateShape, TrainedParameter } from '../definition/definition.js';

/** The rank of the layer that stands for all. */
const kRank = 8;

/**
 * Bytes that an optimiser keeps for each trained value, as the mean over the factors of a layer of this width.
 * @param settings checked already
 */
export function stateBytesEach(optimizer: AnyOptimizer, settings: object, width: number): number {
  const factor = (role: 'down' | 'up', shape: readonly number[]): TrainedParameter => ({
    ...{ name: `layer.${role}`, role, layer: 'layer' },
    tensor: { shape, size: kRank * width, dtype: 'f32' } as unknown as Tensor,
  });
  const pair = { down: factor('down', [kRank, width]), up: factor('up', [width, kRank]) };
  let bytes = 0;
  for (const parameter of [pair.down, pair.up]) {
    if (optimizer.group?.(parameter, settings)?.frozen === true) continue;
    const shapes = optimizer.state(parameter, settings, pair) as Record<string, StateShape>;
    for (const shape of Object.values(shapes)) {
      const dims = 'bytes' in shape ? shape.bytes : shape;
      bytes += ('bytes' in shape ? 1 : 4) * dims.reduce((a, b) => a * b, 1);
    }
  }
  return bytes / (2 * kRank * width);
}
