/** The public names of this folder. */

export { type ChoiceLogits, choiceLogits } from './laplace/choice-logits.js';
export { type LabelledPass, type LaplaceOptions, laplace } from './laplace/laplace.js';
export type { LogitsPass } from './laplace/passes.js';
export { LaplacePosterior, type LaplacePrediction } from './laplace/posterior.js';
export { type PredictiveOptions, predictiveProbabilities } from './laplace/predictive.js';
export { type GroupLasso, groupLasso, shrinkGroups } from './layers/group-lasso.js';
export { leadingLayers } from './layers/leading-layers.js';
export { InputMoments } from './layers/moments.js';
export {
  type LayerStatistics,
  type ObservedStatistic,
  type ObserveOptions,
  observe,
} from './layers/observe.js';
export { Sensitivities, type SensitivityOptions, tripletScores } from './layers/sensitivity.js';
export { type LayerUpdate, outputSquares, updateSensitivity } from './layers/update.js';
export {
  type ExamplesPass,
  PerExampleGradients,
  type PerExampleOptions,
  perExampleGradients,
} from './per-example/gradients.js';
export {
  noiseForPrivacy,
  type PrivacyGuarantee,
  type PrivacySums,
  type PrivacyTarget,
  type PrivateRun,
  privacyAccountant,
} from './privacy/accountant.js';
