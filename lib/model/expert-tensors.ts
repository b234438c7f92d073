/** Where the experts of a block stand in the files. */

import type { ExpertNames } from './config/architecture.js';
import type { MlpConfig } from './config/decoder-config.js';
import type { LinearPlace, TensorPlace } from './places.js';

/** One linear layer of all experts: expert e has the rows e · N to e · N + N - 1 of w [E · N, K]. */
export interface ExpertsPlace {
  /** `model.layers.0.mlp.experts`, by which PEFT names it whatever the file calls it. */
  readonly module: string;
  /** Of the module: `gate_up_proj`. */
  readonly parameter: 'gate_up_proj' | 'down_proj';
  readonly E: number;
  readonly N: number;
  readonly K: number;
  readonly stored:
    | {
        readonly form: 'each';
        /** By expert: matrices of K columns, one below another. */
        readonly parts: readonly (readonly TensorPlace[])[];
      }
    | {
        readonly form: 'stacked';
        /** [E, N, K], or transposed [E, K, N]. */
        readonly tensor: TensorPlace;
        readonly transposed: boolean;
      };
  /** [E, N] */
  readonly bias?: TensorPlace;
}

/** The experts of one block. */
export interface ExpertLayerPlaces {
  /** Its rows are the experts. */
  readonly router: LinearPlace;
  readonly gateUp: ExpertsPlace;
  readonly down: ExpertsPlace;
}

/** Which of the forms the files have, by the names of their tensors; the first where none is found. */
export function expertNamesOf(
  forms: readonly [ExpertNames, ...ExpertNames[]],
  has: (name: string) => boolean,
): ExpertNames {
  const found = forms.find(({ stored }) => {
    const module = `model.layers.0.${stored.module}`;
    return stored.form === 'each'
      ? has(`${module}.0.${stored.down}.weight`)
      : has(`${module}.down_proj`) || has(`${module}.down_proj_blocks`);
  });
  return found ?? forms[0];
}

/**
 * @param prefix `model.layers.0.`
 * @param linear makes the place of a linear layer
 */
export function expertPlaces(
  prefix: string,
  { intermediateSize: inner, bias, experts }: MlpConfig,
  hiddenSize: number,
  names: ExpertNames,
  linear: (module: string, N: number, K: number, bias: boolean) => LinearPlace,
): ExpertLayerPlaces {
  const E = experts?.count ?? 0;
  const { stored } = names;
  const at = `${prefix}${stored.module}`;
  const place = (
    parameter: ExpertsPlace['parameter'],
    N: number,
    K: number,
    parts: readonly string[],
  ): ExpertsPlace => ({
    module: `${prefix}mlp.experts`,
    parameter,
    E,
    N,
    K,
    stored:
      stored.form === 'each'
        ? {
            form: 'each',
            parts: Array.from({ length: E }, (_, e) =>
              parts.map((part) => ({
                name: `${at}.${e}.${part}.weight`,
                shape: [N / parts.length, K],
              })),
            ),
          }
        : {
            form: 'stacked',
            tensor: {
              name: `${at}.${parameter}`,
              shape: stored.transposed ? [E, K, N] : [E, N, K],
            },
            transposed: stored.transposed,
          },
    ...(bias ? { bias: { name: `${at}.${parameter}_bias`, shape: [E, N] } } : {}),
  });
  const each = stored.form === 'each' ? stored : { gate: '', up: '', down: '' };
  return {
    router: linear(`${prefix}${names.router}`, E, hiddenSize, experts?.routerBias ?? false),
    gateUp: place('gate_up_proj', 2 * inner, hiddenSize, [each.gate, each.up]),
    down: place('down_proj', hiddenSize, inner, [each.down]),
  };
}

/** Every tensor of the experts with its shape as the files have it. */
export function expertTensors({ router, gateUp, down }: ExpertLayerPlaces): readonly TensorPlace[] {
  const of = ({ stored, bias }: ExpertsPlace): readonly TensorPlace[] => [
    ...(stored.form === 'each' ? stored.parts.flat() : [stored.tensor]),
    ...(bias === undefined ? [] : [bias]),
  ];
  const { weight, bias } = router;
  return [weight, ...(bias === undefined ? [] : [bias]), ...of(gateUp), ...of(down)];
}

/** [E · N, K] of the experts that a file holds as one tensor of this name; undefined if there are none. */
export function expertsShape(
  layers: readonly { readonly experts?: ExpertLayerPlaces }[],
  name: string,
): readonly number[] | undefined {
  for (const { experts } of layers) {
    for (const place of experts === undefined ? [] : [experts.gateUp, experts.down]) {
      if (place.stored.form !== 'stacked' || place.stored.tensor.name !== name) continue;
      return [place.E * place.N, place.K];
    }
  }
  return undefined;
}
