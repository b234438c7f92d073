import { fail, wrongType } from '../../core/errors.js';
import { scope } from '../../core/scope.js';
import type { Tensor } from '../../core/tensor.js';
import { ownFields, readOptions } from '../../core/validate.js';
import { LoraAdapter } from '../../ops/lora/lora-adapter.js';
import type { Adapter } from '../definition/adapter.js';
import type { AdapterPlace } from '../definition/method.js';
import { arrow, arrowExperts } from '../methods/mixture/arrow.js';
import type { AlphaConfig } from '../parts/scaling.js';
import { adapterFromPeft } from './peft.js';
import type { PeftFolder } from './peft-tensors.js';

const kOp = 'arrowFromPeft';

/** The folders of an Arrow model of PEFT. The router's folder has none of the factors. */
export interface ArrowFolders {
  /** What was saved for the router: a config with an `arrow_config`. */
  router: Pick<PeftFolder, 'config'>;
  /** Separately trained LoRA, one folder each. */
  experts: readonly PeftFolder[];
  /** LoRA of general knowledge, which is subtracted from the experts if the config sets `use_gks`. */
  general?: readonly PeftFolder[];
}

/** The settings of an `arrow_config`. Missing fields have PEFT's defaults. @throws ERR_TYPE, ERR_VALUE */
function readConfig(router: Pick<PeftFolder, 'config'>) {
  const { config } = ownFields(kOp, router);
  const given = config?.arrow_config as Readonly<Record<string, unknown>> | null | undefined;
  if (typeof given !== 'object' || given === null) {
    throw wrongType(kOp, 'router.config.arrow_config', 'an object', given);
  }
  const count = (names: unknown) => (Array.isArray(names) && names.length > 0 ? names.length : 0);
  return {
    topK: Number(given.top_k ?? 3),
    temperature: Number(given.router_temperature ?? 1),
    seed: given.rng_seed === undefined || given.rng_seed === null ? null : Number(given.rng_seed),
    subtracts: given.use_gks === true,
    experts: count(given.task_adapter_names),
    general: count(given.gks_adapter_names),
  };
}

/** The LoRA of one module from each folder. */
function loraOf(
  name: string,
  folders: unknown,
  wanted: number,
  module: string,
  place: AdapterPlace,
): LoraAdapter[] {
  if (!Array.isArray(folders)) throw wrongType(kOp, name, 'an array of folders', folders);
  if (wanted > 0 && folders.length !== wanted) {
    fail('ERR_VALUE', kOp, name, `${wanted} folders, as arrow_config names`, `${folders.length}`);
  }
  return folders.map((folder: PeftFolder, i) => {
    const { method, config, parameters } = adapterFromPeft(folder, module, place);
    const { kernel, embedding } = config as { kernel?: readonly number[]; embedding?: boolean };
    if (method !== 'lora' || kernel?.length !== 0 || embedding === true) {
      const what = method === 'lora' ? 'lora of a layer that is not linear' : method;
      fail('ERR_UNSUPPORTED', kOp, `${name}[${i}]`, 'lora of a linear layer', what);
    }
    const { loraAlpha, rslora } = config as AlphaConfig;
    const { loraA, loraB, loraBias } = parameters as Record<'loraA' | 'loraB', Tensor> & {
      loraBias?: Tensor;
    };
    const bias = loraBias === undefined ? {} : { loraBias };
    return new LoraAdapter({ loraA, loraB, loraAlpha, rslora, ...bias });
  });
}

/**
 * One module of a PEFT Arrow model: the factors of its experts from their own folders, routed as the router's `arrow_config`
 * says, with the prototypes that PEFT finds for its `rng_seed` (without one PEFT starts at random, and the exact prototypes
 * are used). For inference: in training, PEFT applies dropout to the routed sum, but `arrow` does not.
 * @param module e.g. `model.layers.0.self_attn.q_proj`
 * @throws ERR_VALUE if the number of folders differs from the config, for `use_gks` without general ones or the reverse ·
 * ERR_UNSUPPORTED for an expert that is not plain LoRA of a linear layer, or has loraBias · otherwise as
 * {@link adapterFromPeft} and {@link arrowExperts}
 * @example
 * const folders = { router: readAdapterFolder('./router'), experts: ['./maths', './code'].map(readAdapterFolder) };
 * const adapter = arrowFromPeft(folders, 'model.layers.0.mlp.up_proj', { inFeatures, outFeatures });
 */
export function arrowFromPeft(folders: ArrowFolders, module: string, place: AdapterPlace): Adapter {
  const {
    router,
    experts,
    general = [],
  } = readOptions(kOp, folders, { router: true, experts: true, general: true }) as ArrowFolders;
  const config = readConfig(router);
  if (config.subtracts !== general.length > 0) {
    const expected = config.subtracts ? 'given (use_gks is true)' : 'none (use_gks is false)';
    fail('ERR_VALUE', kOp, 'general', expected, `${general.length}`);
  }
  return scope(() => {
    const { tensors, settings } = arrowExperts(
      loraOf('experts', experts, config.experts, module, place),
      {
        general: loraOf('general', general, config.general, module, place),
        ...(config.seed === null ? {} : { iteration: { seed: config.seed } }),
      },
    );
    const { topK, temperature } = config;
    return arrow.from(tensors, { ...settings, topK, temperature }) as unknown as Adapter;
  });
}
