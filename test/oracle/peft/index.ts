/** Every method of PEFT that has adapter folders of layers, by its `peft_type`. */
import type { Matrix } from '../adapter-layer.js';
import * as deltas from './deltas.js';
import {
  type CallInputs,
  type Forward,
  Loading,
  linear,
  type PeftFiles,
  type PeftMethod,
  type PeftModel,
} from './loader.js';
import { adalora, lora } from './lora.js';
import * as shared from './shared.js';
import * as transforms from './transforms.js';

export { type PeftFiles, type PeftLinear, type PeftModel, PeftRefuses } from './loader.js';

export const kPeftMethods: Readonly<Record<string, PeftMethod>> = {
  ADALORA: adalora,
  BEFT: deltas.beft,
  BOFT: transforms.boft,
  C3A: deltas.c3a,
  DEFT: deltas.deft,
  DELORA: deltas.delora,
  FOURIERFT: shared.fourierft,
  FROD: shared.frod,
  GLORA: transforms.glora,
  GRALORA: deltas.gralora,
  HIRA: deltas.hira,
  HRA: transforms.hra,
  IA3: transforms.ia3,
  LILY: shared.lily,
  LN_TUNING: transforms.lnTuning,
  LOHA: deltas.loha,
  LOKR: deltas.lokr,
  LORA: lora,
  MISS: deltas.miss,
  OFT: transforms.oft,
  OSF: deltas.osf,
  PEANUT: deltas.peanut,
  POLY: deltas.poly,
  PSOFT: transforms.psoftWith(() => undefined),
  PVERA: shared.pvera,
  RANDLORA: shared.randlora,
  ROAD: transforms.road,
  SHIRA: deltas.shira,
  SUPERTUNING: deltas.supertuning,
  TINYLORA: shared.tinylora,
  TRAINABLE_TOKENS: transforms.trainableTokens,
  UNILORA: shared.unilora,
  VBLORA: shared.vblora,
  VERA: shared.vera,
  WAVEFT: shared.waveft,
};

/** What PEFT's model computes after a folder was loaded, layer by layer. */
export interface LoadedModel {
  readonly forward: (module: string, x: Matrix, inputs?: CallInputs) => Matrix;
  /** Keys of the file that PEFT leaves out. */
  readonly ignored: readonly string[];
}

/**
 * @param methods in place of those above
 * @throws PeftRefuses where PEFT would raise an error, or keep fresh values in place of missing ones
 */
export function loadAsPeft(
  files: PeftFiles,
  model: PeftModel,
  methods: Readonly<Record<string, PeftMethod>> = {},
): LoadedModel {
  const load = new Loading(files, model);
  const type = load.text('peft_type');
  const method = methods[type] ?? kPeftMethods[type];
  if (method === undefined) throw new Error(`PEFT has no ${type}`);
  const layers = new Map<string, Forward>(load.targets().map((name) => [name, method(load, name)]));
  return {
    forward: (module, x, inputs = {}) => {
      const own = layers.get(module);
      if (own !== undefined) return own(x, inputs);
      const { weight, bias } = load.linear(module);
      return linear(x, weight, bias);
    },
    ignored: load.ignored(),
  };
}
