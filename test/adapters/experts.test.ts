// PEFT's target_parameters: LoRA of experts whose weights are one parameter. Its einsum is written out here.
import { describe, expect, it } from 'vitest';
import {
  type Adapter,
  adapterFromPeft,
  type ExpertsPlace,
  expertsFromPeft,
  scope,
  Tensor,
} from '../../lib/index.js';
import { namesIn, near, raw, wave } from './peft-folder.js';

const [E, r, K, N, M] = [3, 2, 5, 4, 3];
const device = 'cpu' as const;
const module = 'layers.0.mlp.experts';
const config = {
  peft_type: 'LORA',
  r,
  lora_alpha: 6,
  target_modules: [],
  target_parameters: ['mlp.experts.gate_up_proj'],
};
const place: ExpertsPlace = { inFeatures: K, outFeatures: N, device };

/** lora_A [r · E, i] and lora_B [o, r · E], and what they add: delta[e, i, o] = scaling · Σₖ B[o, k, e] · A[e, k, i]. */
function parameter(inner: number, outer: number, phase = 0, experts = E) {
  const a = wave(r * experts * inner, phase);
  const b = wave(outer * r * experts, phase + 1);
  const delta = (e: number, i: number, o: number): number => {
    let sum = 0;
    for (let k = 0; k < r; k++) {
      const left = b[(o * r + k) * experts + e] as number;
      sum += left * (a[(e * r + k) * inner + i] as number);
    }
    return (6 / r) * sum;
  };
  const tensors = {
    'lora_A.weight': raw([r * experts, inner], a),
    'lora_B.weight': raw([outer, r * experts], b),
  };
  return { tensors, delta };
}

const under = (level: number, tensors: object) =>
  Object.fromEntries(
    Object.entries(tensors).map(([key, value]) => ['base_layer.'.repeat(level) + key, value]),
  );

function read(tensors: object, given: Partial<ExpertsPlace> = {}, fields: object = {}): Adapter[] {
  const folder = { config: { ...config, ...fields }, tensors: namesIn(module, { ...tensors }) };
  return expertsFromPeft(folder, module, { ...place, ...given });
}

/** Each expert's layer is x·(w + update)ᵀ, merged too. */
function expectUpdates(
  experts: readonly Adapter[],
  [rows, cols]: readonly [N: number, K: number],
  update: (e: number, n: number, k: number) => number,
): void {
  experts.forEach((expert, e) => {
    const [x, w] = [wave(M * cols, e + 4), wave(rows * cols, e + 9)];
    const base = Tensor.from(w, [rows, cols], { device });
    const weight = Float64Array.from(w, (v, i) => v + update(e, Math.floor(i / cols), i % cols));
    const { y } = expert.forward(Tensor.from(x, [M, cols], { device }), base);
    const expected = Array.from({ length: M * rows }, (_, at) => {
      const [m, n] = [Math.floor(at / rows), at % rows];
      let sum = 0;
      for (let k = 0; k < cols; k++)
        sum += (x[m * cols + k] as number) * (weight[n * cols + k] as number);
      return sum;
    });
    near(y.readSync(), expected);
    near((expert.merge(base).weight as Tensor).readSync(), weight);
  });
}

describe('experts of a parameter', () => {
  it.each(['', '.default'])('are LoRA layers, lora_A on their inputs, %s', (name) => {
    scope(() => {
      const { tensors, delta } = parameter(K, N);
      const keys = Object.fromEntries(
        Object.entries(tensors).map(([key, value]) => [
          key.replace('.weight', `${name}.weight`),
          value,
        ]),
      );
      const experts = read(keys);
      expect(experts.length).toBe(E);
      expectUpdates(experts, [N, K], (e, n, k) => delta(e, k, n));
    });
  });

  it('may have lora_A on their outputs, as the shapes say', () => {
    scope(() => {
      const { tensors, delta } = parameter(N, K);
      expectUpdates(read(tensors), [N, K], (e, n, k) => delta(e, n, k));
    });
  });

  it.each([undefined, false, true])('that are square are told by transposed: %s', (transposed) => {
    scope(() => {
      const { tensors, delta } = parameter(K, K);
      const given = { outFeatures: K, ...(transposed === undefined ? {} : { transposed }) };
      expectUpdates(read(tensors, given), [K, K], (e, n, k) =>
        transposed === true ? delta(e, n, k) : delta(e, k, n),
      );
    });
  });

  it('of two parameters are told apart by their shapes', () => {
    scope(() => {
      const [outer, inner] = [parameter(K, N), parameter(7, 6, 3)];
      const tensors = { ...outer.tensors, ...under(1, inner.tensors) };
      expectUpdates(read(tensors), [N, K], (e, n, k) => outer.delta(e, k, n));
      const other = read(tensors, { inFeatures: 7, outFeatures: 6 });
      expectUpdates(other, [6, 7], (e, n, k) => inner.delta(e, k, n));
    });
  });

  it('of two parameters of one shape are told apart by their level', () => {
    scope(() => {
      const both = [parameter(K, N), parameter(K, N, 3)] as const;
      const tensors = { ...both[0].tensors, ...under(1, both[1].tensors) };
      expect(() => read(tensors)).toThrow(
        expect.objectContaining({
          code: 'ERR_VALUE',
          message: expect.stringMatching(
            /level must be given.*K = 5 and N = 4, got none of 0 and 1/,
          ),
        }),
      );
      both.forEach(({ delta }, level) => {
        expectUpdates(read(tensors, { level }), [N, K], (e, n, k) => delta(e, k, n));
      });
    });
  });

  it('have the rank, alpha and scaling of patterns', () => {
    scope(() => {
      const { tensors } = parameter(K, N);
      const patterns = { r: 9, lora_alpha: 1, use_rslora: true };
      const named = {
        rank_pattern: { gate_up_proj: r },
        alpha_pattern: { 'experts.gate_up_proj': 8 },
      };
      const [first] = read(tensors, { parameter: 'gate_up_proj' }, { ...patterns, ...named });
      expect(first?.config).toMatchObject({ r, loraAlpha: 8, rslora: true });
      expect(() => read(tensors, {}, { ...patterns, ...named })).toThrow(/rank 9/);
    });
  });

  it('are in the dtype that is asked for', () => {
    scope(() => {
      const [first] = read(parameter(K, N).tensors, { dtype: 'bf16' });
      expect(first?.parameters.loraA?.dtype).toBe('bf16');
    });
  });

  it.each([
    ['no tensors', {}, {}, {}, 'ERR_FILE', /must have the tensor lora_A\.weight/],
    ['one of two', { 'lora_A.weight': raw([6, K]) }, {}, {}, 'ERR_FILE', /lora_B\.weight/],
    [
      'another size',
      parameter(K, 3).tensors,
      {},
      {},
      'ERR_SHAPE',
      /K = 5 and N = 4, got lora_A \[6, 5\], lora_B \[3, 6\]/,
    ],
    ['another rank', parameter(K, N).tensors, {}, { r: 4 }, 'ERR_SHAPE', /rank 4/],
    ['no such level', parameter(K, N).tensors, { level: 1 }, {}, 'ERR_SHAPE', /experts/],
    ['DoRA', parameter(K, N).tensors, {}, { use_dora: true }, 'ERR_UNSUPPORTED', /lora, got dora/],
    [
      'dropout',
      parameter(K, N).tensors,
      {},
      { lora_dropout: 0.1 },
      'ERR_UNSUPPORTED',
      /lora_dropout must be 0, got 0\.1/,
    ],
    ['no sizes', parameter(K, N).tensors, { inFeatures: 0 }, {}, 'ERR_VALUE', /inFeatures/],
  ] as const)('are refused with %s', (_, tensors, given, fields, code, text) => {
    expect(() => read(tensors, given, fields)).toThrow(
      expect.objectContaining({ code, message: expect.stringMatching(text) }),
    );
  });

  it('are not read as one adapter; a single matrix is', () => {
    const adapter = (experts: number) =>
      adapterFromPeft(
        { config, tensors: namesIn(module, parameter(K, N, 0, experts).tensors) },
        module,
        { inFeatures: K, outFeatures: N, device },
      );
    expect(() => adapter(E)).toThrow(
      expect.objectContaining({
        code: 'ERR_UNSUPPORTED',
        message: expect.stringMatching(
          /layers\.0\.mlp\.experts.*expertsFromPeft.*got 6 rows.*r = 2/,
        ),
      }),
    );
    scope(() =>
      expectUpdates([adapter(1)], [N, K], (e, n, k) => parameter(K, N, 0, 1).delta(e, k, n)),
    );
  });
});
