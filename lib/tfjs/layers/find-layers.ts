/** The dense layers of a model, also of models and wrappers inside it. */

import type { LayersModel } from '@tensorflow/tfjs';
import { fail, wrongType } from '../../core/errors.js';
import { type DenseInternals, isDense, type Layer } from './internals.js';

/** Which layers get an adapter: their names, an expression that their names match, or a choice of one's own. */
export type LayerTargets = string | readonly string[] | RegExp | ((layer: Layer) => boolean);

/** A layer that {@link applyLora} left as it is. */
export interface SkippedLayer {
  /** Its name, after those of the models and wrappers around it: `encoder.time_distributed_1`. */
  readonly name: string;
  readonly reason: string;
}

/** A dense layer of a model. */
export interface FoundLayer {
  /** As in {@link SkippedLayer}; PEFT's name of the module. */
  readonly name: string;
  readonly layer: DenseInternals;
}

interface Nested {
  readonly name: string;
  readonly layers?: readonly unknown[];
  readonly layer?: unknown;
  readonly forwardLayer?: unknown;
  readonly backwardLayer?: unknown;
  getClassName(): string;
}

/** Layers without weights that a kernel could be, so that nobody wonders why they were left. */
const kWithoutKernel = ['InputLayer', 'Activation', 'Dropout', 'Flatten', 'Reshape'];

/**
 * @param targets default: every dense layer
 * @throws TypeError `ERR_TYPE` · LowrankError `ERR_VALUE` if a name is that of no layer, or no layer fits
 */
export function findLayers(
  op: string,
  model: LayersModel,
  targets: LayerTargets | undefined,
): { found: FoundLayer[]; skipped: SkippedLayer[] } {
  const chosen = choice(op, targets);
  const found: FoundLayer[] = [];
  const skipped: SkippedLayer[] = [];
  const names: string[] = [];
  const seen = new Set<unknown>();
  const visit = (value: unknown, outer: string, wrapped: boolean): void => {
    const layer = value as Nested;
    const name = wrapped ? outer : outer === '' ? layer.name : `${outer}.${layer.name}`;
    if (!wrapped) names.push(name);
    if (seen.has(layer)) return;
    seen.add(layer);
    if (isDense(value)) {
      const reason = reasonAgainst(value);
      if (!chosen(name, value as unknown as Layer)) skipped.push({ name, reason: 'not a target' });
      else if (reason !== undefined) skipped.push({ name, reason });
      else found.push({ name, layer: value });
      return;
    }
    const kind = layer.getClassName();
    if (Array.isArray(layer.layers)) {
      for (const inner of layer.layers) visit(inner, name, false);
    } else if (kind === 'Bidirectional') {
      const reason = 'its recurrent cells multiply inside a loop of TensorFlow.js';
      skipped.push({ name, reason });
    } else if (layer.layer !== null && typeof layer.layer === 'object') {
      visit(layer.layer, name, true);
    } else if (!kWithoutKernel.includes(kind)) {
      const has =
        kind === 'LoraDense' ? 'it has an adapter already' : `a ${kind} is not a dense layer`;
      skipped.push({ name, reason: has });
    }
  };
  for (const layer of model.layers) visit(layer, '', false);
  const wanted = typeof targets === 'string' ? [targets] : Array.isArray(targets) ? targets : [];
  for (const name of wanted) {
    if (names.includes(name)) continue;
    fail('ERR_VALUE', op, 'targets', `names of layers (${names.join(', ')})`, JSON.stringify(name));
  }
  if (found.length === 0) {
    const reasons =
      skipped.map(({ name, reason }) => `${name}: ${reason}`).join('; ') || 'no layers';
    fail('ERR_VALUE', op, 'model', 'with a dense layer that is a target', reasons);
  }
  return { found, skipped };
}

/** Why a dense layer cannot get an adapter. */
function reasonAgainst(layer: DenseInternals): string | undefined {
  if (!layer.built || !layer.kernel) return 'it is not built';
  if (Object.hasOwn(layer, 'call')) return 'its call was replaced';
  if (layer.kernel.dtype !== 'float32') return `its kernel is ${layer.kernel.dtype}`;
  return undefined;
}

function choice(op: string, targets: unknown): (name: string, layer: Layer) => boolean {
  if (targets === undefined) return () => true;
  if (typeof targets === 'string') return (name) => name === targets;
  if (targets instanceof RegExp) return (name) => name.search(targets) >= 0;
  if (typeof targets === 'function') return (_, layer) => targets(layer) === true;
  if (Array.isArray(targets) && targets.every((name) => typeof name === 'string')) {
    return (name) => targets.includes(name);
  }
  throw wrongType(op, 'targets', 'a name, an array of names, a RegExp or a function', targets);
}
