/** A guarantee: of this epsilon, or of what this noise gives. */
export type PrivacyGoal = { readonly delta: number } & (
  | { readonly epsilon: number }
  | { readonly noise: number }
);
