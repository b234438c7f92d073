// Optimisers of factor pairs as PEFT, LoRA-Pro and LoRA-RITE took their steps on layers with LoRA.
import { describe, expect, it } from 'vitest';
import {
  type AnyOptimizer,
  adapters,
  optimizers,
  scope,
  Tensor,
  Trainer,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { loadCase } from './case-file.js';
import { tensorOf } from './library.js';
import { RuleBook } from './rules.js';
import { type Layer, layersOf, parametersOf, passOf } from './two-layers.js';

interface Group {
  readonly params: readonly string[];
  readonly lr: number;
  readonly weight_decay: number;
}

/** PEFT's cases: the first group is that of lora_A. */
const TWO_LAYERS: readonly [string, AnyOptimizer, object][] = [
  ['peft_loraplus_adamw', optimizers.loraPlus, { ratio: 16 }],
  ['peft_loraplus_dora', optimizers.loraPlus, { ratio: 8 }],
  ['peft_lorafa', optimizers.loraFa, {}],
  ['peft_lorafa_as_shipped', optimizers.loraFa, { bf16: true }],
  ['peft_riemannian_sgd', optimizers.riemannianSgd, {}],
];

const ONE_LAYER: readonly [string, AnyOptimizer, object][] = [
  ['lora_pro_full_f32', optimizers.loraProFull, {}],
  ['lora_pro_full_as_shipped', optimizers.loraProFull, { bf16: true }],
  ['lora_rite', optimizers.loraRite, {}],
];

describe.each(DEVICES)('on %s', (device) => {
  it.each(TWO_LAYERS)('%s', (name, optimizer, settings) => {
    scope(() => {
      const golden = loadCase(`optim/${name}`);
      const rules = new RuleBook(golden);
      const params = golden.params as unknown as {
        param_groups: Group[];
        steps: number;
        r: number;
        lora_alpha: number;
      };
      const [group] = params.param_groups as [Group];
      const layers = layersOf(golden, device);
      const parameters = parametersOf(layers, params.lora_alpha / params.r);
      const trainer = new Trainer(parameters, {
        optimizer,
        settings: settings as Record<string, unknown>,
        lr: group.lr,
        weightDecay: group.weight_decay,
      });
      const losses: number[] = [];
      for (let step = 1; step <= params.steps; step++) {
        const pass = passOf(golden, [layers.fc1, layers.fc2], step - 1, device);
        losses.push(trainer.step(pass).loss.readSync()[0] as number);
        for (const parameter of parameters) {
          const rule = `out.step${step}.${parameter.name}`;
          if (rules.has(rule)) rules.check(rule, parameter.tensor.readSync());
        }
      }
      rules.check('out.losses', losses);
      rules.finish();
    });
  });

  it.each(ONE_LAYER)('%s', (name, optimizer, settings) => {
    scope(() => {
      const golden = loadCase(`optim/${name}`);
      const rules = new RuleBook(golden);
      const { r, scaling, lr } = golden.params as { r: number; scaling: number; lr: number };
      const w = tensorOf(golden.tensor('base.w'), device);
      const [N = 0, K = 0] = w.shape;
      const adapter = adapters.lora.create({
        inFeatures: K,
        outFeatures: N,
        device,
        seed: 1,
        r,
        loraAlpha: r * scaling,
      });
      const { loraA, loraB } = adapter.parameters as Record<'loraA' | 'loraB', Tensor>;
      loraA.write(Float32Array.from(golden.numbers('adapter.lora_A')));
      loraB.write(Float32Array.from(golden.numbers('adapter.lora_B')));
      const layer: Layer = { w, bias: undefined, adapter };
      const trainer = new Trainer(parametersOf({ lin: layer }, scaling), {
        optimizer,
        settings: settings as Record<string, unknown>,
        lr,
      });
      const [losses, allA, allB]: [number[], number[], number[]] = [[], [], []];
      const steps = golden.tensor('in.x').shape[0] as number;
      for (let step = 0; step < steps; step++) {
        const { loss } = trainer.step(passOf(golden, [layer], step, device));
        losses.push(loss.readSync()[0] as number);
        allA.push(...loraA.readSync());
        allB.push(...loraB.readSync());
      }
      rules.check('out.losses', losses);
      rules.check('out.lora_A_steps', allA);
      rules.check('out.lora_B_steps', allB);
      rules.finish();
      expect(Tensor.is(loraA)).toBe(true);
    });
  });
});
