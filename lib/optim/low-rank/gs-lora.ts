import type { RefusedSetting } from '../../core/refused-setting.js';
import { defineOptimizer } from '../definition/define.js';
import type { HostUpdate } from '../definition/definition.js';
import { adamCheck, negative } from '../parts/checks.js';
import { shrinkGroup } from '../parts/group-shrink.js';
import { adamRule } from '../parts/rules.js';

/** Settings of {@link gsLora}. */
export interface GsLoraSettings {
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  /** Weight of the penalty. */
  readonly strength: number;
  /** What makes a group: `block` of the decoder, `layer` (both factors), or `factor`. */
  readonly group: string;
  /** Steps without the penalty, at the beginning. */
  readonly warmup: number;
}

const kGroups = ['block', 'layer', 'factor'];

type Update = HostUpdate<GsLoraSettings, 'm' | 'v'>;

/** The block of `model.layers.3.mlp.down_proj.loraA` is `model.layers.3`. */
function groupOf({ parameter: { name, layer = name }, settings }: Update): string {
  if (settings.group === 'factor') return name;
  if (settings.group === 'layer') return layer;
  return /^.*?\.\d+(?=\.)/.exec(layer)?.[0] ?? layer;
}

function step(u: Update): void {
  adamRule(u, u.state.m, u.state.v, u.settings, { decay: 'before' });
}

function shrink(updates: readonly Update[]): void {
  const groups = new Map<string, Update[]>();
  for (const update of updates) {
    const key = groupOf(update);
    const known = groups.get(key);
    if (known === undefined) groups.set(key, [update]);
    else known.push(update);
  }
  for (const group of groups.values()) {
    const [{ lr, settings, step: at }] = group as [Update, ...Update[]];
    if (at <= settings.warmup) continue;
    shrinkGroup(
      group.map(({ p }) => p),
      lr * settings.strength,
    );
  }
}

function check(settings: GsLoraSettings): RefusedSetting | undefined {
  const { group, warmup } = settings;
  if (!kGroups.includes(group)) {
    return ['group', `one of ${kGroups.join(', ')}`, JSON.stringify(group)];
  }
  if (!Number.isInteger(warmup) || warmup < 0) {
    return ['warmup', 'an integer of at least 0', String(warmup)];
  }
  return negative(settings, 'strength') ?? adamCheck(settings);
}

/**
 * The group lasso of GS-LoRA (Zhao and others, Continual Forgetting for Pre-trained Vision Models, 2024, arXiv:2403.11530):
 * whole groups of adapters become exactly zero. The penalty is strength · Σ ‖[A, B] of the group‖, as in the authors'
 * program, whose subgradient this optimiser replaces by the proximal step after AdamW:
 *
 *   group ← max(0, 1 − lr · strength / ‖group‖) · group
 */
export const gsLora = defineOptimizer<GsLoraSettings, 'm' | 'v'>({
  optimizer: 'gs-lora',
  reference:
    'Zhao and others, Continual Forgetting for Pre-trained Vision Models, 2024, arXiv:2403.11530',
  defaults: {
    ...{ beta1: 0.9, beta2: 0.999, eps: 1e-8 },
    ...{ strength: 0.1, group: 'block', warmup: 0 },
  },
  check,
  notNegative: ['v'],
  state: ({ tensor: { shape } }) => ({ m: shape, v: shape }),
  updatePairs: (pairs) => {
    const both = pairs.flatMap(({ a, b }) => [a, b]).filter(({ g }) => g.length > 0);
    for (const update of both) step(update);
    shrink(both);
  },
  update: (u) => {
    step(u);
    shrink([u]);
  },
});
