import { layerLinears, linearTargets } from '../model/decoder-tensors.js';
import type { ModelFiles } from '../model/model-files.js';
import { adamw } from '../optim/elementwise/adamw.js';
import { aloneOf, requireRules } from '../rules/run/requirements.js';
import type { FinetuneOptions } from './finetune-files.js';

/**
 * Rejects rules that do not fit each other, the model or the settings, before weights are read.
 * @throws LowrankError as {@link requireRules}
 */
export function requireRunRules(
  model: ModelFiles,
  { adapter, train, privacy }: FinetuneOptions,
): void {
  const { rules = [], optimizer = adamw, steps, warmup } = train;
  const { method, settings, start, targets } = adapter;
  const wanted = targets === 'all-linear' ? linearTargets(model.places) : targets;
  const linears = model.places.layers.flatMap(layerLinears);
  const stored = linears.find(
    ({ target, module }) => wanted.includes(target) && model.layoutOf(module) !== undefined,
  );
  requireRules(
    'finetune',
    rules,
    { steps, warmup },
    {
      method: method.method,
      config: settings,
      replacingStart: start?.start.replacesBase ? start.start.start : undefined,
      optimizer,
      alone: aloneOf({ ...train, ...(privacy && { privacy }) }),
      experts: wanted.some((name) => linears.every(({ target }) => target !== name)),
      quantized:
        stored === undefined ? undefined : [stored.module, String(model.layoutOf(stored.module))],
    },
  );
}
