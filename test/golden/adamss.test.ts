// AdaMSS against PEFT, whose folders do not hold the clusters of outputs: they are beside the case.
import { describe, it } from 'vitest';
import { adamss } from '../../lib/adapters/adamss.js';
import { matmul, scope, Tensor } from '../../lib/index.js';
import { loadCase, numbersOf } from './case-file.js';
import { tensorOf } from './library.js';
import { RuleBook } from './rules.js';

const [N, K, R] = [36, 48, 16];

describe.each(['cpu', 'reference'] as const)('AdaMSS on %s', (device) => {
  it('tuners/adamss', async () => {
    await scope(async () => {
      const golden = loadCase('tuners/adamss');
      const rules = new RuleBook(golden);
      const { tensors } = golden.adapter();
      const stored = (name: string): Float64Array => {
        const found = tensors.get(`base_model.model.lin.${name}`);
        if (found === undefined) throw new Error(name);
        return numbersOf(found);
      };
      // The outputs of the clusters, one cluster after another.
      const order = [...golden.numbers('aux.attr.lin.scatter_index')];
      const sizes = [0, 1, 2].map((i) => stored(`adamss_B.${i}`).length);
      const subspace = new Int32Array(N);
      const b = new Float64Array(N);
      let at = 0;
      sizes.forEach((size, i) => {
        stored(`adamss_B.${i}`).forEach((value) => {
          const output = order[at++] as number;
          subspace[output] = i;
          b[output] = value;
        });
        if (size === 0) throw new Error('an empty cluster');
      });
      const basis = stored('adamss_newB');
      const part = (values: ArrayLike<number>, shape: number[]): Tensor =>
        Tensor.from(Float64Array.from(values), shape, { device });
      const adapter = adamss.from(
        {
          a: part(
            [0, 1, 2].flatMap((i) => [...stored(`adamss_A.${i}`)]),
            [3, R],
          ),
          b: part(b, [N, 1]),
          basis: part(
            basis.filter((_, i) => i % (K + 1) < K),
            [R, K],
          ),
          basisBias: part(
            basis.filter((_, i) => i % (K + 1) === K),
            [R],
          ),
        },
        { inFeatures: K, outFeatures: N, r: R, subspaces: 3, withBias: true },
        { subspace },
      );
      const [w, bias, x, dy] = ['base.lin.weight', 'base.lin.bias', 'in.x', 'in.grad_out'].map(
        (name) => tensorOf(golden.tensor(name), device),
      ) as [Tensor, Tensor, Tensor, Tensor];
      const { y, saved } = adapter.forward(x, w, { bias });
      rules.check('out.y', await y.read());
      const { dx, parameters } = adapter.backward(dy, saved);
      rules.check('grad.x', await (dx as Tensor).read());
      const [da, db] = [await parameters.a?.read(), await parameters.b?.read()];
      at = 0;
      sizes.forEach((size, i) => {
        const own = order.slice(at, at + size);
        at += size;
        const prefix = 'grad.base_model.model.lin.adamss_';
        rules.check(`${prefix}A.${i}`, (da as Float32Array).slice(i * R, (i + 1) * R));
        rules.check(
          `${prefix}B.${i}`,
          own.map((n) => db?.[n] as number),
        );
      });
      const zeros = Tensor.zeros([N, K], { device });
      rules.check('out.delta.lin', await (adapter.merge(zeros).weight as Tensor).read());
      const merged = adapter.merge(w, { bias });
      rules.check('merged.lin.weight', await (merged.weight as Tensor).read());
      rules.check('merged.lin.bias', await (merged.bias as Tensor).read());
      const through = matmul(x, merged.weight, { bias: merged.bias as Tensor });
      rules.check('out.y_merged', await through.read());
      rules.finish();
    });
  });
});
