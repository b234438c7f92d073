/** What the library exports of training. */

export {
  type AdaptedLayer,
  type AdapterConfig,
  AdapterSet,
  type AdapterStart,
  type Targets,
  type TrainedMethod,
} from './adapter-set.js';
export { CapturedTraining, type CaptureStepOptions } from './captured-training.js';
export { memoryOfRun, type RunMemory, type RunSize } from './memory.js';
export { ModelTrainer, type StepResult, type TrainOptions } from './model-trainer.js';
export type { PrivateSteps } from './private-step.js';
export type { SequencePart } from './sequence-order.js';
export type { PassPlace, PassResult, TrainPass } from './train-pass.js';
export type { TrainStep } from './train-step.js';
export { Trainer, type TrainerOptions } from './trainer.js';
