/** The trainers of `lowrank bench --trainer`, in the order of the table. */

import { jaxTrainer } from './jax.js';
import { nanogptTrainer } from './nanogpt.js';
import { tfjsLayersTrainer } from './tfjs-layers.js';
import { torchNanogptTrainer } from './torch-nanogpt.js';
import type { Trainer } from './trainer.js';

export const kTrainers: readonly Trainer[] = [
  tfjsLayersTrainer,
  nanogptTrainer,
  jaxTrainer,
  torchNanogptTrainer,
];
