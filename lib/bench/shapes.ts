/**
 * Sizes by name: the linear layers of real models.
 */

/** A linear layer: y [M, N] = x [M, K] · wᵀ. */
export interface Layer {
  readonly name: string;
  readonly K: number;
  readonly N: number;
}

/** Hidden, intermediate and key/value width of a Llama-style block. */
function block(hidden: number, intermediate: number, keyValue: number): readonly Layer[] {
  return [
    { name: 'q', K: hidden, N: hidden },
    { name: 'k', K: hidden, N: keyValue },
    { name: 'gate', K: hidden, N: intermediate },
    { name: 'down', K: intermediate, N: hidden },
  ];
}

/** Layers of the same size are listed once: o is q, v is k, up is gate. */
export const kModels: Readonly<Record<string, readonly Layer[]>> = {
  'Llama-3.2-1B': block(2048, 8192, 512),
  'Llama-3-8B': block(4096, 14336, 1024),
  'Qwen2.5-0.5B': block(896, 4864, 128),
  bundled: block(192, 512, 64),
};

/**
 * Layers by `MODEL` or `MODEL:LAYER`; case does not matter.
 * @returns `undefined` if there is no such name
 */
export function layersOf(text: string): { model: string; layers: readonly Layer[] } | undefined {
  const [name = '', layer] = text.toLowerCase().split(':');
  const model = Object.keys(kModels).find((key) => key.toLowerCase() === name);
  if (model === undefined) return undefined;
  const layers = (kModels[model] as readonly Layer[]).filter(
    (row) => layer === undefined || row.name === layer,
  );
  return layers.length === 0 ? undefined : { model, layers };
}
