/**
 * The oracle: float64 TypeScript written from the maths and from the published definitions of the
 * formats, never from the C++. Every check of a kernel is against this file.
 */
export * from './oracle/attention.js';
export * from './oracle/compare.js';
export * from './oracle/cross-entropy.js';
export * from './oracle/dropout.js';
export * from './oracle/dtypes.js';
export * from './oracle/elementwise.js';
export * from './oracle/features.js';
export * from './oracle/grouped.js';
export * from './oracle/int8.js';
export * from './oracle/linear.js';
export * from './oracle/lora.js';
export * from './oracle/lora-parts.js';
export * from './oracle/norm.js';
export * from './oracle/optimizer.js';
export * from './oracle/quantise.js';
