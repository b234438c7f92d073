import { Tensor } from '../../../core/tensor.js';
import { FeatureMap } from '../../../ops/feature-map.js';
import { defineAdapter } from '../../definition/method.js';

/**
 * Circular convolution: w in blocks of b × b, each with a circulant update, `y = x·wᵀ + C·x / K`,
 * `C_mn[s, t] = kernel[m, n, (t - s) mod b]`. In the frequency domain it is diagonal: products with a table
 * of cosines and sines transform x and the kernels, blocks are multiplied frequency by frequency, and the
 * sum is transformed back. A token then costs `2·N·K / b + b·(N + K)` products instead of N·K.
 */
export const c3a = defineAdapter({
  method: 'c3a',
  reference:
    'Chen et al., Parameter-Efficient Fine-Tuning via Circular Convolution, 2024, arXiv:2407.19342',
  defaults: { blockSize: 256, init: 'zeros' },
  trained: ['kernel'],
  shapes: ({ N, K, config: { blockSize: b } }) => ({ kernel: [N / b, K / b, b] }),
  check: ({ N, K, config: { blockSize: b, init } }) => {
    if (!(b > 0) || N % b !== 0 || K % b !== 0) {
      return ['blockSize', `a divisor of K (${K}) and of N (${N})`, String(b)];
    }
    const inits = ['zeros', 'gaussian', 'xavier'];
    return inits.includes(init) ? undefined : ['init', `one of ${inits.join(', ')}`, `"${init}"`];
  },
  init: (make) => {
    const { N, K, config } = make;
    if (config.init === 'zeros') return { kernel: make.zeros('kernel') };
    const xavier = Math.sqrt(6 / (N + K));
    return {
      kernel:
        config.init === 'gaussian' ? make.normal('kernel', 1) : make.uniform('kernel', xavier),
    };
  },
  prepare: ({ N, K, config: { blockSize: b }, device }) => {
    const [m, n, h] = [N / b, K / b, Math.floor(b / 2) + 1];
    // Σ v[t] cos(2π f t / b) next to Σ v[t] sin(2π f t / b).
    const wave = (f: number, t: number): number => {
      const angle = (2 * Math.PI * ((f * t) % b)) / b;
      return Math.cos(angle);
    };
    const wave90 = (f: number, t: number): number => Math.sin((2 * Math.PI * ((f * t) % b)) / b);
    const table = Float32Array.from({ length: 2 * h * b }, (_, at) => {
      const [f, t] = [Math.floor(at / b), at % b];
      return f < h ? wave(f, t) : wave90(f - h, t);
    });
    // Inverse transform: every frequency counts twice, except the first, and the middle one of an
    // even b.
    const back = Float32Array.from(table, (v, at) => {
      const f = Math.floor(at / b) % h;
      return (v * (f === 0 || 2 * f === b ? 1 : 2)) / b / K;
    });
    // [blocks, 2h] to [h, 2·blocks]: both parts of every block, frequency by frequency.
    const gather = (blocks: number): Int32Array =>
      Int32Array.from({ length: h * 2 * blocks }, (_, at) => {
        const [f, part] = [Math.floor(at / (2 * blocks)), Math.floor((at % (2 * blocks)) / blocks)];
        return (at % blocks) * 2 * h + part * h + f;
      });
    // The kernels' parts as [h, 2m, 2n]: [c, s; -s, c], with the minus sign in a separate map.
    const place = (sign: number): Int32Array =>
      Int32Array.from({ length: h * 4 * m * n }, (_, at) => {
        const [f, row] = [Math.floor(at / (4 * m * n)), Math.floor(at / (2 * n)) % (2 * m)];
        const col = at % (2 * n);
        const [down, right] = [Math.floor(row / m), Math.floor(col / n)];
        if ((down === 1 && right === 0) !== sign < 0) return -1;
        const part = down === right ? 0 : 1;
        return ((row % m) * n + (col % n)) * 2 * h + part * h + f;
      });
    const entries = m * n * 2 * h;
    return {
      table: Tensor.from(table, [2 * h, b], { device }),
      back: Tensor.from(back, [2 * h, b], { device }),
      input: FeatureMap.gather(gather(n), n * 2 * h, { device }),
      output: FeatureMap.gather(gather(m), m * 2 * h, { device }),
      plus: FeatureMap.gather(place(1), entries, { device }),
      minus: FeatureMap.gather(place(-1), entries, { device }),
      h,
    };
  },
  forward: (t, { x, w, bias, p, state, config, N, K }) => {
    const { blockSize: b } = config;
    const { h } = state;
    const [m, n] = [N / b, K / b];
    const lead = x.shape.slice(0, -1);
    const table = t.constant(state.table);
    const spectrum = t.reshape(t.matmul(p.kernel, table), [m * n * 2 * h]);
    const minus = t.features(spectrum, state.minus);
    const weights = t.features(spectrum, state.plus, { plus: minus, beta: -1 });
    const parts = t.shrink(t.reshape(x, [...lead, n, b]), table);
    const input = t.features(t.reshape(parts, [...lead, n * 2 * h]), state.input);
    const product = t.blockMatmul(
      t.reshape(input, [...lead, h, 2 * n]),
      t.reshape(weights, [h, 2 * m, 2 * n]),
    );
    const output = t.features(t.reshape(product, [...lead, h * 2 * m]), state.output.adjoint);
    const update = t.product(t.reshape(output, [...lead, m, 2 * h]), t.constant(state.back));
    return t.add(t.linear(x, w, bias), t.reshape(update, [...lead, N]));
  },
  peft: {
    type: 'C3A',
    patterns: { block_size: 'block_size_pattern' },
    tensors: { kernel: 'c3a_kernel' },
    read: (config, _, shapeOf) => {
      const [, , size] = shapeOf('kernel') ?? [];
      return { blockSize: size ?? Number(config.block_size ?? 256) };
    },
    write: ({ blockSize, init }) => ({
      block_size: blockSize,
      init_weights: init === 'zeros' ? true : init === 'xavier' ? 'xavier_uniform' : init,
    }),
  },
});
