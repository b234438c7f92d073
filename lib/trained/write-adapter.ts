/** The adapter folder of a run. */

import type { Adapter } from '../adapters/definition/adapter.js';
import { type AlphaConfig, exactly } from '../adapters/parts/scaling.js';
import { type ExpertsParameter, expertsToPeft } from '../adapters/peft/experts-to-peft.js';
import { writeAdapterFolder } from '../adapters/peft/folder.js';
import type { PeftFolder } from '../adapters/peft/peft-tensors.js';
import { writePeftAdapter } from '../checkpoint/peft/peft.js';
import { readsOutputs } from '../model/expert-adapters.js';
import type { RuleEngine } from '../rules/run/rule-engine.js';
import type { AdapterSet } from '../train/adapter-set.js';
import { type WrittenAdapters, withKeptRanks } from './kept-ranks.js';
import { type LoraModule, loraModule } from './lora-modules.js';

/** What a folder needs of the options of a run. */
export interface WriteOptions {
  /** The folder. */
  readonly out: string;
  /** Name or folder of the base. */
  readonly model: string;
  readonly train: { readonly steps: number };
}

/**
 * Writes the adapter folder atomically, in PEFT's layout.
 * @param rules of the run: what they merged into the base is in the folder, and the ranks that they removed are not
 * @throws LowrankError `ERR_DISK_FULL`, `ERR_PATH`
 */
export async function writeAdapter(
  options: WriteOptions,
  adapters: AdapterSet,
  rules?: RuleEngine,
): Promise<void> {
  const kept = withKeptRanks(adapters, rules?.kept ?? new Map());
  try {
    await writeKept(options, adapters, kept, rules);
  } finally {
    for (const adapter of kept.made) adapter.dispose();
  }
}

async function writeKept(
  options: WriteOptions,
  adapters: AdapterSet,
  { layers, byModule }: WrittenAdapters,
  rules: RuleEngine | undefined,
): Promise<void> {
  const { config, targets } = adapters;
  if (config.method.method !== 'lora') {
    const { method, definition } = config.method;
    await writeAdapterFolder(options.out, byModule, {
      base_model_name_or_path: options.model,
      ...(definition.peft?.wholeTargets ? {} : { target_modules: [...targets].sort() }),
      ...(method === 'adalora' ? { total_step: options.train.steps } : {}),
      task_type: 'CAUSAL_LM',
    });
    return;
  }
  if (adapters.experts.size > 0) {
    await writeAdapterFolder(options.out, await expertsFolder(adapters), {
      base_model_name_or_path: options.model,
      task_type: 'CAUSAL_LM',
    });
    return;
  }
  const settings = { ...config.method.definition.defaults, ...config.settings };
  const { rslora, dropout, loraBias } = settings as unknown as AlphaConfig & {
    readonly loraBias: boolean;
  };
  const modules = layers.map((layer) =>
    loraModule(adapters, layer, loraBias, rules?.merges.factors.get(layer.place.module)),
  );
  const [first] = modules as [LoraModule, ...LoraModule[]];
  const others = modules.filter(({ r }) => r !== first.r);
  writePeftAdapter(options.out, {
    config: {
      r: first.r,
      loraAlpha: first.loraAlpha,
      rankPattern: new Map(others.map(({ module, r }) => [exactly(module), r])),
      alphaPattern: new Map(others.map(({ module, loraAlpha }) => [exactly(module), loraAlpha])),
      useRslora: rslora,
      loraDropout: dropout,
      loraBias,
      targetModules: targets,
      taskType: 'CAUSAL_LM',
      baseModelNameOrPath: options.model,
      initLoraWeights: config.start?.start.peft ?? true,
    },
    modules,
  });
}

/** LoRA of experts, and of linear layers, as PEFT has both in one folder. */
async function expertsFolder({ experts, byModule }: AdapterSet): Promise<PeftFolder> {
  const modules = new Map<string, ExpertsParameter[]>();
  const made: Adapter[] = [];
  try {
    // PEFT wraps the last parameter of a module first.
    for (const lora of [...experts.values()].reverse()) {
      const { module, parameter } = lora.place;
      const parts = lora.split();
      made.push(...parts);
      const list = modules.get(module) ?? [];
      list.push({ parameter, experts: parts, transposed: readsOutputs(lora.place) });
      modules.set(module, list);
    }
    return await expertsToPeft(new Map([...modules].reverse()), byModule);
  } finally {
    for (const adapter of made) adapter.dispose();
  }
}
