/**
 * What a chain does for arrays of given shapes: found by tracing all parts once, without computing. Every shape is
 * checked here, so that a call with a wrong one consumes nothing.
 */

import { fail, wrongType } from '../core/errors.js';
import type { Jax, JaxArray } from './jax.js';
import { type PureProgram, pureProgram } from './pure.js';
import { type Edge, Segment, type SegmentLayer, type Shapes } from './segment.js';
import type { PureFunction, State, StateLeaf } from './state.js';
import {
  type FlatTree,
  flatten,
  isJaxArray,
  lazyTree,
  leafAtPath,
  named,
  type Structure,
} from './tree.js';

/** A part that jax-js runs. */
export interface PurePart {
  readonly kind: 'pure';
  /** Indices of the leaves of params and of the batch that the function reads. */
  readonly params: readonly number[];
  readonly batch: readonly number[];
  readonly before: State;
  readonly after: State;
  readonly program: PureProgram;
}

/** A layer of a segment: which array it reads, which it makes, and the leaves of its parameters. */
export interface PlannedEdge {
  readonly from: number;
  readonly to: number;
  readonly layer: SegmentLayer | undefined;
  readonly parameters: readonly (readonly [name: string, leaf: number])[];
  /** Of the parameters, by name. */
  readonly shapes: Shapes;
  /** Number of the layer in the chain. */
  readonly place: number;
}

/** A part that this library runs. */
export interface SegmentPart {
  readonly kind: 'segment';
  readonly before: State;
  readonly after: State;
  readonly edges: readonly PlannedEdge[];
}

export interface Plan {
  readonly parts: readonly (PurePart | SegmentPart)[];
  dispose(): void;
}

/** Identifies the plan of a call: structures, shapes and dtypes. */
export function planKey(...trees: readonly FlatTree<JaxArray>[]): string {
  return JSON.stringify(
    trees.map(({ structure, leaves }) => [
      structure,
      leaves.map(({ shape, dtype, device }) => [...shape, dtype, device]),
    ]),
  );
}

/** The last part of {@link makePlan} for gradients must be a function that returns the loss. */
export type PlanKind = 'gradient' | 'values';

/**
 * @throws LowrankError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE` · TypeError `ERR_TYPE`; and what a function throws while
 *   jax-js traces it
 */
export function makePlan(
  op: string,
  jax: Jax,
  parts: readonly (PureFunction | Segment)[],
  params: FlatTree<JaxArray>,
  batch: FlatTree<JaxArray>,
  kind: PlanKind,
): Plan {
  const planned: (PurePart | SegmentPart)[] = [];
  let layers = 0;
  const trace = (paramLeaves: JaxArray[], batchLeaves: JaxArray[]): JaxArray[] => {
    let state: State = {
      ...batch,
      leaves: batchLeaves.map(({ shape, dtype }) => ({ shape, dtype, needsGradient: false })),
    };
    let arrays = batchLeaves;
    for (const [at, part] of parts.entries()) {
      const place = `part ${at + 1} of ${parts.length}`;
      const last = at === parts.length - 1;
      if (part instanceof Segment) {
        const planOf = planSegment(op, place, part, state, params, layers);
        layers += part.edges.length;
        planned.push(planOf);
        arrays = planOf.after.leaves.map(({ shape }) => jax.numpy.zeros([...shape]));
      } else {
        const trees = { state: { ...state, arrays }, params, batch, paramLeaves, batchLeaves };
        const { reads, result } = traceFunction(op, place, part, trees);
        const learns = reads.params.size > 0 || state.leaves.some((leaf) => leaf.needsGradient);
        arrays = result.leaves as JaxArray[];
        const after: State = {
          ...result,
          leaves: arrays.map(({ shape, dtype }) => ({
            shape,
            dtype,
            needsGradient: learns && dtype.startsWith('float'),
          })),
        };
        const loss = last && kind === 'gradient';
        if (loss) checkLoss(op, place, after);
        const indices = {
          params: [...reads.params].sort((a, b) => a - b),
          batch: [...reads.batch].sort((a, b) => a - b),
        };
        const structures = { params: params.structure, batch: batch.structure };
        const program = pureProgram(jax, part, structures, indices, state, after, loss);
        planned.push({ kind: 'pure', ...indices, before: state, after, program });
      }
      state = planned.at(-1)?.after as State;
    }
    if (kind === 'gradient' && parts.at(-1) instanceof Segment) {
      const expected = 'a function that returns the loss';
      fail('ERR_VALUE', op, 'the last part', expected, 'a segment');
    }
    return arrays;
  };
  try {
    jax
      .makeJaxpr(trace)([...params.leaves], [...batch.leaves])
      .jaxpr.dispose();
  } catch (error) {
    disposeAll(planned);
    throw error;
  }
  return { parts: planned, dispose: () => disposeAll(planned) };
}

/**
 * Checks what can change between two calls of the same shapes: the layers' weights, and the seed.
 * @throws LowrankError `ERR_DISPOSED`, `ERR_VALUE`
 */
export function checkLayers({ parts }: Plan, training: boolean, seed: number | undefined): void {
  for (const part of parts) {
    if (part.kind === 'pure') continue;
    for (const { from, layer, shapes } of part.edges) {
      layer?.outShape(part.before.leaves[from]?.shape ?? [], shapes);
      if (training && layer?.needsSeed === true && seed === undefined) {
        fail('ERR_VALUE', layer.op, 'seed', 'given to a call that drops or samples', 'none');
      }
    }
  }
}

function disposeAll(parts: readonly (PurePart | SegmentPart)[]): void {
  for (const part of parts) if (part.kind === 'pure') part.program.dispose();
}

interface Traced {
  readonly state: State & { readonly arrays: readonly JaxArray[] };
  readonly params: FlatTree<JaxArray>;
  readonly batch: FlatTree<JaxArray>;
  readonly paramLeaves: readonly JaxArray[];
  readonly batchLeaves: readonly JaxArray[];
}

/** Calls a function on tracers, and notes which parameters and which arrays of the batch it reads. */
function traceFunction(op: string, place: string, part: PureFunction, trees: Traced) {
  const { state, params, batch, paramLeaves, batchLeaves } = trees;
  const reads = { params: new Set<number>(), batch: new Set<number>() };
  const watched = (seen: Set<number>, leaves: readonly JaxArray[]) => (index: number) => {
    seen.add(index);
    // A reference for each reading: whether a function frees what it does not use is its own affair.
    return leaves[index]?.ref;
  };
  const returned = part(
    lazyTree(state.structure, (index) => state.arrays[index]?.ref),
    lazyTree(params.structure, watched(reads.params, paramLeaves)),
    lazyTree(batch.structure, watched(reads.batch, batchLeaves)),
  );
  const result = flatten(op, `what ${place} returns`, returned);
  for (const [at, leaf] of result.leaves.entries()) {
    if (isJaxArray(leaf)) continue;
    const name = named(`what ${place} returns`, result.paths[at] ?? '');
    throw wrongType(op, name, 'an array of jax-js', leaf);
  }
  return { reads, result };
}

function checkLoss(op: string, place: string, { structure, leaves }: State): void {
  const what = `what ${place} returns`;
  const [leaf] = leaves;
  if (structure !== 'leaf' || leaf === undefined) {
    fail('ERR_VALUE', op, what, 'the loss, one scalar', `a tree of ${leaves.length} arrays`);
  }
  const { shape, dtype } = leaf;
  if (shape.length > 0) fail('ERR_SHAPE', op, what, 'the loss, a scalar', `[${shape.join(', ')}]`);
  if (!dtype.startsWith('float')) fail('ERR_DTYPE', op, what, 'a float', dtype);
}

function planSegment(
  op: string,
  place: string,
  { edges }: Segment,
  before: State,
  params: FlatTree<JaxArray>,
  firstPlace: number,
): SegmentPart {
  const planned = edges.map((edge, at): PlannedEdge => {
    const parameters = Object.entries(edge.layer?.parameters ?? {}).map(
      ([name, path]) => [name, leafAtPath(edge.layer?.op ?? op, name, path, params)] as const,
    );
    const from = inputOf(op, place, edge, before);
    const shapes = Object.fromEntries(
      parameters.map(([name, index]) => {
        const { shape, dtype } = params.leaves[index] as JaxArray;
        if (dtype !== 'float32') {
          const operand = `${name} (params.${params.paths[index]})`;
          fail('ERR_DTYPE', edge.layer?.op ?? op, operand, 'float32', dtype);
        }
        return [name, shape] as const;
      }),
    );
    return { from, to: at, layer: edge.layer, parameters, shapes, place: firstPlace + at };
  });
  const leaves = planned.map(({ from, layer, parameters, shapes }): StateLeaf => {
    const leaf = before.leaves[from] as StateLeaf;
    if (layer === undefined) return leaf;
    if (leaf.dtype !== 'float32') fail('ERR_DTYPE', layer.op, 'x', 'float32', leaf.dtype);
    const needsGradient = parameters.length > 0 || leaf.needsGradient;
    return { shape: layer.outShape(leaf.shape, shapes), dtype: 'float32', needsGradient };
  });
  const keys = edges.map(({ to }) => to).filter((to) => to !== undefined);
  const structure: Structure =
    keys.length === 0 ? 'leaf' : { keys, items: keys.map(() => 'leaf' as const) };
  return { kind: 'segment', before, after: { structure, paths: keys, leaves }, edges: planned };
}

/** The index of the array of the state that an entry of a segment reads. */
function inputOf(op: string, place: string, { from }: Edge, { structure, paths }: State): number {
  if (from === undefined) {
    if (structure === 'leaf') return 0;
    const expected = 'one array (branches picks arrays of an object by name)';
    return fail('ERR_VALUE', op, `the input of ${place}`, expected, `those of ${paths.join(', ')}`);
  }
  const at = paths.indexOf(from);
  if (at >= 0 && structure !== 'leaf') return at;
  const actual = structure === 'leaf' ? 'one array without a name' : paths.join(', ') || 'none';
  return fail('ERR_VALUE', op, `the input of ${place}`, `an object with ${from}`, actual);
}
