/** The public names of this folder. */

export { type GroupLasso, groupLasso, shrinkGroups } from './group-lasso.js';
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
