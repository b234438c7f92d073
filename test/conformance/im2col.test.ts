// Im2col against a convolution by its definition, with strides, padding and dilation; its gradients as
// adjoints; wrong calls.
import { describe, expect, it } from 'vitest';
import { Im2col, matmul, memoryUsage, oneHot, scope, Tensor } from '../../lib/index.js';
import { DEVICES } from './operands.js';

const SPECS = [
  { channels: 1, height: 1, width: 1, kernel: [1, 1] },
  { channels: 3, height: 5, width: 4, kernel: [3, 3], padding: [1, 1] },
  { channels: 2, height: 9, width: 7, kernel: [3, 2], stride: [2, 3], padding: [0, 1] },
  { channels: 2, height: 8, width: 8, kernel: [3, 3], dilation: [2, 3], padding: [2, 3] },
  { channels: 2, depth: 3, height: 4, width: 5, kernel: [2, 1, 3] },
  {
    channels: 1,
    depth: 6,
    height: 5,
    width: 4,
    kernel: [3, 2, 2],
    stride: [2, 1, 3],
    padding: [1, 0, 2],
    dilation: [2, 3, 1],
  },
  { channels: 3, depth: 1, height: 2, width: 2, kernel: [1, 1, 1] },
] as const;

const integers = (size: number, seed: number): Float32Array =>
  Float32Array.from({ length: size }, (_, i) => ((i * 7 + seed * 13) % 11) - 5);

const dot = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] as number) * (b[i] as number);
  return sum;
};

describe.each(DEVICES)('Im2col on %s', (device) => {
  it('outlives the scopes of its calls', () => {
    using patches = new Im2col({ channels: 2, height: 3, width: 3, kernel: [2, 2], device });
    const values = integers(2 * 2 * 3 * 3, 1);
    using x = Tensor.from(values, [2, 2, 3, 3], { device });
    const call = (): Float32Array =>
      scope(() => {
        const image = patches.image(patches.rows(x));
        return patches.rowsBackward(patches.imageBackward(image)).readSync();
      });
    const first = call();
    expect(call()).toEqual(first);
    expect(first.length).toBe(values.length);
  });

  it.each(SPECS)('is the convolution that it stands for: %j', async (spec) => {
    const before = memoryUsage(device).liveTensors;
    await scope(async () => {
      const { channels: C, height: H, width: W } = spec;
      const volume = 'depth' in spec;
      const D = volume ? spec.depth : 1;
      const three = (name: 'kernel' | 'stride' | 'padding' | 'dilation', standard: number) => {
        const given = (spec as unknown as Record<string, readonly number[]>)[name] ?? [];
        return [...new Array(3 - given.length).fill(standard), ...given] as [
          number,
          number,
          number,
        ];
      };
      const [kd, kh, kw] = three('kernel', 1);
      const [sd, sh, sw] = three('stride', 1);
      const [pd, ph, pw] = three('padding', 0);
      const [dd, dh, dw] = three('dilation', 1);
      const [B, N] = [2, 3];
      const patches = new Im2col({ ...spec, device });
      const { outDepth: OD, outHeight: OH, outWidth: OW } = patches;
      const sizes = (d: number, h: number, w: number) => (volume ? [d, h, w] : [h, w]);
      const image = integers(B * C * D * H * W, 1);
      const kernel = integers(N * C * kd * kh * kw, 2);
      const x = Tensor.from(image, [B, C, ...sizes(D, H, W)], { device });
      const w = Tensor.from(kernel, [N, C * kd * kh * kw], { device });
      const rows = patches.rows(x);
      expect(rows.shape).toEqual([B, OD * OH * OW, C * kd * kh * kw]);
      expect(patches.depth).toBe(D);
      const y = patches.image(matmul(rows, w));
      expect(y.shape).toEqual([B, N, ...sizes(OD, OH, OW)]);
      const expected = Float32Array.from({ length: B * N * OD * OH * OW }, (_, at) => {
        const [ow, oh] = [at % OW, Math.floor(at / OW) % OH];
        const [od, rest] = [Math.floor(at / (OW * OH)) % OD, Math.floor(at / (OW * OH * OD))];
        const [n, b] = [rest % N, Math.floor(rest / N)];
        let sum = 0;
        for (let c = 0; c < C; c++) {
          for (let h = 0; h < kd; h++) {
            for (let i = 0; i < kh; i++) {
              for (let j = 0; j < kw; j++) {
                const plane = od * sd - pd + h * dd;
                const [row, col] = [oh * sh - ph + i * dh, ow * sw - pw + j * dw];
                if (plane < 0 || plane >= D) continue;
                if (row < 0 || row >= H || col < 0 || col >= W) continue;
                const pixel = image[(((b * C + c) * D + plane) * H + row) * W + col] as number;
                sum += pixel * (kernel[(((n * C + c) * kd + h) * kh + i) * kw + j] as number);
              }
            }
          }
        }
        return sum;
      });
      expect(await y.read()).toEqual(expected);
      // <rows(x), d> = <x, rowsBackward(d)>, of integers exactly; the same of images.
      const d = integers(rows.size, 3);
      const back = patches.rowsBackward(Tensor.from(d, rows.shape, { device }));
      expect(back.shape).toEqual(x.shape);
      expect(dot(await rows.read(), d)).toBe(dot(image, await back.read()));
      const turned = patches.imageBackward(y);
      expect(await patches.image(turned).read()).toEqual(expected);
      const half = patches.rows(x.to({ dtype: 'bf16' }));
      expect(half.dtype).toBe('bf16');
      expect(await half.read()).toEqual(await rows.read());
    });
    expect(memoryUsage(device).liveTensors).toBe(before);
  });
});

describe('wrong calls', () => {
  const ok = { channels: 2, height: 4, width: 4, kernel: [3, 3], device: 'cpu' } as const;
  it.each([
    ['no kernel', { ...ok, kernel: undefined }, 'ERR_TYPE'],
    ['a kernel of one number', { ...ok, kernel: [3] }, 'ERR_SHAPE'],
    ['a kernel larger than the image', { ...ok, kernel: [5, 3] }, 'ERR_SHAPE'],
    ['a kernel of three numbers for an image', { ...ok, kernel: [3, 3, 3] }, 'ERR_SHAPE'],
    ['a kernel of two numbers for a volume', { ...ok, depth: 4 }, 'ERR_SHAPE'],
    ['a kernel deeper than the volume', { ...ok, depth: 2, kernel: [3, 3, 3] }, 'ERR_SHAPE'],
    ['a depth of 0', { ...ok, depth: 0, kernel: [1, 3, 3] }, 'ERR_VALUE'],
    ['no channels', { ...ok, channels: 0 }, 'ERR_VALUE'],
    ['a stride of 0', { ...ok, stride: [0, 1] }, 'ERR_VALUE'],
    ['a padding of a half', { ...ok, padding: [0.5, 1] }, 'ERR_VALUE'],
  ])('%s', (_, spec, code) => {
    const before = memoryUsage('cpu').liveTensors;
    expect(() => new Im2col(spec as never)).toThrow(expect.objectContaining({ code }));
    expect(memoryUsage('cpu').liveTensors).toBe(before);
  });

  it('images and rows of other sizes', () => {
    scope(() => {
      const patches = new Im2col(ok);
      const image = Tensor.zeros([1, 2, 4, 5], { device: 'cpu' });
      const code = (want: string) => expect.objectContaining({ code: want });
      expect(() => patches.rows(image)).toThrow(code('ERR_SHAPE'));
      expect(() => patches.rowsBackward(image)).toThrow(code('ERR_SHAPE'));
      expect(() => patches.image(image)).toThrow(code('ERR_SHAPE'));
      expect(() => patches.imageBackward(image)).toThrow(code('ERR_SHAPE'));
      expect(() => patches.rows(undefined as never)).toThrow(code('ERR_TYPE'));
    });
  });

  it('ids that are none', () => {
    scope(() => {
      const code = (want: string) => expect.objectContaining({ code: want });
      expect(() => oneHot([3], 3)).toThrow(code('ERR_VALUE'));
      expect(() => oneHot([-1], 3)).toThrow(code('ERR_VALUE'));
      expect(() => oneHot([0.5], 3)).toThrow(code('ERR_VALUE'));
      expect(() => oneHot(undefined as never, 3)).toThrow(code('ERR_TYPE'));
      expect([...oneHot([2, 0], 3, { device: 'cpu' }).readSync()]).toEqual([0, 0, 1, 1, 0, 0]);
    });
  });
});
