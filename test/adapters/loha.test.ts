// LoHa's settings from PEFT's config: patterns, kernels, and ABBA's scaling.
import { describe, expect, it } from 'vitest';
import { adapterFromPeft, type PeftFolder, type RawTensor, scope } from '../../lib/index.js';

const [N, K, r] = [6, 8, 2];
const raw = (...shape: number[]): RawTensor => ({
  dtype: 'F32',
  shape,
  data: new Float32Array(shape.reduce((product, dim) => product * dim, 1)).fill(0.5),
});

const folderOf = (
  config: Readonly<Record<string, unknown>>,
  tensors: Readonly<Record<string, RawTensor>>,
): PeftFolder => ({
  config: { peft_type: 'LOHA', r, alpha: 3, ...config },
  tensors: new Map(
    Object.entries(tensors).map(([name, tensor]) => [`base_model.model.lin.hada_${name}`, tensor]),
  ),
});

const linear = { w1_a: raw(N, r), w1_b: raw(r, K), w2_a: raw(N, r), w2_b: raw(r, K) };
const core = raw(r, r, 2, 2);
const tucker = {
  ...{ w1_a: raw(r, N), w1_b: raw(r, K / 4), t1: core },
  ...{ w2_a: raw(r, N), w2_b: raw(r, K / 4), t2: core },
};

const read = (config: object, tensors: Readonly<Record<string, RawTensor>> = linear) =>
  scope(() => {
    const folder = folderOf(config as Record<string, unknown>, tensors);
    return adapterFromPeft(folder, 'lin', { inFeatures: K, outFeatures: N }).config as object;
  });

describe('a LoHa folder', () => {
  it('has the scaling of its config', () => {
    expect(read({})).toMatchObject({ r, loraAlpha: 3, kernel: [1, 1] });
    expect(read({ alpha_pattern: { lin: 5 } })).toMatchObject({ loraAlpha: 5 });
  });

  it('of ABBA scales both products', () => {
    // alpha/√r each: alpha²/r in all.
    expect(read({ init_weights: 'abba' })).toMatchObject({ loraAlpha: 9 });
    expect(read({ init_weights: 'abba', use_khatri_rao: 'auto' })).toMatchObject({ loraAlpha: 9 });
    expect(read({ use_khatri_rao: true })).toMatchObject({ loraAlpha: 9 });
    expect(read({ init_weights: 'abba', use_khatri_rao: false })).toMatchObject({ loraAlpha: 3 });
  });

  it('of two ranks is refused', () => {
    const other = { ...linear, w2_a: raw(N, 3), w2_b: raw(3, K) };
    expect(() => read({ init_weights: 'abba', r2: 3 }, other)).toThrow(/w2A.*\[6, 2\].*\[6, 3\]/);
  });

  it('of a convolution has its kernel, and Tucker’s scaling', () => {
    const config = { use_effective_conv2d: true, init_weights: 'abba' };
    expect(read(config, tucker)).toMatchObject({ loraAlpha: 3, kernel: [2, 2] });
    // A linear layer beside it has none.
    expect(read({ use_effective_conv2d: true })).toMatchObject({ kernel: [1, 1] });
    const broken = { ...tucker, t1: raw(r, r, 2, 2, 1, 1) };
    expect(() => read(config, broken)).toThrow(/kernel.*three sizes.*\[2,2,1,1\]/);
    expect(() => read(config, { ...tucker, t2: raw(r, r, 4, 1) })).toThrow(/t2.*\[2, 2, 2, 2\]/);
  });
});
