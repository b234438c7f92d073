import { fail, wrongType } from '../../core/errors.js';
import type { LayerSize } from '../definition/maker.js';

const show = ({ inFeatures, outFeatures }: LayerSize): string => `${inFeatures} to ${outFeatures}`;

/**
 * The layers of a folder that the caller gave, including the module's.
 * @throws ERR_TYPE · ERR_VALUE if the module is missing or of another size
 */
export function layersOf(
  op: string,
  layers: unknown,
  module: string,
  size: LayerSize,
): ReadonlyMap<string, LayerSize> | undefined {
  if (layers === undefined) return undefined;
  if (!(layers instanceof Map)) throw wrongType(op, 'folder.layers', 'a Map', layers);
  for (const [name, each] of layers) {
    const { inFeatures, outFeatures } = (each ?? {}) as Partial<LayerSize>;
    if (!Number.isInteger(inFeatures) || !Number.isInteger(outFeatures)) {
      const expected = 'of inFeatures and outFeatures';
      throw wrongType(op, `folder.layers of ${String(name)}`, expected, inFeatures);
    }
  }
  const own = layers.get(module) as LayerSize | undefined;
  if (own === undefined) fail('ERR_VALUE', op, 'folder.layers', `with ${module}`, 'no such module');
  if (show(own) !== show(size)) {
    fail('ERR_VALUE', op, `folder.layers of ${module}`, `of ${show(size)} features`, show(own));
  }
  return layers as ReadonlyMap<string, LayerSize>;
}

/** The largest sizes. */
export function largestOf(layers: ReadonlyMap<string, LayerSize>): LayerSize {
  const all = [...layers.values()];
  return {
    inFeatures: Math.max(...all.map(({ inFeatures }) => inFeatures)),
    outFeatures: Math.max(...all.map(({ outFeatures }) => outFeatures)),
  };
}

/** Reports that the layers must be given. @throws ERR_VALUE */
export function needsLayers(what: string): never {
  const expected = `given (the modules in the order of the model, with their sizes: ${what})`;
  fail('ERR_VALUE', 'adapterFromPeft', 'folder.layers', expected, 'none');
}

/**
 * Sorts modules into the order of the model, if their names differ only in numbers: `layers.2.mlp` before
 * `layers.10.mlp`.
 * @returns undefined if names differ in more than that, because the order is then unknown
 */
export function inOrder(modules: readonly string[]): readonly string[] | undefined {
  const kinds = new Set(modules.map((name) => name.replace(/\d+/g, '#')));
  if (kinds.size > 1) return undefined;
  const numbers = (name: string): number[] => (name.match(/\d+/g) ?? []).map(Number);
  return [...modules].sort((a, b) => {
    const [one, other] = [numbers(a), numbers(b)];
    const at = one.findIndex((value, i) => value !== other[i]);
    return at < 0 ? 0 : (one[at] as number) - (other[at] as number);
  });
}
