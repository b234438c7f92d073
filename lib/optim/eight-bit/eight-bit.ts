/** Optimisers with states of 8 bits, as bitsandbytes keeps them. */

import { defineOptimizer } from '../definition/define.js';
import type { AnyOptimizer, HostUpdate, OptimizerDefinition } from '../definition/definition.js';
import { decodeStates, encodeStates, kBlock, stateMap } from './dynamic-map.js';

/** Settings of every optimiser with states of 8 bits. */
export interface EightBitSettings {
  /** Parameters of fewer elements keep their states in f32; bitsandbytes' `min_8bit_size`. */
  readonly minSize: number;
}

/** What differs between these optimisers. */
export interface EightBitRule<S extends object> {
  readonly optimizer: string;
  /** The one with states of f32, whose reference, settings and rate it has. */
  readonly of: OptimizerDefinition<S, never> | AnyOptimizer;
  readonly defaults: Readonly<S>;
  /** State by state: how many values an element has, and their map. */
  readonly states: readonly { readonly planes: number; readonly signed: boolean }[];
  /** Updates p and all planes of all states. */
  rule(update: HostUpdate<S & EightBitSettings>, planes: readonly Float32Array[]): void;
}

const kReference =
  'Dettmers and others, 8-bit Optimizers via Block-wise Quantization, 2022, arXiv:2110.02861';

/**
 * An optimiser whose states have the bytes that bitsandbytes has: codes of the dynamic maps in blocks of 256 elements of the
 * flattened parameter, and a scale for each block. `state1`, `state2` are the codes, `absmax1`, `absmax2` the scales. They stay
 * on the host.
 */
export function eightBit<S extends object>({
  optimizer,
  of,
  defaults,
  states,
  rule,
}: EightBitRule<S>): OptimizerDefinition<S & EightBitSettings> {
  return defineOptimizer<S & EightBitSettings>({
    optimizer,
    reference: `${of.reference}; ${kReference}`,
    defaults: { ...defaults, minSize: 4096 },
    ...(of.rate === undefined ? {} : { rate: of.rate }),
    check: (settings) =>
      settings.minSize >= 0
        ? of.check?.(settings as never)
        : ['minSize', 'at least 0', String(settings.minSize)],
    state: ({ tensor: { shape, size } }, { minSize }) => {
      const small = size < minSize;
      const blocks = Math.ceil(size / kBlock);
      return Object.fromEntries(
        states.flatMap(({ planes }, i) => {
          const own = planes === 1 ? shape : [planes, ...shape];
          const scales = planes === 1 ? [blocks] : [planes, blocks];
          return [
            [`state${i + 1}`, small ? own : { bytes: own }],
            ...(small ? [] : [[`absmax${i + 1}`, scales]]),
          ];
        }),
      );
    },
    update: (u) => {
      const { length } = u.p;
      const blocks = Math.ceil(length / kBlock);
      const parts = states.flatMap(({ planes, signed }, i) =>
        Array.from({ length: planes }, (_, plane) => {
          const place = (own: Float32Array, n: number) => own.subarray(plane * n, (plane + 1) * n);
          const whole = u.state[`state${i + 1}`];
          if (whole !== undefined) return { values: place(whole, length) };
          const codes = (u.bytes[`state${i + 1}`] as Uint8Array).subarray(
            plane * length,
            (plane + 1) * length,
          );
          const absmax = place(u.state[`absmax${i + 1}`] as Float32Array, blocks);
          const values = new Float32Array(length);
          const map = stateMap(signed);
          decodeStates(codes, absmax, map, values);
          return { values, store: () => encodeStates(values, map, codes, absmax) };
        }),
      );
      rule(
        u,
        parts.map(({ values }) => values),
      );
      for (const { store } of parts) store?.();
    },
  });
}
