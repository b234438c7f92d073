import type { RuleRun } from '../definition/run.js';

/**
 * Merges `share` of each layer's update into the base. The adapter keeps the rest: with nothing left it begins anew, otherwise
 * its loraB is scaled. The optimiser starts anew.
 */
export function mergeAndRestart(run: RuleRun<object>, share = 1): void {
  for (const [i, layer] of run.layers.entries()) {
    layer.merge(share);
    if (share === 1) {
      const fresh = layer.initial(run.seedOf('restart', run.step, i));
      for (const [part, parameter] of Object.entries(layer.parameters)) {
        parameter.write(fresh[part] as Float32Array);
      }
      continue;
    }
    const { loraB } = layer.parameters;
    loraB?.write(loraB.values().map((value) => value * (1 - share)));
  }
  run.optimizer.restart();
}
