/** A linear layer with an adapter of any method as a segment; the method's tape defines both passes. */

import { fail, wrongType } from '../core/errors.js';
import { ownFields, readOptions } from '../core/validate.js';
import { Adapter, type AdapterSaved, type BaseWeight, multiplyAdd, Tensor } from '../index.js';
import {
  checkPath,
  type LayerCall,
  type LayerGradients,
  type Segment,
  type SegmentLayer,
  type Shapes,
  segment,
} from './segment.js';
import { type Frozen, frozenWeight, type WeightOptions, weightShape } from './weights.js';

/** Options of {@link adapterLinear}. */
export interface AdapterLinearOptions extends WeightOptions {
  /** Of this weight. Its trained tensors get the values in `params` before each pass. It must outlive the segment. */
  readonly adapter: Adapter;
  /** The path in `params` of each trained tensor, by its name. */
  readonly parameters: Readonly<Record<string, string>>;
}

/**
 * A linear layer with an adapter of any method (DoRA, VeRA, your own definition) over a frozen weight, as a part of a
 * {@link chain}.
 * @throws TypeError `ERR_TYPE` · LowrankError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE` (a parameter without a path),
 *   `ERR_FORMAT`, `ERR_DISPOSED`, `ERR_DEVICE`, `ERR_OOM`
 * @example
 * const adapter = adapters.dora.create(w4, { r: 8 }, 1);
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
  const parameters = Object.fromEntries(
    names.map((name) => [name, checkPath(op, `parameters.${name}`, paths[name])]),
  );
  const { N, K } = weightShape(op, given.w);
  if (N !== adapter.outFeatures || K !== adapter.inFeatures) {
    const expected = `[${adapter.outFeatures}, ${adapter.inFeatures}], as the adapter`;
    fail('ERR_SHAPE', op, 'w', expected, `[${N}, ${K}]`);
  }
  const w = frozenWeight(op, given as WeightOptions);
  const layer = new AdapterLayer(op, w, adapter, parameters);
  if (w.value.device !== adapter.device) {
    layer.dispose();
    fail('ERR_DEVICE', op, 'adapter', `on ${w.value.device}, as w`, adapter.device);
  }
  return segment(layer);
}

class AdapterLayer implements SegmentLayer<AdapterSaved> {
  readonly op: string;
  readonly parameters: Readonly<Record<string, string>>;
  readonly #w: Frozen<BaseWeight>;
  readonly #adapter: Adapter;

  constructor(
    op: string,
    w: Frozen<BaseWeight>,
    adapter: Adapter,
    parameters: Readonly<Record<string, string>>,
  ) {
    this.op = op;
    this.#w = w;
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
    return [...x.slice(0, -1), N];
  }

  forward({ x, parameters, training, seed }: LayerCall): { y: Tensor; saved: AdapterSaved } {
    for (const [name, tensor] of Object.entries(this.#adapter.parameters)) {
      tensor.write((parameters[name] as Tensor).readSync());
    }
    return this.#adapter.forward(x, this.#w.value, {
      training,
      ...(seed === undefined ? {} : { seed }),
    });
  }

  backward(
    dy: Tensor,
    saved: AdapterSaved,
    { dx, into }: { dx: boolean; into?: Tensor },
  ): LayerGradients {
    const names = Object.keys(this.parameters);
    const found = this.#adapter.backward(dy, saved, { needs: dx ? ['dx', ...names] : names });
    const added =
      found.dx === undefined || into === undefined
        ? found.dx
        : multiplyAdd({ a: found.dx, c: into });
    // A tensor that the formula does not reach has no gradient.
    const parameters = Object.fromEntries(
      names.map((name) => {
        const { shape, device } = this.#adapter.parameters[name] as Tensor;
        return [name, found.parameters[name] ?? Tensor.zeros(shape, { device })];
      }),
    );
    return { ...(added === undefined ? {} : { dx: added }), parameters };
  }

  dispose(): void {
    if (this.#w.owned) this.#w.value.dispose();
  }
}
