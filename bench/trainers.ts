/**
 * Prints the rows of the trainers on TensorFlow.js as JSON, one a line:
 *
 *   npm run bench:trainers -- tfjs-layers nanogpt --backend wasm
 */

import { join } from 'node:path';
import { parseArgs } from 'node:util';
import '@tensorflow/tfjs-backend-wasm';
import { nanogpt } from '../lib/bench/trainers/nanogpt.js';
import { tfjsLayers } from '../lib/bench/trainers/tfjs-layers.js';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { backend: { type: 'string', multiple: true }, steps: { type: 'string' } },
});
const trainers = positionals.length > 0 ? positionals : ['tfjs-layers', 'nanogpt'];
const script = join(import.meta.dirname, '..', 'examples', 'nanogpt', 'train.mjs');
const steps = values.steps === undefined ? {} : { steps: Number(values.steps) };
for (const backend of (values.backend ?? ['wasm', 'cpu']) as ('cpu' | 'wasm')[]) {
  for (const trainer of trainers) {
    const rows =
      trainer === 'nanogpt'
        ? [await nanogpt(backend, { script, ...steps })]
        : await tfjsLayers(backend, steps);
    for (const row of rows) process.stdout.write(`${JSON.stringify(row)}\n`);
  }
}
