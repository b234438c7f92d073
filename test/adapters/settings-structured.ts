/** Test settings of the methods that are built of blocks, reflections and rotations. */
import type { Row } from './settings.js';

export const STRUCTURED_ROWS: Readonly<Record<string, Row>> = {
  hra: { settings: { r: 6 } },
};
