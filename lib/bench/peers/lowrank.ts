/**
 * This library: fused, its own ops without fusion, and the base product without an adapter.
 */

import { GGUF_TYPES } from '../../checkpoint/gguf/block-types.js';
import { version } from '../../environment/version.js';
import type { ComputePrecision, LoraSaved, Tensor } from '../../index.js';
import { ggufTypeOf, type Job } from '../job.js';
import type { Context, Peer, Subject } from '../peer.js';
import { Operands } from './operands.js';

/** A subject from a function that returns the result and whatever else must be freed. */
function subject(
  operands: Operands,
  body: () => { result: Tensor; others: readonly (Tensor | LoraSaved | undefined)[] },
  note?: string,
): Subject {
  const run = () => {
    const { result, others } = body();
    for (const value of others) value?.dispose();
    return result;
  };
  return {
    weightBytes: operands.weightBytes,
    copies: operands.weights.length,
    ...(note === undefined ? {} : { note }),
    run: () => run().dispose(),
    finish: () => operands.wait(),
    output: async () => {
      const result = run();
      const values = await result.to({ dtype: 'f32' }).read();
      result.dispose();
      return values as ArrayLike<number>;
    },
  };
}

/** The operands of a job, its adapter, and the subjects of its forward ops. */
function layerOf(job: Job, context: Context, compute: ComputePrecision, note?: string) {
  const { matmul, loraForward, LoraAdapter } = context.lowrank;
  const operands = new Operands(job, context);
  const { x, loraA, loraB } = operands;
  const adapter = new LoraAdapter({ loraA, loraB, loraAlpha: context.scaling * job.r });
  return {
    operands,
    adapter,
    matmul: () =>
      subject(
        operands,
        () => ({ result: matmul(x, operands.next(), { compute }), others: [] }),
        note,
      ),
    loraForward: () =>
      subject(
        operands,
        () => {
          const { y, saved } = loraForward(x, operands.next(), adapter, { compute });
          return { result: y, others: [saved] };
        },
        note,
      ),
  };
}

/** Why this library cannot make such a weight. */
function refusesWeight({ format, K }: Job): string | undefined {
  const type = ggufTypeOf(format);
  const whole = format === 'int8-rowwise' ? 32 : type === undefined ? 1 : GGUF_TYPES[type].elements;
  return K % whole !== 0 ? `only K of a multiple of ${whole}` : undefined;
}

export const lowrankPeer: Peer = {
  name: 'lowrank',
  find: () => ({ version: version() }),
  refuses: refusesWeight,
  prepare(job, context) {
    const { loraForward, loraBackward } = context.lowrank;
    const layer = layerOf(job, context, 'exact');
    const { operands, adapter } = layer;
    const { x, dy } = operands;
    const backward = (saved: LoraSaved, keep: boolean, others: readonly Tensor[]) => {
      const { dx, dLoraA, dLoraB } = loraBackward(dy, saved, { keep });
      return { result: dx as Tensor, others: [dLoraA, dLoraB, ...others] };
    };
    switch (job.op) {
      case 'matmul':
      case 'loraForward':
        return layer[job.op]();
      case 'loraBackward': {
        const states = operands.weights.map((w) => {
          const { y, saved } = loraForward(x, w, adapter);
          y.dispose();
          return saved;
        });
        let turn = 0;
        return subject(operands, () =>
          backward(states[turn++ % states.length] as LoraSaved, true, []),
        );
      }
      case 'lora':
        return subject(operands, () => {
          const { y, saved } = loraForward(x, operands.next(), adapter);
          return backward(saved, false, [y]);
        });
    }
  },
};

/** With `compute: 'int8'`, for forward passes of 4-bit and rowwise int8 weights. */
export const lowrankInt8Peer: Peer = {
  name: 'lowrank-int8',
  find: () => ({ version: version() }),
  computes: 'int8',
  refuses(job) {
    const { op, format, device } = job;
    if (op !== 'matmul' && op !== 'loraForward') return 'only products and forward passes';
    if (format === 'int8' || format === 'none' || ggufTypeOf(format) !== undefined) {
      return 'only nf4, fp4, int4 and int8-rowwise';
    }
    if (refusesWeight(job) !== undefined) return refusesWeight(job);
    return device === 'cpu' || device === 'reference' ? undefined : `not on ${device}`;
  },
  prepare(job, context) {
    const note = job.format === 'int8-rowwise' ? 'x' : 'x and the codebook';
    const layer = layerOf(job, context, 'int8', `${note} rounded to int8`);
    return job.op === 'matmul' ? layer.matmul() : layer.loraForward();
  },
};

/** Dequantises the weight at every call, like a library without a quantised product. */
export const unfusedPeer: Peer = {
  name: 'unfused',
  find: () => ({ version: version() }),
  refuses: refusesWeight,
  prepare(job, context) {
    const { matmul, matmulInputGrad, dequantize, Tensor } = context.lowrank;
    const operands = new Operands(job, context);
    const { x, dy } = operands;
    const loraA = operands.loraA.to({ dtype: job.dtype });
    const loraB = operands.loraB.to({ dtype: job.dtype });
    const withDense = (body: (dense: Tensor) => readonly Tensor[]) => {
      const w = operands.next();
      const dense = w instanceof Tensor ? undefined : dequantize(w, { dtype: job.dtype });
      const [result, ...others] = body(dense ?? (w as Tensor)) as [Tensor, ...Tensor[]];
      return { result, others: [...others, dense] };
    };
    const forward = (dense: Tensor) => {
      const h = matmul(x, loraA);
      return [matmul(x, dense), matmul(h, loraB), h];
    };
    const backward = (dense: Tensor) => {
      const dh = matmulInputGrad(dy, loraB);
      return [matmulInputGrad(dy, dense), matmulInputGrad(dh, loraA), dh];
    };
    const bodies: Readonly<Record<Job['op'], () => ReturnType<typeof withDense>>> = {
      matmul: () => withDense((dense) => [matmul(x, dense)]),
      loraForward: () => withDense(forward),
      loraBackward: () => withDense(backward),
      lora: () => {
        const first = withDense(forward);
        const second = withDense(backward);
        return { result: second.result, others: [...second.others, first.result, ...first.others] };
      },
    };
    const without = {
      matmul: '',
      loraForward: '; no sum of both parts',
      loraBackward: '; no gradients of the factors',
      lora: '; no gradients of the factors',
    }[job.op];
    const note = `weight dequantised each pass${without}`;
    const { output: _, ...rest } = subject(operands, bodies[job.op], note);
    return rest;
  },
};

/** The product that the adapter is added to: the adapter's cost is the time of the fused op relative to this. */
export const basePeer: Peer = {
  name: 'base',
  adapter: false,
  find: () => ({ version: version() }),
  refuses: (job) => (job.op === 'matmul' ? 'there is no adapter' : refusesWeight(job)),
  prepare(job, context) {
    const { matmul, matmulInputGrad } = context.lowrank;
    const operands = new Operands(job, context);
    const { x, dy } = operands;
    const bodies: Readonly<Record<Job['op'], () => { result: Tensor; others: Tensor[] }>> = {
      matmul: () => ({ result: matmul(x, operands.next()), others: [] }),
      loraForward: () => ({ result: matmul(x, operands.next()), others: [] }),
      loraBackward: () => ({ result: matmulInputGrad(dy, operands.next()), others: [] }),
      lora: () => {
        const w = operands.next();
        return { result: matmulInputGrad(dy, w), others: [matmul(x, w)] };
      },
    };
    const { output: _, ...rest } = subject(operands, bodies[job.op], 'base product, no adapter');
    return rest;
  },
};
