/** Which elements share a scale, by the shape of the tensor of scales and by what the config says. */
import type { PlanarWeight } from '../planar/planar-weight.js';
import type { RawTensor } from '../raw-tensor.js';
import { type LayerReader, listed } from './layer-reader.js';

type Tiles = Extract<PlanarWeight['grid'], { kind: 'tiles' }>;

/** What a layout knows before it sees the scales. */
export interface ScaleHints {
  /** `strategy` of compressed-tensors. */
  readonly strategy?: string | undefined;
  /** Columns that share a scale. */
  readonly group?: number | undefined;
  /** Rows and columns of a tile. */
  readonly block?: readonly [number, number] | undefined;
}

const tiles = (rows: number, columns: number): Tiles => ({ kind: 'tiles', rows, columns });

/** Scales of a grid [ceil(N / rows), ceil(K / columns)], and the shorter shapes that some writers give them. */
function shapesOf({ rows, columns }: Tiles, N: number, K: number): string[] {
  const shape = [Math.ceil(N / rows), Math.ceil(K / columns)];
  const [n, k] = shape as [number, number];
  const shapes = [listed(shape)];
  if (k === 1) shapes.push(listed([n]));
  if (n === 1 && k === 1) shapes.push(listed([]));
  return shapes;
}

/**
 * The grid of a weight [N, K].
 *
 * @param key of the tensor of scales
 * @throws ERR_SHAPE if the shape fits no grid, or not the one of the hints
 */
export function scaleGrid(
  layer: LayerReader,
  key: string,
  { shape }: RawTensor,
  [N, K]: readonly [number, number],
  { strategy, group, block }: ScaleHints,
): Tiles {
  const found = listed(shape);
  const grids = new Map<string, Tiles>();
  if (strategy === 'tensor' || strategy === undefined) grids.set('tensor', tiles(N, K));
  if (strategy === 'channel' || strategy === undefined) grids.set('channel', tiles(1, K));
  if (block !== undefined && (strategy ?? 'block') === 'block') {
    // A tile that the config names is the one that the scales must have.
    if (strategy === undefined) grids.clear();
    grids.set('block', tiles(...block));
  } else if (strategy === 'group' || strategy === 'tensor_group' || strategy === undefined) {
    const span = group ?? K / (shape[1] ?? 1);
    if (group !== undefined && strategy === undefined) grids.clear();
    if (K % span !== 0) {
      const what = `a divisor of the ${K} columns`;
      const said = group === undefined ? `${shape[1]} groups in ${key}` : String(group);
      layer.refuse('ERR_SHAPE', 'group_size', what, said);
    }
    grids.set('group', tiles(1, span));
  }
  for (const grid of grids.values()) {
    if (shapesOf(grid, N, K).includes(found)) return grid;
  }
  const wanted = [...grids.values()].map((grid) => shapesOf(grid, N, K)[0]).join(' or ');
  const said = [
    strategy,
    group === undefined ? undefined : `groups of ${group}`,
    block?.join(' x '),
  ];
  const by = said.filter((part) => part !== undefined).join(', ');
  const why = `a weight [${N}, ${K}]${by === '' ? '' : ` by the config (${by})`}`;
  if (wanted === '') {
    const known = 'tensor, channel, group, tensor_group or block with its block_structure';
    return layer.refuse('ERR_FORMAT', 'strategy in the config', known, String(strategy));
  }
  return layer.refuse('ERR_SHAPE', key, `of shape ${wanted} for ${why}`, found);
}

/** The shape of scales on a grid, as {@link scaleGrid} first takes it. */
export function scaleShape({ rows, columns, grid }: PlanarWeight): [number, number] {
  const { rows: n, columns: k } = grid as Tiles;
  return [Math.ceil(rows / n), Math.ceil(columns / k)];
}

/**
 * The shape to write scales with: the layout's own, where it holds as many.
 */
export function writtenShape(
  weight: PlanarWeight,
  own: readonly number[] | undefined,
): readonly number[] {
  const shape = scaleShape(weight);
  const count = own?.reduce((product, dim) => product * dim, 1);
  return own !== undefined && count === shape[0] * shape[1] ? own : shape;
}
