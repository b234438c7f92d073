/** The public names of this folder. */

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
