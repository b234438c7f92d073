/** A linear layer with LoRA as a segment: y = x · dequant(w)ᵀ + bias + scaling · (x · loraAᵀ) · loraBᵀ. */

import { fail } from '../core/errors.js';
import { checkDropout, checkFinite, readOptions } from '../core/validate.js';
import {
  type BaseWeight,
  LoraAdapter,
  type LoraGradient,
  type LoraSaved,
  loraBackward,
  loraForward,
  type Tensor,
} from '../index.js';
import type { JaxArray } from './jax.js';
import {
  checkPath,
  type LayerCall,
  type LayerGradients,
  type Segment,
  type SegmentLayer,
  type Shapes,
  segment,
} from './segment.js';
import { type Frozen, frozenOperands, type WeightOptions } from './weights.js';

/** Options of {@link loraLinear}. */
export interface LoraLinearOptions extends WeightOptions {
  /** [N]. A path in `params` is trained; an array of jax-js (consumed) or a tensor is frozen. */
  readonly bias?: string | JaxArray | Tensor;
  /** Path in `params` of the factor [r, K], for instance `'layers.0.loraA'`. */
  readonly loraA: string;
  /** Path in `params` of the factor [N, r]. */
  readonly loraB: string;
  /** scaling = loraAlpha / r (rslora: / sqrt(r)). */
  readonly loraAlpha: number;
  /** Rank-stabilised scaling; default false. */
  readonly rslora?: boolean;
  /** Probability that an element of the adapter's input is dropped in training; default 0. It needs a seed. */
  readonly dropout?: number;
}

/**
 * A linear layer with LoRA over a frozen weight, as a part of a {@link chain}.
 *
 *   y = x · wᵀ + bias + scaling · (x · loraAᵀ) · loraBᵀ
 *
 * The weight moves to this library's memory once, here. The factors stay in `params`: the layer names them by
 * their paths, and their gradients are at the same paths.
 * @throws TypeError `ERR_TYPE` · LowrankError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE`, `ERR_FORMAT`, `ERR_DISPOSED`,
 *   `ERR_OOM`. Only `ERR_OOM` is thrown after an array was consumed
 * @example
 * const layer = loraLinear({ w, loraA: 'a', loraB: 'b', loraAlpha: 16, format: 'nf4' });
 */
export function loraLinear(options: LoraLinearOptions): Segment {
  const op = 'jax.loraLinear';
  const given = readOptions(op, options, {
    w: true,
    format: true,
    blocksize: true,
    doubleQuant: true,
    device: true,
    bias: true,
    loraA: true,
    loraB: true,
    loraAlpha: true,
    rslora: true,
    dropout: true,
  });
  const loraA = checkPath(op, 'loraA', given.loraA);
  const loraB = checkPath(op, 'loraB', given.loraB);
  const loraAlpha = checkFinite(op, 'loraAlpha', given.loraAlpha);
  const dropout = checkDropout(op, given.dropout ?? 0);
  const { bias } = given;
  const { w, bias: frozen } = frozenOperands(op, given as WeightOptions, bias);
  const paths = { loraA, loraB, ...(typeof bias === 'string' ? { bias } : {}) };
  const settings = { loraAlpha, rslora: given.rslora ?? false, dropout };
  const layer = new LoraLayer(op, w, frozen, paths, settings);
  return segment(layer);
}

interface LoraSettings {
  readonly loraAlpha: number;
  readonly rslora: boolean;
  readonly dropout: number;
}

const kGradients: Readonly<Record<string, LoraGradient>> = {
  loraA: 'dLoraA',
  loraB: 'dLoraB',
  bias: 'dBias',
};

class LoraLayer implements SegmentLayer<LoraSaved> {
  readonly op: string;
  readonly parameters: Readonly<Record<string, string>>;
  readonly #w: Frozen<BaseWeight>;
  readonly #bias: Frozen<Tensor> | undefined;
  readonly #settings: LoraSettings;

  constructor(
    op: string,
    w: Frozen<BaseWeight>,
    bias: Frozen<Tensor> | undefined,
    parameters: Readonly<Record<string, string>>,
    settings: LoraSettings,
  ) {
    this.op = op;
    this.#w = w;
    this.#bias = bias;
    this.parameters = parameters;
    this.#settings = settings;
  }

  get device() {
    return this.#w.value.device;
  }

  get needsSeed(): boolean {
    return this.#settings.dropout > 0;
  }

  outShape(x: readonly number[], { loraA = [], loraB = [], bias }: Shapes): readonly number[] {
    const { op } = this;
    const [N = 0, K = 0] = this.#w.value.shape;
    if (this.#w.value.disposed) fail('ERR_DISPOSED', op, 'w', 'alive', 'a disposed weight');
    const shown = (shape: readonly number[]) => `[${shape.join(', ')}]`;
    if (x.length === 0 || x.at(-1) !== K) fail('ERR_SHAPE', op, 'x', `[..., K = ${K}]`, shown(x));
    const [r = 0] = loraA;
    if (loraA.length !== 2 || loraA[1] !== K || r < 1) {
      const expected = `[r, ${K}] with r of at least 1`;
      fail('ERR_SHAPE', op, `loraA (params.${this.parameters.loraA})`, expected, shown(loraA));
    }
    if (loraB.length !== 2 || loraB[0] !== N || loraB[1] !== r) {
      const name = `loraB (params.${this.parameters.loraB})`;
      fail('ERR_SHAPE', op, name, `[${N}, ${r}]`, shown(loraB));
    }
    if (bias !== undefined && (bias.length !== 1 || bias[0] !== N)) {
      fail('ERR_SHAPE', op, `bias (params.${this.parameters.bias})`, `[${N}]`, shown(bias));
    }
    return [...x.slice(0, -1), N];
  }

  forward({ x, parameters, training, seed }: LayerCall): { y: Tensor; saved: LoraSaved } {
    const { loraA, loraB } = parameters as { loraA: Tensor; loraB: Tensor };
    const adapter = new LoraAdapter({ loraA, loraB, ...this.#settings });
    const bias = parameters.bias ?? this.#bias?.value;
    return loraForward(x, this.#w.value, adapter, {
      training,
      ...(bias === undefined ? {} : { bias }),
      ...(seed === undefined ? {} : { seed }),
    });
  }

  backward(
    dy: Tensor,
    saved: LoraSaved,
    { dx, into }: { dx: boolean; into?: Tensor },
  ): LayerGradients {
    const names = Object.keys(this.parameters);
    const needs = names.map((name) => kGradients[name] as LoraGradient);
    const found = loraBackward(dy, saved, {
      needs: dx ? ['dx', ...needs] : needs,
      ...(into === undefined ? {} : { accumulateInto: { dx: into } }),
    });
    const parameters = Object.fromEntries(
      names.map((name, at) => [name, found[needs[at] as LoraGradient] as Tensor]),
    );
    return { ...(found.dx === undefined ? {} : { dx: found.dx }), parameters };
  }

  dispose(): void {
    if (this.#w.owned) this.#w.value.dispose();
    if (this.#bias?.owned) this.#bias.value.dispose();
  }
}
