// AdaMSS against PEFT, whose folders do not hold the clusters of outputs: they are beside the case.
import { describe, it } from 'vitest';
import { adamss } from '../../lib/adapters/methods/structured/adamss.js';
import { matmul, scope, Tensor } from '../../lib/index.js';
import { baseTensor } from './adapter-case.js';
import { caseIds, configOf, type GoldenTensor, loadCase, numbersOf } from './case-file.js';
import { tensorOf } from './library.js';
import { RuleBook } from './rules.js';

describe.each(['cpu', 'reference'] as const)('AdaMSS on %s', (device) => {
  it.each(caseIds('tuners').filter((id) => configOf(id).peft_type === 'ADAMSS'))(
    '%s',
    async (id) => {
      await scope(async () => {
        const golden = loadCase(id);
        const rules = new RuleBook(golden);
        const { tensors } = golden.adapter();
        const raw = (name: string): GoldenTensor => {
          const found = tensors.get(`base_model.model.lin.${name}`);
          if (found === undefined) throw new Error(name);
          return found;
        };
        const stored = (name: string): Float64Array => numbersOf(raw(name));
        const [N = 0, K = 0] = golden.tensor('base.lin.weight').shape;
        const clusters = [...tensors.keys()]
          .filter((key) => /adamss_B\.\d+$/.test(key))
          .map((_, i) => i);
        const [q = 0, R = 0] = raw('adamss_A.0').shape;
        // Of the base's bias too, in a last column.
        const withBias = raw('adamss_newB').shape[1] === K + 1;
        const width = withBias ? K + 1 : K;
        // The outputs of the clusters, one cluster after another.
        const order = [...golden.numbers('aux.attr.lin.scatter_index')];
        const sizes = clusters.map((i) => stored(`adamss_B.${i}`).length / q);
        const subspace = new Int32Array(N);
        const b = new Float64Array(N * q);
        let at = 0;
        sizes.forEach((size, i) => {
          const values = stored(`adamss_B.${i}`);
          for (let own = 0; own < size; own++) {
            const output = order[at++] as number;
            subspace[output] = i;
            b.set(values.subarray(own * q, (own + 1) * q), output * q);
          }
          if (size === 0) throw new Error('an empty cluster');
        });
        const basis = stored('adamss_newB');
        const part = (values: ArrayLike<number>, shape: number[]): Tensor =>
          Tensor.from(Float64Array.from(values), shape, { device });
        const adapter = adamss.from(
          {
            a: part(
              clusters.flatMap((i) => [...stored(`adamss_A.${i}`)]),
              [clusters.length * q, R],
            ),
            b: part(b, [N, q]),
            basis: part(
              basis.filter((_, i) => i % width < K),
              [R, K],
            ),
            ...(withBias
              ? {
                  basisBias: part(
                    basis.filter((_, i) => i % width === K),
                    [R],
                  ),
                }
              : {}),
          },
          {
            inFeatures: K,
            outFeatures: N,
            r: R,
            subspaces: clusters.length,
            subspaceRank: q,
            withBias,
          },
          { subspace },
        );
        const [w, x, dy] = ['base.lin.weight', 'in.x', 'in.grad_out'].map((name) =>
          tensorOf(golden.tensor(name), device),
        ) as [Tensor, Tensor, Tensor];
        const bias = baseTensor(golden, 'lin.bias', device);
        const given = bias === undefined ? {} : { bias };
        const { y, saved } = adapter.forward(x, w, given);
        rules.check('out.y', await y.read());
        const { dx, parameters } = adapter.backward(dy, saved);
        rules.check('grad.x', await (dx as Tensor).read());
        const [da, db] = [await parameters.a?.read(), await parameters.b?.read()];
        at = 0;
        sizes.forEach((size, i) => {
          const own = order.slice(at, at + size);
          at += size;
          const prefix = 'grad.base_model.model.lin.adamss_';
          rules.check(`${prefix}A.${i}`, (da as Float32Array).slice(i * q * R, (i + 1) * q * R));
          rules.check(
            `${prefix}B.${i}`,
            own.flatMap((n) => [...(db as Float32Array).slice(n * q, (n + 1) * q)]),
          );
        });
        const zeros = Tensor.zeros([N, K], { device });
        rules.check('out.delta.lin', await (adapter.merge(zeros).weight as Tensor).read());
        const merged = adapter.merge(w, given);
        rules.check('merged.lin.weight', await (merged.weight as Tensor).read());
        if (rules.has('merged.lin.bias'))
          rules.check('merged.lin.bias', await (merged.bias as Tensor).read());
        const shift = merged.bias ?? bias;
        const through = matmul(x, merged.weight, shift === undefined ? {} : { bias: shift });
        rules.check('out.y_merged', await through.read());
        rules.finish();
      });
    },
  );
});
