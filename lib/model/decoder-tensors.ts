/**
 * Where the tensors of a file go in a decoder, with their shapes.
 */

import type { NormNames } from './config/architecture.js';
import type { AttentionConfig, DecoderConfig, MlpConfig } from './config/decoder-config.js';
import {
  type ExpertLayerPlaces,
  expertNamesOf,
  expertPlaces,
  expertTensors,
} from './expert-tensors.js';
import type { LinearPlace, TensorPlace } from './places.js';
import { architectureNamed } from './read-config.js';

export type { LinearPlace, TensorPlace } from './places.js';

/** The tensors of one block, in the order of the forward pass. */
export interface LayerPlaces {
  readonly attentionNorm: TensorPlace;
  /** q, k and v, or one layer that gives all three. */
  readonly qkv: readonly LinearPlace[];
  /** [headDim] */
  readonly qNorm?: TensorPlace;
  readonly kNorm?: TensorPlace;
  /** [heads] */
  readonly sinks?: TensorPlace;
  readonly attentionOutput: LinearPlace;
  readonly attentionOutputNorm?: TensorPlace;
  readonly mlpNorm: TensorPlace;
  /** Gate and up, or one layer that gives both. */
  readonly gateUp: readonly LinearPlace[];
  readonly down?: LinearPlace;
  /** In place of gate, up and down. */
  readonly experts?: ExpertLayerPlaces;
  readonly mlpOutputNorm?: TensorPlace;
}

/** All tensors of a decoder. */
export interface DecoderPlaces {
  /** [vocabSize, hiddenSize] */
  readonly embedding: TensorPlace;
  readonly layers: readonly LayerPlaces[];
  readonly norm: TensorPlace;
  /** Its weight is the embedding where the head is tied. */
  readonly head: LinearPlace;
}

/** The layer of a weight, by its tensor's name. */
export const moduleOf = (name: string): string => name.replace(/\.weight$/, '');

/**
 * The places of all tensors of a model.
 * @param has says which tensors the files have, where an architecture has several forms
 */
export function decoderPlaces(
  config: DecoderConfig,
  has: (name: string) => boolean = () => false,
): DecoderPlaces {
  const { hiddenSize, vocabSize } = config;
  const { norms, experts } = architectureNamed(config.architecture);
  const names = experts && expertNamesOf(experts, has);
  const embedding = { name: 'model.embed_tokens.weight', shape: [vocabSize, hiddenSize] };
  const head = linear('lm_head', vocabSize, hiddenSize, false);
  return {
    embedding,
    layers: config.layers.map((layer, index) => {
      const prefix = `model.layers.${index}.`;
      return {
        ...attentionPlaces(`${prefix}self_attn.`, layer.attention, hiddenSize),
        ...(names === undefined
          ? mlpPlaces(`${prefix}mlp.`, layer.mlp, hiddenSize)
          : {
              gateUp: [],
              experts: expertPlaces(prefix, layer.mlp, hiddenSize, names, linear),
            }),
        ...normPlaces(prefix, norms, hiddenSize),
      };
    }),
    norm: vector('model.norm', hiddenSize),
    head: config.tieWordEmbeddings ? { ...head, weight: embedding } : head,
  };
}

const vector = (module: string, size: number): TensorPlace => ({
  name: `${module}.weight`,
  shape: [size],
});

function linear(module: string, N: number, K: number, bias: boolean): LinearPlace {
  return {
    module,
    target: module.slice(module.lastIndexOf('.') + 1),
    N,
    K,
    weight: { name: `${module}.weight`, shape: [N, K] },
    ...(bias ? { bias: { name: `${module}.bias`, shape: [N] } } : {}),
  };
}

function attentionPlaces(prefix: string, attention: AttentionConfig, hiddenSize: number) {
  const { heads, kvHeads, headDim, qkvBias, outputBias, headNorms, fusedQkv } = attention;
  const [q, kv] = [heads * headDim, kvHeads * headDim];
  const from = (name: string, N: number) => linear(`${prefix}${name}`, N, hiddenSize, qkvBias);
  return {
    qkv: fusedQkv
      ? [from('qkv_proj', q + 2 * kv)]
      : [from('q_proj', q), from('k_proj', kv), from('v_proj', kv)],
    ...(headNorms
      ? { qNorm: vector(`${prefix}q_norm`, headDim), kNorm: vector(`${prefix}k_norm`, headDim) }
      : {}),
    ...(attention.sinks ? { sinks: { name: `${prefix}sinks`, shape: [heads] } } : {}),
    attentionOutput: linear(`${prefix}o_proj`, hiddenSize, q, outputBias),
  };
}

function mlpPlaces(prefix: string, mlp: MlpConfig, hiddenSize: number) {
  const { intermediateSize: inner, fusedGateUp, bias } = mlp;
  const from = (name: string, N: number) => linear(`${prefix}${name}`, N, hiddenSize, bias);
  return {
    gateUp: fusedGateUp
      ? [from('gate_up_proj', 2 * inner)]
      : [from('gate_proj', inner), from('up_proj', inner)],
    down: linear(`${prefix}down_proj`, hiddenSize, inner, bias),
  };
}

function normPlaces(prefix: string, names: NormNames, hiddenSize: number) {
  const { attention, attentionOutput, mlp, mlpOutput } = names;
  const at = (name: string) => vector(`${prefix}${name}`, hiddenSize);
  return {
    attentionNorm: at(attention),
    mlpNorm: at(mlp),
    ...(attentionOutput === undefined ? {} : { attentionOutputNorm: at(attentionOutput) }),
    ...(mlpOutput === undefined ? {} : { mlpOutputNorm: at(mlpOutput) }),
  };
}

/** The linear layers of a block but those of experts, in the order of the forward pass. */
export function layerLinears(layer: LayerPlaces): readonly LinearPlace[] {
  const { qkv, attentionOutput, gateUp, down } = layer;
  return [...qkv, attentionOutput, ...gateUp, ...(down === undefined ? [] : [down])];
}

/** The names by which PEFT targets the linear layers of the blocks, in the order of the forward pass. */
export function linearTargets(places: DecoderPlaces): readonly string[] {
  return [...new Set(places.layers.flatMap(layerLinears).map(({ target }) => target))];
}

/**
 * Every tensor that a decoder reads with its shape, in the order of the forward pass.
 *
 * Linear weights are [N, K] = [output features, input features], as in the files.
 */
export function tensorShapes(places: DecoderPlaces): Map<string, readonly number[]> {
  const ofLinear = ({ weight, bias }: LinearPlace) => [weight, bias];
  const all = [
    places.embedding,
    ...places.layers.flatMap((layer) => [
      layer.attentionNorm,
      ...layer.qkv.flatMap(ofLinear),
      layer.qNorm,
      layer.kNorm,
      layer.sinks,
      ...ofLinear(layer.attentionOutput),
      layer.attentionOutputNorm,
      layer.mlpNorm,
      ...layer.gateUp.flatMap(ofLinear),
      ...(layer.down === undefined ? [] : ofLinear(layer.down)),
      ...(layer.experts === undefined ? [] : expertTensors(layer.experts)),
      layer.mlpOutputNorm,
    ]),
    places.norm,
    ...ofLinear(places.head),
  ];
  return new Map(all.flatMap((place) => (place === undefined ? [] : [[place.name, place.shape]])));
}
