// GaLore's steps on dense matrices as the authors' program took them. The projectors are the library's own up to the signs of
// their vectors, which decide how moments go on after a change of basis: there the steps use the signs of the case.
import { describe, expect, it } from 'vitest';
import {
  defineOptimizer,
  optimizers,
  scope,
  Tensor,
  Trainer,
  type TrainPass,
} from '../../lib/index.js';
import { galoreUpdate, leadingVectors, type Projector } from '../../lib/optim/dense/galore.js';
import { DEVICES } from '../conformance/operands.js';
import { type GoldenCase, loadCase } from './case-file.js';
import { tensorOf } from './library.js';
import { RuleBook } from './rules.js';

const { galore } = optimizers;

/** The vectors of projector `index` as rows. */
function recorded(golden: GoldenCase, index: number, side: 'left' | 'right', rank: number) {
  const names = [`in.projector${index}.${side}`, `in.projector${index}`];
  const name = names.find((each) => golden.has(each));
  if (name === undefined) return undefined;
  const values = golden.numbers(name);
  const [first = 0, second = 0] = golden.tensor(name).shape;
  if (first === rank) return { n: second, rows: values };
  return {
    n: first,
    rows: Float64Array.from({ length: values.length }, (_, i) => {
      return values[(i % first) * second + Math.floor(i / first)] as number;
    }),
  };
}

/** Each row times the sign that brings it nearest to its counterpart. */
function withSigns(own: Float64Array, peer: Float64Array, n: number): Float64Array {
  return own.map((value, i) => {
    const row = i - (i % n);
    let dot = 0;
    for (let k = row; k < row + n; k++) dot += (own[k] as number) * (peer[k] as number);
    return dot < 0 ? -value : value;
  });
}

describe.each(DEVICES)('on %s', (device) => {
  it.each(['galore_tall_gap3', 'galore_wide_gap4', 'galore_full_gap8'])('%s', (name) => {
    scope(() => {
      const golden = loadCase(`optim/${name}`);
      const rules = new RuleBook(golden);
      const { rank, update_proj_gap, scale, proj_type, betas, eps, lr, weight_decay } =
        golden.params as Record<string, number> & { betas: number[]; proj_type: string };
      let calls = 0;
      const projector: Projector = (g, N, K, r) => {
        const own = leadingVectors(g, N, K, r);
        const turned = (side: 'left' | 'right') => {
          const peer = recorded(golden, calls, side, r);
          if (peer === undefined || peer.n !== (side === 'left' ? N : K)) return own[side];
          const made = withSigns(own[side], peer.rows, peer.n);
          made.forEach((value, i) => {
            expect(Math.abs(value - (peer.rows[i] as number)), `${side}[${i}]`).toBeLessThan(2e-5);
          });
          return made;
        };
        const made = { left: turned('left'), right: turned('right') };
        calls++;
        return made;
      };
      const p = tensorOf(golden.tensor('in.p0'), device);
      const trainer = new Trainer([{ name: 'p', role: 'other', tensor: p }], {
        optimizer: defineOptimizer({ ...galore, update: (u) => galoreUpdate(u, projector) }),
        settings: {
          ...{ rank, gap: update_proj_gap, scale, projection: proj_type },
          ...{ beta1: betas[0], beta2: betas[1], eps },
        },
        lr: lr as number,
        weightDecay: weight_decay as number,
      });
      const { shape } = golden.tensor('in.grads');
      const grads = golden.numbers('in.grads');
      const all: number[] = [];
      for (let step = 0; step < (shape[0] as number); step++) {
        const g = Tensor.from(
          Float32Array.from(grads.subarray(step * p.size, (step + 1) * p.size)),
          p.shape,
          { device },
        );
        const pass: TrainPass = (tape) => ({
          loss: tape.own(Tensor.from([0], [1], { device })),
          added: [[p, g]],
        });
        trainer.step(pass);
        all.push(...p.readSync());
      }
      rules.check('out.p_steps', all);
      rules.finish();
    });
  });
});
