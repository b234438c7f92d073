// Optimisers as PyTorch, bitsandbytes, GaLore and the schedule-free program took their steps, through the trainer.
import { describe, expect, it } from 'vitest';
import {
  type AnyOptimizer,
  type Device,
  optimizers,
  scope,
  Tensor,
  Trainer,
  type TrainPass,
} from '../../lib/index.js';
import { dynamicMap } from '../../lib/optim/eight-bit/dynamic-map.js';
import { DEVICES } from '../conformance/operands.js';
import { caseIds, type GoldenCase, loadCase } from './case-file.js';
import { tensorOf } from './library.js';
import { RuleBook } from './rules.js';

type Settings = Readonly<Record<string, unknown>>;

const adamSettings = ({ betas = [0.9, 0.999], eps = 1e-8 }: Settings): Settings => {
  const [beta1, beta2] = betas as number[];
  return { beta1, beta2, eps };
};
const momentum = ({ betas }: Settings): Settings => ({ momentum: (betas as number[])[0] });
const mixed = (params: Settings): Settings => ({
  ...adamSettings({ ...params, betas: (params.betas as number[]).slice(0, 2) }),
  beta3: (params.betas as number[])[2],
  alpha: params.alpha,
});
const betas = (params: Settings): Settings => {
  const { eps: _, ...rest } = adamSettings(params);
  return rest;
};

/** The optimiser of a case, and its settings from the case's parameters. */
const CASES: Readonly<Record<string, [AnyOptimizer, (params: Settings) => Settings]>> = {
  torch_adamw: [optimizers.adamw, adamSettings],
  torch_adamw_big_wd: [optimizers.adamw, adamSettings],
  torch_adamw_amsgrad: [optimizers.adam, (p) => ({ ...adamSettings(p), amsgrad: true })],
  torch_adam_l2: [optimizers.adam, adamSettings],
  torch_sgd_nesterov: [optimizers.sgd, (p) => ({ momentum: p.momentum, nesterov: p.nesterov })],
  bnb_adamw32: [optimizers.adamw, adamSettings],
  bnb_lion32: [optimizers.lion, betas],
  bnb_ademamix32: [optimizers.ademamix, mixed],
  bnb_lamb32: [optimizers.lamb, adamSettings],
  bnb_lars32: [optimizers.lars, momentum],
  bnb_adamw8bit: [optimizers.adamw8bit, adamSettings],
  bnb_ademamix8bit: [optimizers.ademamix8bit, mixed],
  bnb_lion8bit: [optimizers.lion8bit, betas],
  bnb_sgd8bit: [optimizers.sgd8bit, momentum],
  bnb_rmsprop8bit: [
    optimizers.rmsprop8bit,
    (p) => ({ alpha: (p.betas as number[])[0], eps: p.eps }),
  ],
  bnb_adagrad8bit: [optimizers.adagrad8bit, ({ eps }) => ({ eps })],
  schedulefree_adamw: [
    optimizers.scheduleFree,
    (p) => ({ ...adamSettings(p), warmupSteps: p.warmup_steps }),
  ],
  schedulefree_adamw_wd_warmup: [
    optimizers.scheduleFree,
    (p) => ({ ...adamSettings(p), warmupSteps: p.warmup_steps }),
  ],
};

/** Cases of optimisers that tests beside this one replay. */
const OTHERS =
  /^optim\/(clip_grad_norm|peft_(loraplus|lorafa|riemannian)\w*|lora_(pro_full|rite)\w*|galore_\w+)$/;

it('no recorded case is left out', () => {
  const own = caseIds('optim').filter((id) => !OTHERS.test(id));
  expect(own.sort()).toEqual(
    Object.keys(CASES)
      .map((name) => `optim/${name}`)
      .sort(),
  );
});

/** States of torch by the names of the library. */
const STATES: Readonly<Record<string, string>> = {
  exp_avg: 'm',
  exp_avg_sq: 'v',
  max_exp_avg_sq: 'largest',
  momentum_buffer: 'm',
};

/** Row i of a tensor's first dimension. */
function rowOf(name: string, golden: GoldenCase, i: number, device: Device): Tensor {
  const { shape } = golden.tensor(name);
  const size = shape.slice(1).reduce((a, b) => a * b, 1);
  const values = golden.numbers(name).subarray(i * size, (i + 1) * size);
  return Tensor.from(Float32Array.from(values), shape.slice(1), { device });
}

/** A pass without a loss, whose gradient is given. */
const given =
  (p: Tensor, g: Tensor): TrainPass =>
  (tape) => ({ loss: tape.own(Tensor.from([0], [1], { device: p.device })), added: [[p, g]] });

describe('the maps of states of 8 bits', () => {
  it.each([
    ['signed', 'aux.qmap1'],
    ['unsigned', 'aux.qmap2'],
  ])('%s, with the bits of bitsandbytes', (kind, name) => {
    const expected = loadCase('optim/bnb_adamw8bit').numbers(name);
    expect(Array.from(dynamicMap(kind === 'signed'))).toEqual(Array.from(expected));
  });
});

describe.each(DEVICES)('on %s', (device) => {
  it.each(Object.keys(CASES))('%s', (name) => {
    scope(() => {
      const golden = loadCase(`optim/${name}`);
      const rules = new RuleBook(golden);
      const params = golden.params as Settings;
      const [optimizer, settingsOf] = CASES[name] as (typeof CASES)[string];
      const p = tensorOf(golden.tensor('in.p0'), device);
      const trainer = new Trainer([{ name: 'p', role: 'other', tensor: p }], {
        optimizer,
        settings: settingsOf(params),
        lr: params.lr as number,
        weightDecay: params.weight_decay as number,
      });
      const steps = golden.tensor('in.grads').shape[0] as number;
      const all: number[] = [];
      for (let step = 1; step <= steps; step++) {
        trainer.step(given(p, rowOf('in.grads', golden, step - 1, device)));
        const now = p.readSync();
        all.push(...now);
        if (rules.has(`out.p.${step}`)) rules.check(`out.p.${step}`, now);
        for (const { name: own, dtype, read, write } of trainer.stored) {
          const rule = `out.${own.replace('/p', '')}.${step}`;
          if (rules.has(rule)) rules.check(rule, read());
          // A code beside its bound may be either neighbour, which the next step would multiply: it goes on from the peer's.
          if (!name.endsWith('8bit') || !golden.has(rule)) continue;
          const peer = golden.numbers(rule);
          write(dtype === 'U8' ? Uint8Array.from(peer) : Float32Array.from(peer));
        }
      }
      for (const whole of ['out.p_steps', 'out.y_steps']) {
        if (rules.has(whole)) rules.check(whole, all);
      }
      for (const [torch, own] of Object.entries(STATES)) {
        const state = trainer.state.get('p')?.[own];
        if (!rules.has(`out.state.${torch}`)) continue;
        rules.check(`out.state.${torch}`, state?.readSync() ?? []);
      }
      if (rules.has('out.x')) {
        const trained = p.readSync();
        trainer.showEvaluated();
        rules.check('out.x', p.readSync());
        trainer.showTrained();
        expect(p.readSync()).toEqual(trained);
      }
      rules.finish();
    });
  });
});
