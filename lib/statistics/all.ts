/** The public names of this folder. */

export { type GroupLasso, groupLasso, shrinkGroups } from './group-lasso.js';
export { type ChoiceLogits, choiceLogits } from './laplace/choice-logits.js';
export { type LabelledPass, type LaplaceOptions, laplace } from './laplace/laplace.js';
export type { LogitsPass } from './laplace/passes.js';
export { LaplacePosterior, type LaplacePrediction } from './laplace/posterior.js';
export { type PredictiveOptions, predictiveProbabilities } from './laplace/predictive.js';
export { leadingLayers } from './leading-layers.js';
export { InputMoments } from './moments.js';
export {
  type LayerStatistics,
  type ObservedStatistic,
  type ObserveOptions,
  observe,
} from './observe.js';
export {
  type ExamplesPass,
  PerExampleGradients,
  type PerExampleOptions,
  perExampleGradients,
} from './per-example.js';
export {
  noiseForPrivacy,
  type PrivacyGuarantee,
  type PrivacySums,
  type PrivacyTarget,
  type PrivateRun,
  privacyAccountant,
} from './privacy/accountant.js';
export { Sensitivities, type SensitivityOptions, tripletScores } from './sensitivity.js';
export { type LayerUpdate, outputSquares, updateSensitivity } from './update.js';
