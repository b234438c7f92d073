import type { Fields } from '../../checkpoint/files/json-file.js';
import { kMaxDim, readSliding, readWindow } from './common.js';

/**
 * The window of each layer of Qwen2 and Qwen3: none while `use_sliding_window` is false, whatever `sliding_window` says;
 * otherwise from layer `max_window_layers` on, unless `layer_types` lists them.
 */
export function readQwenWindows(
  fields: Fields,
  layers: number,
): (layer: number) => number | undefined {
  const uses = fields.boolean('use_sliding_window', false);
  const window = uses ? readWindow(fields, 4096) : undefined;
  const first = fields.integer('max_window_layers', 0, kMaxDim, 28);
  const sliding = readSliding(fields, layers, (layer) => window !== undefined && layer >= first);
  if (window === undefined && sliding.includes(true)) {
    fields.refuse('layer_types', 'without "sliding_attention", since the model has no window');
  }
  return (layer) => (sliding[layer] === true ? window : undefined);
}
