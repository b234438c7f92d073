// Many rows of each adapter on a small Ampere card: a product for each adapter's rows, by mma.sync.
import { describe, it } from 'vitest';
import { available, checkSegments, SHAPES, useSmallCard } from './grouped-segments.js';
import { mixes, WEIGHTS } from './operands.js';

useSmallCard(80);
const SPECS = WEIGHTS.filter(({ name }) => /^dense bf16$|^nf4 with/.test(name));

describe.runIf(available())('segments on sm_80', () => {
  for (const spec of SPECS) {
    for (const dtype of ['bf16', 'f16'] as const) {
      if (!mixes(spec, dtype)) continue;
      it(`${dtype} x, ${spec.name}`, async () => {
        for (const shape of SHAPES) await checkSegments(shape, spec, dtype);
      });
    }
  }
});
