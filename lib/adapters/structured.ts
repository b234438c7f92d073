import { hra } from './hra.js';

/** The methods that are built of blocks, reflections and rotations. */
export const structuredMethods = [hra] as const;
