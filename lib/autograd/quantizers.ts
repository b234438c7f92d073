/** Rounding to trained grids and levels, and what makes weights of the results. */

export { freezeGrid } from '../ops/quantizers/freeze-grid.js';
export { freezeLevels } from '../ops/quantizers/freeze-levels.js';
export type { LevelGrid } from '../ops/quantizers/level-grid.js';
export type { ClippedBy, GridCodes, UniformGrid } from '../ops/quantizers/uniform-grid.js';
export { type FakeQuantizeOptions, fakeQuantize } from './fake-quantize.js';
export { type FakeQuantizeLevelsOptions, fakeQuantizeLevels } from './fake-quantize-levels.js';
