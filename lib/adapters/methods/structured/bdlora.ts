import { fail } from '../../../core/errors.js';
import { defineAdapter } from '../../definition/method.js';
import { alphaFields, kAlphaPatterns, readAlpha, scalingOf } from '../../parts/scaling.js';

interface BdConfig {
  readonly nblocks?: number;
  readonly target_modules_bd_a?: readonly string[] | null;
  readonly target_modules_bd_b?: readonly string[] | null;
  readonly match_strict?: boolean;
}

const named = (patterns: readonly string[] | null | undefined, module: string): boolean =>
  (patterns ?? []).some((pattern) => module.includes(pattern));

/**
 * The side that a config names for a module. PEFT has no layer with both sides, and one with neither only if the config
 * allows it.
 * @throws ERR_FILE
 */
function sideOf(config: BdConfig, module: string): 'a' | 'b' | 'none' {
  const [a, b] = [
    named(config.target_modules_bd_a, module),
    named(config.target_modules_bd_b, module),
  ];
  if (a !== b) return a ? 'a' : 'b';
  if (!a && config.match_strict === false) return 'none';
  const expected = `named on one side for ${module} (on neither, with match_strict false)`;
  return fail('ERR_FILE', 'adapterFromPeft', 'use_bdlora', expected, a ? 'both' : 'neither');
}

/**
 * LoRA with one block-diagonal factor, so that layers split across devices need no further exchange:
 * `y = x·wᵀ + scaling · (dropout(x)·loraAᵀ)·loraBᵀ`, where `side: 'a'` makes loraA block-diagonal (its blocks
 * stacked, [r, K / blocks]) and `'b'` loraB ([N, r / blocks]). `'none'` is plain LoRA, for layers next to these.
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
    if (side === 'none') return undefined;
    if (side !== 'a' && side !== 'b') return ['side', 'a, b or none', `"${side}"`];
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
    if (side === 'none') {
      const h = t.shrink(x, p.loraA, { dropout });
      return t.expand(x, w, h, p.loraB, { scaling, bias });
    }
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
    patterns: kAlphaPatterns,
    when: ({ use_bdlora }) => use_bdlora !== undefined && use_bdlora !== null,
    tensors: { loraA: 'lora_A.weight', loraB: 'lora_B.weight' },
    read: (config, module) => {
      const bd = config.use_bdlora as BdConfig;
      return {
        ...readAlpha(config, module),
        blocks: Number(bd.nblocks ?? 1),
        side: sideOf(bd, module),
      };
    },
    write: (config, modules, configs) => {
      const of = (side: string) => modules.filter((_, i) => configs[i]?.side === side);
      const or = (names: readonly string[]) => (names.length > 0 ? names : null);
      return {
        ...alphaFields(config),
        use_bdlora: {
          nblocks: config.blocks,
          match_strict: of('none').length === 0,
          target_modules_bd_a: or(of('a')),
          target_modules_bd_b: or(of('b')),
        },
      };
    },
  },
});
