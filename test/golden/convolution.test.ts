// The convolution that a golden case stands for is found from its shapes and values, whatever its
// stride, padding, kernel, groups and bias are; cases are made here, by a convolution in float64.
import { describe, expect, it } from 'vitest';
import { scope, type Tensor } from '../../lib/index.js';
import { type Convolution, convolve, outSizesOf } from '../adapters/convolution.js';
import { wave } from '../adapters/peft-folder.js';
import { forwardOf } from './adapter-case.js';
import { type GoldenCase, type GoldenTensor, numbersOf } from './case-file.js';
import { convolutionOf, plainOf } from './convolution.js';
import { tensorOf } from './library.js';

const golden = (shape: readonly number[], values: ArrayLike<number>): GoldenTensor => ({
  dtype: 'F32',
  shape,
  bytes: new Uint8Array(Float32Array.from(values).buffer),
});

interface Made extends Convolution {
  readonly N: number;
  readonly r: number;
  readonly groups: number;
  readonly biased: boolean;
  readonly dropout: number;
  /** A convolution of one dimension: an image of one row. */
  readonly flat?: boolean;
}

/** A case of LoRA on the layer `features`, and its y. */
function caseOf(made: Made): { file: GoldenCase; expected: Float64Array } {
  const { C, N, B, depth, height, width, kernel, groups, r, biased, dropout, flat = false } = made;
  const dims = (a: number, b: number, sizes: readonly number[]) => [
    a,
    b,
    ...(flat ? sizes.slice(-1) : sizes),
  ];
  const sizes = [...(depth === undefined ? [] : [depth]), height, width];
  const x = wave(B * C * (depth ?? 1) * height * width, 2);
  const mask = x.map((v) => (Math.abs(v) < 0.3 ? 0 : 1));
  const dropped = x.map((v, i) => (dropout > 0 ? (v * (mask[i] as number)) / (1 - dropout) : v));
  const taps = kernel.reduce((all, size) => all * size, 1);
  const [w, a] = [wave((N * C * taps) / groups, 7), wave(r * C * taps, 1)];
  const [b, shift] = [wave((N * r) / groups, 3), wave(N, 5)];
  const [OD, OH, OW] = outSizesOf(made);
  const out = depth === undefined ? [OH, OW] : [OD, OH, OW];
  const pixels = { C: r, B, height: OD * OH, width: OW };
  const single = { kernel: [1, 1], stride: [1, 1], padding: [0, 0] } as const;
  const h = convolve(made, dropped, a, r);
  const update = convolve({ ...pixels, ...single }, h, b, N, groups);
  const expected = convolve(made, x, w, N, groups).map(
    (v, i) =>
      v +
      (6 / Math.sqrt(r)) * (update[i] as number) +
      (biased ? (shift[Math.floor(i / (OD * OH * OW)) % N] as number) : 0),
  );
  const tensors = new Map<string, GoldenTensor>([
    ['base.features.weight', golden(dims(N, C / groups, kernel), w)],
    ['in.x', golden(dims(B, C, sizes), x)],
    ['out.y', golden(dims(B, N, out), expected)],
  ]);
  if (biased) tensors.set('base.features.bias', golden([N], shift));
  if (dropout > 0)
    tensors.set('in.dropout_mask.features.lora_dropout', golden(dims(B, C, sizes), mask));
  const stored = new Map([
    ['base_model.model.features.lora_A.weight', golden(dims(r, C, kernel), a)],
    [
      'base_model.model.features.lora_B.weight',
      golden(
        dims(
          N,
          r / groups,
          kernel.map(() => 1),
        ),
        b,
      ),
    ],
  ]);
  const config = {
    peft_type: 'LORA',
    r,
    lora_alpha: 6,
    use_rslora: true,
    lora_dropout: dropout,
  };
  const tensor = (name: string) => tensors.get(name) as GoldenTensor;
  const file = {
    id: 'made/here',
    params: { train_mode: true },
    tensors,
    rules: [],
    has: (name: string) => tensors.has(name),
    tensor,
    numbers: (name: string) => numbersOf(tensor(name)),
    adapter: () => ({ config, tensors: stored }),
  };
  return { file: file as unknown as GoldenCase, expected };
}

const usual = {
  C: 4,
  N: 6,
  r: 4,
  B: 2,
  height: 7,
  width: 6,
  kernel: [3, 3],
  stride: [1, 1],
  padding: [1, 1],
  groups: 1,
  biased: true,
  dropout: 0,
} as const;

describe('the convolution of a case', () => {
  it.each([
    ['the usual', {}],
    ['other strides and paddings by dimension', { stride: [2, 1], padding: [0, 2] }],
    ['a stride of 3, a kernel that is not square', { stride: [3, 3], kernel: [1, 4] }],
    ['no bias', { biased: false, kernel: [2, 2], padding: [0, 0] }],
    ['groups', { groups: 2, stride: [2, 2] }],
    ['dropout', { dropout: 0.25 }],
    [
      'three dimensions',
      {
        depth: 4,
        height: 5,
        width: 3,
        kernel: [2, 3, 1],
        stride: [1, 2, 1],
        padding: [0, 1, 1],
        groups: 2,
      },
    ],
    [
      'three dimensions of one size, a bias and all channels',
      { depth: 3, height: 3, width: 3, kernel: [3, 3, 3], stride: [1, 1, 1], padding: [1, 1, 1] },
    ],
    ['one dimension', { height: 1, width: 9, kernel: [1, 3], padding: [0, 1], flat: true }],
  ] as const)('with %s', (_, given) => {
    scope(() => {
      const made: Made = { ...usual, ...given };
      const { file, expected } = caseOf(made);
      const found = convolutionOf(file, 'cpu');
      const x = tensorOf(file.tensor('in.x'), 'cpu');
      const { y } = forwardOf(file, found.layer, x, found.rows);
      const values = found.patches.image(y).readSync();
      expect(values.length).toBe(expected.length);
      values.forEach((value, i) => {
        expect(Math.abs(value - (expected[i] as number))).toBeLessThan(1e-4);
      });
      expect(found.rowsBackward(found.rows(x)).shape).toEqual(x.shape);
      if (made.groups > 1 || made.dropout > 0) return;
      const merged = found.layer.adapter?.merge(found.layer.w).weight as Tensor;
      const through = plainOf(found, x, merged, found.layer.bias).readSync();
      through.forEach((value, i) => {
        expect(Math.abs(value - (expected[i] as number))).toBeLessThan(1e-4);
      });
    });
  });

  it('is refused where none has an output of its size', () => {
    const { file } = caseOf(usual);
    file.tensors.set('out.y', golden([2, 6, 40, 40], new Float32Array(2 * 6 * 1600)));
    expect(() => convolutionOf(file, 'cpu')).toThrow(/no convolution has an output of its size/);
  });
});
