/** A tiny trainer's weights and adapters, as the float64 oracle takes them. */

import { type AlphaConfig, scalingOf } from '../../lib/adapters/parts/scaling.js';
import { dequantize, Tensor } from '../../lib/index.js';
import type { OracleAdapter, OracleWeights } from './llama-oracle.js';
import { randomValues, type TinyTrainer, weightsOf } from './setup.js';

/** Weights as the trainer sees them: linear layers after quantisation. */
export function oracleWeights({ model, decoder }: TinyTrainer): OracleWeights {
  const known = new Map<string, Float32Array>();
  for (const [module, w] of weightsOf(decoder)) {
    const dense = Tensor.is(w) ? w : dequantize(w);
    known.set(`${module}.weight`, dense.readSync());
    if (dense !== w) dense.dispose();
  }
  return (name) => {
    if (!known.has(name)) known.set(name, model.readFloat32(name));
    return known.get(name) as Float32Array;
  };
}

export function adaptersOf({ trainer }: TinyTrainer): (layer: string) => OracleAdapter | undefined {
  const parts = trainer.adapters.layers.map(({ place, adapter }) => {
    const values = (name: string) =>
      Float64Array.from((adapter.parameters[name] as Tensor).readSync());
    const config = adapter.config as AlphaConfig;
    const factors = { loraA: values('loraA'), loraB: values('loraB') };
    return [place.module, { ...factors, r: config.r, scaling: scalingOf(config) }] as const;
  });
  const byName = new Map<string, OracleAdapter>(parts);
  return (layer) => byName.get(layer);
}

/** lora_b is zero at the start, which would hide the low-rank branch. */
export function shake({ trainer }: TinyTrainer): void {
  for (const { adapter } of trainer.adapters.layers) {
    const { loraB } = adapter.parameters;
    loraB?.write(randomValues(loraB.size, 77).map((value) => 0.3 * value));
  }
}
