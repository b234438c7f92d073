/** LoRA of the experts of a decoder. */

import type { Adapter } from '../adapters/definition/adapter.js';
import { lora } from '../adapters/methods/low-rank/lora.js';
import { type AlphaConfig, scalingOf } from '../adapters/parts/scaling.js';
import type { Device } from '../core/device.js';
import { notConstructed } from '../core/errors.js';
import { track } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import type { ExpertsPlace } from './expert-tensors.js';

/** The name of a layer of experts: `model.layers.0.mlp.experts.gate_up_proj`. */
export const expertsName = ({ module, parameter }: ExpertsPlace): string =>
  `${module}.${parameter}`;

/** By which a layer of experts is targeted: `experts.gate_up_proj`. */
export const expertsTarget = ({ parameter }: ExpertsPlace): string => `experts.${parameter}`;

/**
 * Does lora_A read the outputs in PEFT's file? PEFT takes the second dimension of a parameter [E, a, b] for its inputs, and
 * transformers holds experts as [E, N, K], those of gpt-oss as [E, K, N].
 */
export const readsOutputs = ({ stored }: ExpertsPlace): boolean =>
  !(stored.form === 'stacked' && stored.transposed);

/** LoRA of one layer of all experts, factors of each its own: PEFT's `target_parameters`. */
export class ExpertsLora implements Disposable {
  /** @internal use {@link ExpertsLora.init} or {@link ExpertsLora.of} */
  constructor(
    readonly place: ExpertsPlace,
    /** [E, r, K] */
    readonly loraA: Tensor,
    /** [E, N, r] */
    readonly loraB: Tensor,
    readonly config: AlphaConfig,
  ) {
    if (!Tensor.is(loraA)) throw notConstructed('ExpertsLora', 'ExpertsLora.init');
    track(this);
  }

  /** New factors: loraA as PEFT draws it, uniform in ±1/√K, and loraB of zeros. */
  static init(
    place: ExpertsPlace,
    config: AlphaConfig,
    { seed, device }: { readonly seed: number; readonly device: Device },
  ): ExpertsLora {
    const { E, N, K } = place;
    const most = 1 / Math.sqrt(K);
    const range = { low: -most, high: most, seed, device };
    return new ExpertsLora(
      place,
      Tensor.uniform([E, config.r, K], range),
      Tensor.zeros([E, N, config.r], { device }),
      config,
    );
  }

  /** The factors of adapters, one an expert, all of one size. */
  static of(place: ExpertsPlace, experts: readonly Adapter[], device: Device): ExpertsLora {
    const config = (experts[0] as Adapter).config as unknown as AlphaConfig;
    const { E, N, K } = place;
    const stacked = (name: string, shape: readonly [number, number]): Tensor => {
      const all = new Float32Array(E * shape[0] * shape[1]);
      for (const [e, { parameters }] of experts.entries()) {
        const values = (parameters[name] as Tensor).readSync();
        all.set(values, e * values.length);
      }
      return Tensor.from(all, [E, ...shape], { device });
    };
    const { r } = config;
    return new ExpertsLora(place, stacked('loraA', [r, K]), stacked('loraB', [N, r]), config);
  }

  get scaling(): number {
    return scalingOf(this.config);
  }

  /** Its tensors by name. */
  get parameters(): Readonly<Record<'loraA' | 'loraB', Tensor>> {
    return { loraA: this.loraA, loraB: this.loraB };
  }

  /** A LoRA adapter for each expert, with copies of its factors; they are the caller's. */
  split(): Adapter[] {
    const { E, N, K } = this.place;
    const { r } = this.config;
    const { device } = this.loraA;
    const [a, b] = [this.loraA.readSync(), this.loraB.readSync()];
    const settings = { r, loraAlpha: this.config.loraAlpha, rslora: this.config.rslora };
    return Array.from({ length: E }, (_, e) => {
      const part = (values: Float32Array, rows: number, cols: number) =>
        Tensor.from(values.slice(e * rows * cols, (e + 1) * rows * cols), [rows, cols], { device });
      const tensors = { loraA: part(a, r, K), loraB: part(b, N, r) };
      const size = { inFeatures: K, outFeatures: N, device };
      return lora.from(tensors, { ...size, ...settings }) as Adapter;
    });
  }

  /** Frees the factors. Twice is a no-op. */
  dispose(): void {
    this.loraA.dispose();
    this.loraB.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
