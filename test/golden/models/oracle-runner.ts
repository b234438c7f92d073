/** The float64 oracle as a runner: what every other runner is trusted by. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { openHfModel } from '../../../lib/index.js';
import type { OracleLora } from '../../oracle/decoder/layers.js';
import { matrix } from '../../oracle/decoder/matrix.js';
import { decoderPass, type OracleModel } from '../../oracle/decoder/model.js';
import {
  crossEntropy,
  generateGreedily,
  lossAndGradients,
  trainAdamW,
} from '../../oracle/decoder/training.js';
import { type GoldenTensor, numbersOf, readTensors } from '../case-file.js';
import type { ModelCase } from './cases.js';
import type { ModelRunner, RunningModel } from './runner.js';

const kPrefix = 'base_model.model.';

/** The adapter of a case, by module, read without the library. */
export function oracleAdapters(golden: ModelCase): Map<string, OracleLora> {
  const config = JSON.parse(readFileSync(join(golden.adapter, 'adapter_config.json'), 'utf8')) as {
    readonly r: number;
    readonly lora_alpha: number;
    readonly use_rslora: boolean;
  };
  const scaling = config.lora_alpha / (config.use_rslora ? Math.sqrt(config.r) : config.r);
  const tensors = readTensors(`models/${golden.id}/adapter/adapter_model.safetensors`);
  const factor = (module: string, which: 'A' | 'B') => {
    const { shape, ...rest } = tensors.get(
      `${kPrefix}${module}.lora_${which}.weight`,
    ) as GoldenTensor;
    const [rows, cols] = shape as [number, number];
    return matrix(rows, cols, numbersOf({ shape, ...rest }));
  };
  const modules = [...tensors.keys()].flatMap((name) => {
    const [, module] = /^base_model\.model\.(.*)\.lora_A\.weight$/.exec(name) ?? [];
    return module === undefined ? [] : [module];
  });
  return new Map(
    modules.map((module) => [module, { scaling, a: factor(module, 'A'), b: factor(module, 'B') }]),
  );
}

/** The model of a case. */
export function oracleModel(golden: ModelCase, folder: string): OracleModel {
  const { decoder: config, places } = openHfModel(folder);
  const known = new Map(
    [...golden.weights].map(([name, tensor]) => [name, numbersOf(tensor)] as const),
  );
  return {
    config,
    places,
    tensor: (name) => known.get(name) as Float64Array,
    adapters: oracleAdapters(golden),
  };
}

export const oracleRunner: ModelRunner = {
  name: 'float64 oracle',
  precision: 'f64',
  open: (golden, folder) => runningOracle(oracleModel(golden, folder)),
};

/** @param model what `oracleModel` reads, or a changed one */
export function runningOracle(model: OracleModel): RunningModel {
  return {
    logits: (batch, adapted) => decoderPass(model, batch, adapted).logits.values,
    losses: (batch) => crossEntropy(decoderPass(model, batch).logits, batch),
    gradients: (batch) => {
      const { embedding, adapters } = lossAndGradients(model, batch).gradients;
      const named = [...adapters].flatMap(([module, { a, b }]) => [
        [`${kPrefix}${module}.lora_A.weight`, a.values] as const,
        [`${kPrefix}${module}.lora_B.weight`, b.values] as const,
      ]);
      return { embedding: embedding.values, adapters: new Map(named) };
    },
    generate: (prompts, B, steps) => {
      const P = prompts.length / B;
      const rows = Array.from({ length: B }, (_, b) => [...prompts.subarray(b * P, (b + 1) * P)]);
      const { ids, logits } = generateGreedily(model, rows, steps);
      return { ids: ids.flat(), logits: logits.flat().flatMap((row) => [...row]) };
    },
    train: (batch, settings) => trainAdamW(model, batch, settings),
    dispose: () => {},
  };
}
