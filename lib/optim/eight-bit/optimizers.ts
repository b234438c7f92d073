import { adagrad } from '../elementwise/adagrad.js';
import { type AdamwSettings, adamw } from '../elementwise/adamw.js';
import { ademamix } from '../elementwise/ademamix.js';
import { lion } from '../elementwise/lion.js';
import { rmsprop } from '../elementwise/rmsprop.js';
import { sgd } from '../elementwise/sgd.js';
import { adamRule, ademamixRule, lionRule, momentumRule, squaresRule } from '../parts/rules.js';
import { eightBit } from './eight-bit.js';

const kSigned = { planes: 1, signed: true } as const;
const kUnsigned = { planes: 1, signed: false } as const;

/** AdamW with states of 8 bits, as bitsandbytes' `AdamW8bit`: weight decay comes after the step. */
export const adamw8bit = eightBit<AdamwSettings>({
  optimizer: 'adamw-8bit',
  of: adamw,
  defaults: adamw.defaults,
  states: [kSigned, kUnsigned],
  rule: (u, [m, v]) =>
    adamRule(u, m as Float32Array, v as Float32Array, u.settings, { decay: 'after' }),
});

/** AdEMAMix with states of 8 bits, as bitsandbytes' `AdEMAMix8bit`: weight decay comes after the step. */
export const ademamix8bit = eightBit({
  optimizer: 'ademamix-8bit',
  of: ademamix,
  defaults: ademamix.defaults,
  states: [{ planes: 2, signed: true }, kUnsigned],
  rule: (u, [m, slow, v]) =>
    ademamixRule(
      u,
      m as Float32Array,
      slow as Float32Array,
      v as Float32Array,
      u.settings,
      'after',
    ),
});

/** Lion with a state of 8 bits, as bitsandbytes' `Lion8bit`. */
export const lion8bit = eightBit({
  optimizer: 'lion-8bit',
  of: lion,
  defaults: lion.defaults,
  states: [kSigned],
  rule: (u, [m]) => lionRule(u, m as Float32Array, u.settings),
});

/** SGD with a momentum of 8 bits, as bitsandbytes' `SGD8bit`. */
export const sgd8bit = eightBit({
  optimizer: 'sgd-8bit',
  of: sgd,
  defaults: sgd.defaults,
  states: [kSigned],
  rule: (u, [m]) => momentumRule(u, m as Float32Array, u.settings),
});

/** RMSprop with a state of 8 bits, as bitsandbytes' `RMSprop8bit`, which keeps squares in the signed map. */
export const rmsprop8bit = eightBit({
  optimizer: 'rmsprop-8bit',
  of: rmsprop,
  defaults: rmsprop.defaults,
  states: [kSigned],
  rule: (u, [v]) => {
    const { alpha, eps } = u.settings;
    squaresRule(u, v as Float32Array, { keep: alpha, share: 1 - alpha, eps });
  },
});

/** Adagrad with a state of 8 bits, as bitsandbytes' `Adagrad8bit`, which keeps squares in the signed map. */
export const adagrad8bit = eightBit({
  optimizer: 'adagrad-8bit',
  of: adagrad,
  defaults: adagrad.defaults,
  states: [kSigned],
  rule: (u, [v]) => squaresRule(u, v as Float32Array, { keep: 1, share: 1, eps: u.settings.eps }),
});
