// Mutated layers of every layout: a typed error, or a weight whose tensors are those that were read.
import { describe, expect, it } from 'vitest';
import { layoutNames } from '../../../lib/checkpoint/codecs/registry.js';
import { bytesOf } from '../../../lib/checkpoint/raw-tensor.js';
import {
  dequantize,
  type LayerTensors,
  LowrankError,
  LowrankTypeError,
  planarToFloat32,
  quantize,
  quantizedLayers,
  readQuantizedLayer,
  Tensor,
  writeQuantizedLayer,
} from '../../../lib/index.js';
import { cpu_ms, generator, kFuzzSeed } from '../fuzz.js';
import { type LayerCase, layerCases } from './cases.js';
import { kFields, kValues, mutate, pick } from './mutated-layer.js';

/** Of each layout. */
const kInputs = process.env.LOWRANK_SWEEP === 'full' ? 100_000 : 300;
/** What the process may grow by: layers have some kilobytes. */
const kMostGrowth_bytes = 512 * 2 ** 20;

/** No recorded folder has layers of LLM.int8. */
async function llmInt8(): Promise<LayerCase> {
  using w = Tensor.randn([24, 64], { seed: 1, device: 'reference' });
  using rows = quantize(w, { format: 'int8', rowwise: true });
  const tensors = await rows.toBitsandbytes();
  const expected = dequantize(rows, { dtype: 'f32' }).readSync();
  return { id: 'llm-int8', layout: 'llm-int8', tensors, config: {}, expected };
}

const corpus = [...layerCases(quantizedLayers), await llmInt8()];

const disk = (tensors: LayerTensors) =>
  Object.entries(tensors)
    .map(
      ([key, { dtype, shape, data }]) =>
        `${key} ${dtype} ${shape} ${Buffer.from(bytesOf(data)).toString('base64')}`,
    )
    .sort();

describe('fuzzed layers', () => {
  it.each(layoutNames)(
    `%s: ${kInputs} of seed ${kFuzzSeed} end in a typed error or in the bytes read`,
    {
      timeout: 900_000,
    },
    (layout) => {
      const random = generator(kFuzzSeed);
      const own = corpus.filter((golden) => golden.layout === layout);
      const before_bytes = process.memoryUsage().rss;
      const codes = new Map<string, number>();
      let accepted = 0;
      let slowest_ms = 0;
      for (let input = 0; input < kInputs; input++) {
        const { id, tensors, config } = pick(random, own);
        const layer = mutate(random, tensors);
        const fields = random(4) === 0 ? { [pick(random, kFields)]: pick(random, kValues) } : {};
        const start = cpu_ms();
        try {
          const read = readQuantizedLayer(layer, { ...config, ...fields });
          const values = planarToFloat32(read.weight);
          if (values.length !== read.weight.rows * read.weight.columns) throw new Error('length');
          const written = writeQuantizedLayer(read);
          if (String(disk(written)) !== String(disk(layer))) {
            // The reader of bitsandbytes also takes other shapes and other spaces in its JSON.
            if (read.layout.name !== 'bitsandbytes') throw new Error('other bytes');
            const again = planarToFloat32(readQuantizedLayer(written).weight);
            if (!again.every((value, i) => Object.is(value, values[i]))) throw new Error('values');
          }
          accepted++;
        } catch (error) {
          if (!(error instanceof LowrankError || error instanceof LowrankTypeError)) {
            const what = `${id}, seed ${kFuzzSeed}, input ${input}, ${JSON.stringify(fields)}`;
            throw new Error(what, { cause: error });
          }
          codes.set(error.code, (codes.get(error.code) ?? 0) + 1);
        }
        slowest_ms = Math.max(slowest_ms, cpu_ms() - start);
      }
      // A count of a file that became a loop or an allocation would take far longer.
      expect(slowest_ms).toBeLessThan(2000);
      expect(process.memoryUsage().rss - before_bytes).toBeLessThan(kMostGrowth_bytes);
      expect(accepted).toBeGreaterThan(kInputs * 0.1);
      expect(accepted).toBeLessThan(kInputs * 0.9);
      // More than one check stands in the way.
      const often = [...codes].filter(([, count]) => count > kInputs * 0.01);
      expect(often.length).toBeGreaterThan(1);
    },
  );
});
