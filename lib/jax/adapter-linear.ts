/** A linear layer with an adapter of any method as a segment; the method's tape defines both passes. */

import { fail, wrongType } from '../core/errors.js';
import { ownFields, readOptions } from '../core/validate.js';
import { Adapter, type AdapterSaved, type BaseWeight, multiplyAdd, Tensor } from '../index.js';
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
import {
  deviceOf,
  type Frozen,
  frozenOperands,
  type WeightOptions,
  weightShape,
} from './weights.js';

/** Options of {@link adapterLinear}. */
export interface AdapterLinearOptions extends WeightOptions {
  /** Of this weight. Its trained tensors get the values in `params` before each pass. It must outlive the segment. */
  readonly adapter: Adapter;
  /** The path in `params` of each trained tensor, by its name. */
  readonly parameters: Readonly<Record<string, string>>;
  /** [N]. A path in `params` is trained; an array of jax-js (consumed) or a tensor is frozen. */
  readonly bias?: string | JaxArray | Tensor;
}

/**
 * A linear layer with an adapter of any method (DoRA, VeRA, your own definition) over a frozen weight, as a part of a
 * {@link chain}.
 * @throws TypeError `ERR_TYPE` · LowrankError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE` (a parameter without a path),
 *   `ERR_FORMAT`, `ERR_DISPOSED`, `ERR_DEVICE`, `ERR_OOM`
 * @example
 * const adapter = adapters.dora.create({ inFeatures: K, outFeatures: N, r: 8, weight: w4 });
 * const layer = adapterLinear({ w: w4, adapter, parameters: { loraA: 'a', loraB: 'b', magnitude: 'm' } });
 */
export function adapterLinear(options: AdapterLinearOptions): Segment {
  const op = 'jax.adapterLinear';
  const given = readOptions(op, options, {
    w: true,
    format: true,
    blocksize: true,
    doubleQuant: true,
    device: true,
    adapter: true,
    parameters: true,
    bias: true,
  });
  const { adapter } = given;
  if (!(adapter instanceof Adapter)) throw wrongType(op, 'adapter', 'an Adapter', adapter);
  const paths = ownFields(op, given.parameters) as Record<string, unknown>;
  const names = Object.keys(adapter.parameters);
  const stray = Object.keys(paths).find((name) => !names.includes(name));
  const missing = names.find((name) => paths[name] === undefined);
  if (stray !== undefined || missing !== undefined) {
    const expected = `the paths of ${names.join(', ')}`;
    fail('ERR_VALUE', op, 'parameters', expected, Object.keys(paths).join(', ') || 'none');
  }
  const { bias } = given;
  const parameters = Object.fromEntries([
    ...names.map((name) => [name, checkPath(op, `parameters.${name}`, paths[name])]),
    ...(typeof bias === 'string' ? [['bias', bias]] : []),
  ]) as Readonly<Record<string, string>>;
  const { N, K } = weightShape(op, given.w);
  if (N !== adapter.outFeatures || K !== adapter.inFeatures) {
    const expected = `[${adapter.outFeatures}, ${adapter.inFeatures}], as the adapter`;
    fail('ERR_SHAPE', op, 'w', expected, `[${N}, ${K}]`);
  }
  const device = deviceOf(given as WeightOptions);
  if (device !== adapter.device) {
    fail('ERR_DEVICE', op, 'adapter', `on ${device}, as w`, adapter.device);
  }
  const { w, bias: frozen } = frozenOperands(op, given as WeightOptions, bias);
  const layer = new AdapterLayer(op, w, frozen, adapter, parameters);
  return segment(layer);
}

class AdapterLayer implements SegmentLayer<AdapterSaved> {
  readonly op: string;
  readonly parameters: Readonly<Record<string, string>>;
  readonly #w: Frozen<BaseWeight>;
  readonly #bias: Frozen<Tensor> | undefined;
  readonly #adapter: Adapter;

  constructor(
    op: string,
    w: Frozen<BaseWeight>,
    bias: Frozen<Tensor> | undefined,
    adapter: Adapter,
    parameters: Readonly<Record<string, string>>,
  ) {
    this.op = op;
    this.#w = w;
    this.#bias = bias;
    this.#adapter = adapter;
    this.parameters = parameters;
  }

  get device() {
    return this.#w.value.device;
  }

  get needsSeed(): boolean {
    const { dropout } = this.#adapter.config as { dropout?: unknown };
    return typeof dropout === 'number' && dropout > 0;
  }

  outShape(x: readonly number[], shapes: Shapes): readonly number[] {
    const { op } = this;
    const { inFeatures: K, outFeatures: N, parameters } = this.#adapter;
    const shown = (shape: readonly number[] = []) => `[${shape.join(', ')}]`;
    if (x.length === 0 || x.at(-1) !== K) fail('ERR_SHAPE', op, 'x', `[..., K = ${K}]`, shown(x));
    if (this.#w.value.disposed) fail('ERR_DISPOSED', op, 'w', 'alive', 'a disposed weight');
    for (const [name, tensor] of Object.entries(parameters)) {
      if (tensor.disposed) fail('ERR_DISPOSED', op, 'adapter', 'alive', 'a disposed adapter');
      if (shown(tensor.shape) === shown(shapes[name])) continue;
      const operand = `${name} (params.${this.parameters[name]})`;
      fail('ERR_SHAPE', op, operand, shown(tensor.shape), shown(shapes[name]));
    }
    if (shapes.bias !== undefined && shown(shapes.bias) !== shown([N])) {
      fail('ERR_SHAPE', op, `bias (params.${this.parameters.bias})`, `[${N}]`, shown(shapes.bias));
    }
    return [...x.slice(0, -1), N];
  }

  forward({ x, parameters, training, seed }: LayerCall): { y: Tensor; saved: AdapterSaved } {
    for (const [name, tensor] of Object.entries(this.#adapter.parameters)) {
      tensor.write((parameters[name] as Tensor).readSync());
    }
    const bias = parameters.bias ?? this.#bias?.value;
    return this.#adapter.forward(x, this.#w.value, {
      training,
      ...(bias === undefined ? {} : { bias }),
      ...(seed === undefined ? {} : { seed }),
    });
  }

  backward(
    dy: Tensor,
    saved: AdapterSaved,
    { dx, into }: { dx: boolean; into?: Tensor },
  ): LayerGradients {
    const tensors = this.#adapter.parameters;
    const names = Object.keys(tensors);
    const trainsBias = 'bias' in this.parameters;
    const found = this.#adapter.backward(dy, saved, {
      needs: [...(dx ? ['dx'] : []), ...names, ...(trainsBias ? ['dBias'] : [])],
    });
    const added =
      found.dx === undefined || into === undefined
        ? found.dx
        : multiplyAdd({ a: found.dx, c: into });
    // A tensor that the formula does not reach has no gradient.
    const parameters: Record<string, Tensor> = {};
    for (const [name, { shape, device }] of Object.entries(tensors)) {
      parameters[name] = found.parameters[name] ?? Tensor.zeros(shape, { device });
    }
    if (found.dBias !== undefined) parameters.bias = found.dBias;
    return { ...(added === undefined ? {} : { dx: added }), parameters };
  }

  dispose(): void {
    if (this.#w.owned) this.#w.value.dispose();
    if (this.#bias?.owned) this.#bias.value.dispose();
  }
}
