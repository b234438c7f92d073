import { scope } from '../../../core/scope.js';
import { Tensor } from '../../../core/tensor.js';
import { multiplyAdd } from '../../../ops/elementwise.js';
import { type BitChoice, chooseBits } from '../../../quantizers/choose-bits.js';
import {
  type NormalFloatOptions,
  normalFloatBits,
} from '../../../quantizers/normal-float-blocks.js';
import { fisherOf } from '../../calibration/fisher.js';
import { defineStart, type StartLayer } from '../../definition/definition.js';
import { checkIterations, passesOf } from '../../parts/iterations.js';
import { integerIn, numberIn } from '../../parts/settings.js';
import { decompose, type Importance, importanceOf } from '../../parts/weighted-decomposition.js';

/** Formats that a layer may have. */
const kFormats: readonly NormalFloatOptions[] = [2, 3, 4, 8].flatMap((bits) =>
  [32, 64].map((blocksize) => ({ bits, blocksize, doubleQuant: true })),
);

/**
 * Codes and factors of each layer that leave the least Fisher-weighted error, by LoftQ's turns with factors first, and the format
 * of each layer, NormalFloat of 2, 3, 4 or 8 bits in blocks of 32 or 64, with a small sum of these errors within `budget` bits a
 * weight, scales included. The SVD sees the part of the weights that is a product of rows and columns. Without `fisher` all weights
 * of the error are 1. The paper solves an integer programme; here steps are taken by gain.
 */
export const lqLora = defineStart({
  start: 'lq-lora',
  reference:
    'Guo et al., LQ-LoRA: Low-rank Plus Quantized Matrix Decomposition for Efficient Language Model Finetuning, 2023, arXiv:2311.12023',
  from: 'model',
  defaults: { budget: 3.5, fisher: true, rounds: 5, iterations: 12 },
  replacesBase: true,
  ownFormat: true,
  check: (settings) =>
    numberIn(settings, 'budget', 2, 9) ??
    integerIn(settings, 'rounds', 1, 10_000) ??
    checkIterations(settings),
  together: async ({ layers, dense, data, onBatch }, { r, scaling, seed, settings }) => {
    const { budget, fisher, rounds } = settings;
    const modules = layers.map(({ module }) => module);
    const found = fisher ? await fisherOf(dense, modules, data, onBatch) : undefined;
    try {
      const how = { r, scaling, seed, rounds, iterations: passesOf(settings) };
      const weighted = <T>(layer: StartLayer, run: (importance: Importance) => T): T => {
        const { N, K, device, module } = layer;
        const ones = () => multiplyAdd({ a: Tensor.zeros([N, K], { device }), c: one(device) });
        return scope(() => run(importanceOf(found?.get(module) ?? ones())));
      };
      const choices = layers.map(
        (layer): BitChoice => ({
          costs: weighted(layer, (importance) =>
            kFormats.map((format) => scope(() => decompose(layer, importance, format, how).cost)),
          ),
          sizes: kFormats.map((format) => normalFloatBits(layer.N * layer.K, format)),
        }),
      );
      const elements = layers.reduce((sum, { N, K }) => sum + N * K, 0);
      const chosen = chooseBits('start lq-lora', choices, budget * elements);
      return new Map(
        layers.map((layer, i) => {
          const format = kFormats[chosen[i] as number] as NormalFloatOptions;
          const { base, loraA, loraB } = weighted(layer, (importance) =>
            decompose(layer, importance, format, how),
          );
          return [layer.module, { base, loraA, loraB }] as const;
        }),
      );
    } finally {
      for (const each of found?.values() ?? []) each.dispose();
    }
  },
});

const one = (device: Tensor['device']): Tensor =>
  Tensor.from(new Float32Array([1]), [1], { device });
