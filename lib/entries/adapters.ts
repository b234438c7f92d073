/** `lowrank/adapters`: every published method under its own name, and what a method of one's own is made of. */

export * from '../adapters/methods/all.js';
export * from './adapter-parts.js';
