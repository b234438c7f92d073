// The random stream of PyTorch's CPU generator, against values that it gave.
import { describe, it } from 'vitest';
import { TorchRandom } from '../../lib/checkpoint/random/torch-random.js';
import { loadCase } from './case-file.js';
import { RuleBook } from './rules.js';

const golden = loadCase('rng/torch_cpu_generator');

/** The bytes of integers as the peer stores them. */
const i64 = (values: Int32Array): Uint8Array =>
  new Uint8Array(BigInt64Array.from(values, BigInt).buffer);

describe('torch CPU generator', () => {
  it('gives the stream of every recorded draw', () => {
    const rules = new RuleBook(golden);
    for (const seed of golden.params.seeds as number[]) {
      const check = (name: string, draw: (random: TorchRandom) => ArrayLike<number>) =>
        rules.check(`out.s${seed}.${name}`, draw(new TorchRandom(seed)));
      check('rand_f32', (random) => random.uniform([40]));
      check('rand_f64', (random) => Float64Array.from({ length: 10 }, () => random.double()));
      check('randn_f32_n7', (random) => random.normal([7]));
      check('randn_f32_n40', (random) => random.normal([40]));
      check('randn_f32_n37', (random) => random.normal([37]));
      check('randint_0_1000', (random) => i64(random.integers([20], 0, 1000)));
      check('randperm_100', (random) => i64(random.permutation(100)));
      check('randperm_1536', (random) => i64(random.permutation(1536)));
      check('bernoulli_0.3', (random) => random.bernoulli([64], 0.3));
      check('kaiming_uniform_8x24', (random) => random.kaimingUniform([8, 24], Math.sqrt(5)));
      check('normal_6x20_std1/6', (random) => random.normal([6, 20], 0, 1 / 6));
      const vera = new TorchRandom(seed);
      rules.check(`out.s${seed}.vera_A_8x20`, vera.kaimingUniform([8, 20], 0));
      rules.check(`out.s${seed}.vera_B_16x8_same_generator`, vera.kaimingUniform([16, 8], 0));
    }
    rules.finish();
  });
});
