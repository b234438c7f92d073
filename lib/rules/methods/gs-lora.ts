import { defineRule } from '../definition/define.js';
import type { RuleLayer } from '../definition/run.js';
import { noSteps, stepsOf } from '../parts/steps.js';

/** Settings of {@link gsLora}. */
export interface GsLoraSettings {
  /** Weight of the penalty. */
  readonly weight: number;
  /** Steps without it; below 1 a share of the run's. */
  readonly initial: number;
}

/**
 * A group lasso: the adapters of one block of the model are a group g, and the loss has `weight · Σ ‖θ_g‖`. It is taken by its
 * proximal step after that of the optimiser, `θ_g ← θ_g · max(0, 1 − lr · weight / ‖θ_g‖)`, which ends at 0 for blocks that the
 * task does not need. The authors adapt the feed-forward layers alone (`--targets gate_proj,up_proj,down_proj`).
 */
export const gsLora = defineRule<GsLoraSettings>({
  rule: 'gs-lora',
  reference:
    'Zhao et al., Continual Forgetting for Pre-trained Vision Models, 2024, arXiv:2403.11530',
  defaults: { weight: 1, initial: 0.1 },
  check: ({ weight, initial }) =>
    (weight >= 0 ? undefined : (['weight', 'at least 0', String(weight)] as const)) ??
    noSteps('initial', initial),
  after: ({ step, steps, lr, layers, settings: { weight, initial } }) => {
    if (step <= stepsOf(initial, steps)) return;
    for (const group of groupsOf(layers)) {
      const parameters = group.flatMap((layer) => Object.values(layer.parameters));
      const all = parameters.map((parameter) => parameter.values());
      let sum = 0;
      for (const values of all) for (const value of values) sum += value * value;
      const keep = sum === 0 ? 0 : Math.max(0, 1 - (lr * weight) / Math.sqrt(sum));
      for (const [i, parameter] of parameters.entries()) {
        parameter.write((all[i] as Float32Array).map((value) => value * keep));
      }
    }
  },
});

/** Layers by the number of their block, the first one in their names; a layer without a number is a group. */
function groupsOf(layers: readonly RuleLayer[]): Iterable<readonly RuleLayer[]> {
  const groups = new Map<string, RuleLayer[]>();
  for (const layer of layers) {
    const block = /(?:^|\.)(\d+)(?:\.|$)/.exec(layer.module)?.[1] ?? layer.module;
    groups.set(block, [...(groups.get(block) ?? []), layer]);
  }
  return groups.values();
}
