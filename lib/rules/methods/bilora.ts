import { defineRule } from '../definition/define.js';
import type { RuleParameter } from '../definition/run.js';
import { hypergradient } from '../parts/bilevel.js';
import { gateOf } from '../parts/gates.js';
import { addOrthogonality } from '../parts/orthogonal.js';
import { noSplit, trainingPart, validationPart } from '../parts/splits.js';

/** Settings of {@link bilora}. */
export interface BiloraSettings {
  /** Share of the sequences that chooses the singular values, in tenths. */
  readonly validation: number;
  /** Weight of the penalty that keeps the singular vectors orthonormal. */
  readonly orthogonal: number;
  /** Do gradients of the singular values look through a step of the singular vectors? It takes three passes more, not one. */
  readonly unrolled: boolean;
}

/**
 * Two levels against overfitting: the vectors (`loraA`, `loraB`) are trained on one part of the sequences, and the values between
 * them (`loraE`) on the other, by the gradient of the loss after a step of the vectors.
 */
export const bilora = defineRule<BiloraSettings>({
  rule: 'bilora',
  reference:
    'Qiang et al., BiLoRA: A Bi-level Optimization Framework for Overfitting-Resilient Low-Rank Adaptation of Large Pre-trained Models, 2024, arXiv:2403.13037',
  defaults: { validation: 0.2, orthogonal: 0.1, unrolled: true },
  claims: ['step', 'data'],
  adapters: ['adalora'],
  check: ({ validation, orthogonal }) =>
    noSplit('validation', validation) ??
    (orthogonal >= 0 ? undefined : ['orthogonal', 'at least 0', String(orthogonal)]),
  data: ({ settings }) => trainingPart(settings.validation),
  gradients: (run) => {
    const { layers, lr, settings, parameters } = run;
    addOrthogonality(run, settings.orthogonal);
    const upper = layers.map(gateOf);
    const values: ReadonlySet<RuleParameter> = new Set(upper);
    const found = hypergradient(run, {
      lower: [...parameters.values()].filter((parameter) => !values.has(parameter)),
      upper,
      training: trainingPart(settings.validation),
      validation: validationPart(settings.validation),
      rate: settings.unrolled ? lr : 0,
    });
    for (const parameter of upper) parameter.gradient = found.get(parameter.name);
  },
});
