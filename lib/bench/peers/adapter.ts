/** An adapter method of the library, or of a user, compared with plain LoRA. */

import { version } from '../../environment/version.js';
import type { Adapter, AdapterSaved, adapterMethods, Tensor } from '../../index.js';
import type { Job } from '../job.js';
import type { Context, Peer, Subject } from '../peer.js';
import { Operands } from './operands.js';

type Method = (typeof adapterMethods)[number];

/**
 * The method at the job's rank, with parameters moved away from their start. Its results are not
 * compared with float64, because they differ from those of a LoRA layer.
 */
export function adapterPeer(method: Method): Peer {
  return {
    name: method.method,
    find: () => ({ version: version() }),
    refuses: ({ op }) => (op === 'matmul' ? 'an adapter is measured with its layer' : undefined),
    prepare: (job, context) => prepare(method, job, context),
  };
}

function prepare(method: Method, job: Job, context: Context): Subject {
  const operands = new Operands(job, context);
  const { x, dy, weights } = operands;
  const defaults = method.definition.defaults as Readonly<Record<string, unknown>>;
  const adapter = method.create({
    inFeatures: job.K,
    outFeatures: job.N,
    device: job.device,
    seed: 1,
    ...(weights[0] === undefined ? {} : { weight: weights[0] }),
    ...('r' in defaults ? { r: job.r } : {}),
  }) as Adapter;
  const forward = () => adapter.forward(x, operands.next(), { seed: 1 });
  const backward = (saved: AdapterSaved, keep: boolean): Tensor[] => {
    const { dx, parameters } = adapter.backward(dy, saved, { keep });
    return [...(dx === undefined ? [] : [dx]), ...Object.values(parameters)];
  };
  const bodies: Record<Exclude<Job['op'], 'matmul'>, () => { dispose(): void }[]> = {
    loraForward: () => {
      const { y, saved } = forward();
      return [y, saved];
    },
    loraBackward: () => backward(next(), true),
    lora: () => {
      const { y, saved } = forward();
      return [y, ...backward(saved, false)];
    },
  };
  const states = job.op === 'loraBackward' ? weights.map(() => forward()) : [];
  for (const { y } of states) y.dispose();
  let turn = 0;
  const next = () => (states[turn++ % states.length] as { saved: AdapterSaved }).saved;
  const body = bodies[job.op as keyof typeof bodies];
  return {
    weightBytes: operands.weightBytes,
    copies: weights.length,
    note: `${adapter.parameterCount} trained parameters`,
    run: () => {
      for (const value of body()) value.dispose();
    },
    finish: () => operands.wait(),
  };
}
