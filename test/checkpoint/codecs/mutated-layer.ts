/** Mutations of a layer's tensors and of its config. */
import { bytesOf } from '../../../lib/checkpoint/raw-tensor.js';
import type { LayerTensors } from '../../../lib/index.js';

export type Raw = LayerTensors[string];
export type Random = (below: number) => number;

const kDTypes = [
  'U8',
  'I8',
  'I32',
  'I64',
  'F32',
  'F16',
  'BF16',
  'F8_E4M3',
  'F8_E5M2',
  'F8_E8M0',
  'BOOL',
] as const;
const kSizes = [0, 1, 2, 3, 8, 16, 32, 2 ** 31, 2 ** 40, 2 ** 53 - 1, -1, 0.5];
export const kValues: readonly unknown[] = [
  ...[...kSizes, 4, 5, 64, 128, -1, Number.NaN],
  ...[
    null,
    true,
    false,
    '',
    'x',
    'gemv',
    'gptq_v2',
    'group',
    'tensor',
    'block',
    'compressed-tensors',
    'mxfp4',
  ],
  ...[[128, 128], [1, 1], ['re:.*'], ['lm_head'], { a: {} }, [[]]],
];
export const kFields = [
  ...[
    'bits',
    'group_size',
    'num_bits',
    'desc_act',
    'version',
    'checkpoint_format',
    'meta',
    'dynamic',
    'quant_method',
  ],
  ...[
    'format',
    'strategy',
    'weight_block_size',
    'block_structure',
    'symmetric',
    'actorder',
    'config_groups',
    'ignore',
  ],
  ...['fmt', 'scale_fmt', 'quant_algo', 'quantization', 'modules_to_not_convert'],
];

export const pick = <T>(random: Random, from: readonly T[]): T => from[random(from.length)] as T;

export function changed(random: Random, { dtype, shape, data }: Raw): Raw {
  const bytes = Uint8Array.from(bytesOf(data));
  switch (random(6)) {
    case 0:
    case 1:
      for (let n = random(4); n >= 0; n--) {
        if (bytes.length > 0) bytes[random(bytes.length)] = pick(random, [0, 1, 3, 127, 128, 255]);
      }
      return { dtype, shape, data: bytes };
    case 2: {
      // Another shape of the same bytes.
      const [first = 1, second = 1, ...more] = shape;
      const shapes = [
        [second, first, ...more],
        [first * second, 1, ...more],
        [first * second, ...more],
        [1, ...shape],
      ];
      return { dtype, shape: pick(random, shapes), data: bytes };
    }
    case 3: {
      const size = [...shape];
      if (size.length > 0) size[random(size.length)] = pick(random, kSizes);
      return { dtype, shape: size, data: bytes };
    }
    case 4:
      return { dtype: pick(random, kDTypes), shape, data: bytes };
    default: {
      // One more or fewer of a dimension, with as many bytes.
      const at = random(Math.max(1, shape.length));
      const size = shape.map((dim, i) => Math.max(0, dim + (i === at ? random(3) - 1 : 0)));
      const before = shape.reduce((product, dim) => product * dim, 1);
      const after = size.reduce((product, dim) => product * dim, 1);
      const resized = new Uint8Array((bytes.length / Math.max(1, before)) * after);
      resized.set(bytes.subarray(0, resized.length));
      return { dtype, shape: size, data: resized };
    }
  }
}

export function mutate(random: Random, tensors: LayerTensors): LayerTensors {
  const layer: Record<string, Raw> = { ...tensors };
  const names = Object.keys(layer);
  for (let n = random(3); n > 0; n--) {
    const name = pick(random, names);
    const tensor = layer[name];
    const kind = random(12);
    if (tensor === undefined) continue;
    if (kind === 0) delete layer[name];
    else if (kind === 1)
      layer[pick(random, ['weight_scale', 'g_idx', 'scales', '_scales', 'bias'])] = tensor;
    else layer[name] = changed(random, tensor);
  }
  return layer;
}
