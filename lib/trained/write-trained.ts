import type { ModelTrainer } from '../train/model-trainer.js';
import { writeAdapter } from './write-adapter.js';

/**
 * Writes what a trainer has trained as an adapter folder in PEFT's layout, whole or not at all. What rules merged into the base is in
 * it, and the ranks that they removed are not. Call {@link ModelTrainer.finish} before.
 * @example
 * trainer.finish();
 * await writeTrainedAdapter('./adapter', trainer, 'my-org/my-model');
 * @param model name or folder of the base, for `base_model_name_or_path`
 * @throws LowrankError `ERR_DISK_FULL`, `ERR_PATH`; `ERR_UNSUPPORTED` if the method has no folder
 */
export async function writeTrainedAdapter(
  folder: string,
  { adapters, rules, trainer, options }: ModelTrainer,
  model = '',
): Promise<void> {
  trainer.showEvaluated();
  try {
    await writeAdapter({ out: folder, model, train: options }, adapters, rules);
  } finally {
    trainer.showTrained();
  }
}
