import { defineAdapter } from './method.js';
import { alphaFields, readAlpha, scalingOf } from './scaling.js';

interface BdConfig {
  readonly nblocks?: number;
  readonly target_modules_bd_a?: readonly string[] | null;
  readonly target_modules_bd_b?: readonly string[] | null;
}

const named = (patterns: readonly string[] | null | undefined, module: string): boolean =>
  (patterns ?? []).some((pattern) => module.includes(pattern));

/**
 * LoRA with one block-diagonal factor, so that layers cut across devices need no further exchange:
 * `y = x·wᵀ + scaling · (dropout(x)·loraAᵀ)·loraBᵀ`, where `side: 'a'` makes loraA block-diagonal (its
 * blocks below each other, [r, K / blocks]) and `'b'` loraB ([N, r / blocks]).
 */
export const bdlora = defineAdapter({
  method: 'bdlora',
  reference:
    'Wang et al., Block-Diagonal LoRA for Eliminating Communication Overhead in Tensor Parallel LoRA Serving, 2025, arXiv:2510.23346',
  defaults: { r: 8, loraAlpha: 8, rslora: false, dropout: 0, blocks: 2, side: 'a' },
  trained: ['loraA', 'loraB'],
  shapes: ({ N, K, config: { r, blocks, side } }) => ({
    loraA: [r, side === 'a' ? K / blocks : K],
    loraB: [N, side === 'b' ? r / blocks : r],
  }),
  check: ({ N, K, config: { r, blocks, side } }) => {
    if (side !== 'a' && side !== 'b') return ['side', "'a' or 'b'", `'${side}'`];
    const [name, width] = side === 'a' ? ['K', K] : ['N', N];
    return blocks > 0 && r % blocks === 0 && width % blocks === 0
      ? undefined
      : ['blocks', `a divisor of r (${r}) and of ${name} (${width})`, String(blocks)];
  },
  init: (make) => ({ loraA: make.kaiming('loraA'), loraB: make.zeros('loraB') }),
  forward: (t, { x, w, bias, p, config, N, K }) => {
    const { r, blocks, side, dropout } = config;
    const scaling = scalingOf(config);
    const lead = x.shape.slice(0, -1);
    if (side === 'a') {
      const input = t.cast(t.dropout(x, dropout), 'f32');
      const parts = t.reshape(input, [...lead, blocks, K / blocks]);
      const loraA = t.reshape(p.loraA, [blocks, r / blocks, K / blocks]);
      const h = t.reshape(t.blockMatmul(parts, loraA), [...lead, r]);
      return t.expand(x, w, h, p.loraB, { scaling, bias });
    }
    const h = t.reshape(t.shrink(x, p.loraA, { dropout }), [...lead, blocks, r / blocks]);
    const loraB = t.reshape(p.loraB, [blocks, N / blocks, r / blocks]);
    const update = t.reshape(t.blockMatmul(h, loraB), [...lead, N]);
    return t.add(t.linear(x, w, bias), update, 1, scaling);
  },
  peft: {
    type: 'LORA',
    when: ({ use_bdlora }) => use_bdlora !== undefined && use_bdlora !== null,
    tensors: { loraA: 'lora_A.weight', loraB: 'lora_B.weight' },
    read: (config, module) => {
      const { nblocks, target_modules_bd_a } = config.use_bdlora as BdConfig;
      return {
        ...readAlpha(config, module),
        blocks: Number(nblocks ?? 1),
        side: named(target_modules_bd_a, module) ? 'a' : 'b',
      };
    },
    write: (config, modules) => ({
      ...alphaFields(config),
      use_bdlora: {
        nblocks: config.blocks,
        match_strict: true,
        target_modules_bd_a: config.side === 'a' ? modules : null,
        target_modules_bd_b: config.side === 'b' ? modules : null,
      },
    }),
  },
});
