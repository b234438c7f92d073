/**
 * Segments: the parts of a chain that run in this library's kernels.
 *
 * A segment maps one array to one array, or an object of arrays to another one ({@link branches}).
 */

import { fail, wrongType } from '../core/errors.js';
import { printable } from '../core/printable.js';
import type { Freeable } from '../core/scope.js';
import type { Device, Tensor } from '../index.js';

/** Shapes by name. */
export type Shapes = Readonly<Record<string, readonly number[]>>;

/** What a layer gets for its forward pass. The chain owns the tensors and frees them. */
export interface LayerCall {
  /** f32 */
  readonly x: Tensor;
  /** The trained tensors by name, f32. */
  readonly parameters: Readonly<Record<string, Tensor>>;
  /** Does a backward pass follow? */
  readonly training: boolean;
  /** Differs between the layers of a chain; absent if the caller gave none. */
  readonly seed?: number;
}

/** Gradients of a layer, by the names of its parameters. */
export interface LayerGradients {
  readonly dx?: Tensor;
  readonly parameters: Readonly<Record<string, Tensor>>;
}

/**
 * A differentiable op over tensors of this library, for instance your own kernel. Every tensor that it makes
 * belongs to the chain.
 */
export interface SegmentLayer<Saved extends Freeable = Freeable> {
  /** Its name in messages. */
  readonly op: string;
  readonly device: Device;
  /** The trained tensors: by name, the path in `params`. */
  readonly parameters: Readonly<Record<string, string>>;
  /** Does its training pass drop or sample? A call without a seed then rejects. Default false. */
  readonly needsSeed?: boolean;
  /**
   * The shape of y. Every call runs it before it consumes anything.
   * @throws LowrankError `ERR_SHAPE` for a shape of x or of a parameter that does not fit, `ERR_DISPOSED`
   */
  outShape(x: readonly number[], parameters: Shapes): readonly number[];
  forward(call: LayerCall): { readonly y: Tensor; readonly saved: Saved };
  /**
   * @param dy the shape of y, f32
   * @param wanted is dx needed; and the tensor to which dx is added, if there is one already
   */
  backward(
    dy: Tensor,
    saved: Saved,
    wanted: { readonly dx: boolean; readonly into?: Tensor },
  ): LayerGradients;
  /** Frees what the layer made, such as a quantised weight. */
  dispose(): void;
}

/** @internal One output of a segment: of a layer, or an input that passes. Without names the state is one array. */
export interface Edge {
  readonly from: string | undefined;
  readonly to: string | undefined;
  readonly layer: SegmentLayer | undefined;
}

/**
 * A part of a chain that runs in this library's kernels.
 * @example
 * const model = chain((b) => b.x, loraLinear({ w, loraA: 'a', loraB: 'b', loraAlpha: 16 }), loss);
 */
export class Segment implements Disposable {
  /** @internal */
  readonly edges: readonly Edge[];

  /** @internal Use {@link loraLinear}, {@link adapterLinear}, {@link segment} or {@link branches}. */
  constructor(edges: readonly Edge[]) {
    this.edges = edges;
  }

  /** Frees the weights that the segment made. Weights that were passed in as tensors stay. */
  dispose(): void {
    for (const { layer } of this.edges) layer?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * A segment of your own layer.
 * @throws TypeError `ERR_TYPE`
 * @example
 * const normed = segment(myRmsNorm);
 */
export function segment<Saved extends Freeable>(layer: SegmentLayer<Saved>): Segment {
  const op = 'segment';
  const { outShape, forward, backward, dispose, parameters } = layer ?? {};
  const functions = { outShape, forward, backward, dispose };
  for (const [name, value] of Object.entries(functions)) {
    if (typeof value !== 'function') throw wrongType(op, `layer.${name}`, 'a function', value);
  }
  if (typeof parameters !== 'object' || parameters === null) {
    throw wrongType(op, 'layer.parameters', 'an object of paths', parameters);
  }
  for (const [name, path] of Object.entries(parameters)) checkPath(op, `parameters.${name}`, path);
  return new Segment([{ from: undefined, to: undefined, layer: layer as unknown as SegmentLayer }]);
}

/**
 * Several layers side by side, for projections of one array, residuals and branches. Each entry is one array of
 * the result:
 *
 * - a segment: applied to the array, if the part before returns one array
 * - `[name, segment]`: applied to that array of the object that the part before returns
 * - `name`: that array itself
 *
 * An array may be used several times; its gradients are added. An array that no entry uses ends here.
 * @param outputs by name
 * @throws TypeError `ERR_TYPE` · LowrankError `ERR_VALUE`
 * @example
 * const qkv = branches({ q: ['n', wq], k: ['n', wk], v: ['n', wv], x: 'x' });
 */
export function branches(
  outputs: Readonly<Record<string, Segment | string | readonly [string, Segment]>>,
): Segment {
  const op = 'branches';
  if (outputs === null || typeof outputs !== 'object') {
    throw wrongType(op, 'outputs', 'an object of segments', outputs);
  }
  const edges = Object.entries(outputs).map(([to, value]): Edge => {
    if (typeof value === 'string') return { from: value, to, layer: undefined };
    const [from, given] = Array.isArray(value) ? (value as [unknown, unknown]) : [undefined, value];
    if (Array.isArray(value) && typeof from !== 'string') {
      throw wrongType(op, `outputs.${to}[0]`, 'the name of an array', from);
    }
    if (!(given instanceof Segment)) {
      throw wrongType(op, `outputs.${to}`, 'a segment, [name, segment] or a name', given);
    }
    const [only] = given.edges;
    if (given.edges.length !== 1 || only === undefined || only.to !== undefined) {
      fail('ERR_VALUE', op, `outputs.${to}`, 'a segment of one array', 'branches');
    }
    return { from: from as string | undefined, to, layer: only.layer };
  });
  if (edges.length === 0) fail('ERR_VALUE', op, 'outputs', 'of at least one entry', 'none');
  const named = edges.filter(({ from }) => from !== undefined).length;
  if (named !== 0 && named !== edges.length) {
    const plain = edges.find(({ from }) => from === undefined)?.to ?? '';
    const expected = 'all with the name of an input, or all without';
    fail('ERR_VALUE', op, 'outputs', expected, `${printable(plain)} without`);
  }
  return new Segment(edges);
}

/** Checks for a path of a parameter: keys and indices joined by dots. @throws TypeError `ERR_TYPE` */
export function checkPath(op: string, operand: string, value: unknown): string {
  if (typeof value === 'string') return value;
  throw wrongType(op, operand, 'a path in params ("layers.0.loraA")', value);
}
