// What defineOptimizer and a run of an optimiser reject.
import { describe, expect, it } from 'vitest';
import {
  adamw,
  defineOptimizer,
  optimizers,
  scope,
  Tensor,
  Trainer,
  type TrainPass,
} from '../../lib/index.js';
import { codeOf } from '../checkpoint/raw-file.js';

const own = {
  optimizer: 'own',
  reference: 'nobody',
  defaults: { size: 1 },
  state: () => ({}),
  update: () => {},
};

describe('defineOptimizer rejects', () => {
  it.each<[string, object, string, RegExp]>([
    ['a name with a space', { optimizer: 'my own' }, 'ERR_VALUE', /optimizer must be letters/],
    ['no step', { update: undefined }, 'ERR_TYPE', /step must be a function \(or update/],
    ['two steps', { step: () => {} }, 'ERR_VALUE', /step must be left out beside update/],
    [
      'pairs without the rest',
      { update: undefined, updatePairs: () => {} },
      'ERR_VALUE',
      /update must be a function, for what is in no pair/,
    ],
    ['no state', { state: undefined }, 'ERR_TYPE', /state must be a function/],
    [
      'a base that is none',
      { base: { optimizer: 'x' } },
      'ERR_TYPE',
      /what defineOptimizer returns/,
    ],
    ['a capture of the host', { capturable: true }, 'ERR_VALUE', /capturable must be false/],
    ['a flag that is none', { clips: 1 }, 'ERR_TYPE', /clips must be a boolean/],
    ['another schedule', { schedule: 'cosine' }, 'ERR_VALUE', /schedule must be constant/],
    ['a rate of 0', { rate: 0 }, 'ERR_VALUE', /rate must be a number above 0, got 0/],
    ['a check that is none', { check: 1 }, 'ERR_TYPE', /check must be a function/],
  ])('%s', (_, change, code, message) => {
    const call = () => defineOptimizer({ ...own, ...change } as never);
    expect(codeOf(call)).toBe(code);
    expect(call).toThrow(message);
  });

  it('nothing of a base that it may extend, and stays frozen', () => {
    const made = defineOptimizer({
      optimizer: 'mine',
      reference: 'nobody',
      base: adamw,
      defaults: { eps: 1e-6 },
    });
    expect(made).toMatchObject({
      optimizer: 'mine',
      capturable: true,
      defaults: { beta1: 0.9, eps: 1e-6 },
    });
    expect(Object.isFrozen(made) && Object.isFrozen(made.defaults)).toBe(true);
    const host = defineOptimizer({
      optimizer: 'host',
      reference: 'nobody',
      base: adamw,
      defaults: {},
      after: () => {},
    });
    expect(host.capturable).toBe(false);
  });
});

describe('a trainer rejects', () => {
  it.each<[string, object, object, string, RegExp]>([
    [
      'a value out of range',
      optimizers.lion,
      { beta1: 1 },
      'ERR_VALUE',
      /Trainer: beta1 must be in \[0, 1\), got 1/,
    ],
    ['a value that is not finite', optimizers.sgd, { momentum: Number.NaN }, 'ERR_VALUE', /finite/],
    [
      'a choice that is none',
      optimizers.galore,
      { projection: 'up' },
      'ERR_VALUE',
      /projection must be one of std, left, right, full, got up/,
    ],
    ['a gap of 0', optimizers.galore, { gap: 0 }, 'ERR_VALUE', /gap must be an integer from 1 on/],
    [
      'a state named values',
      { ...own, state: () => ({ values: [1] }) },
      {},
      'ERR_VALUE',
      /named other/,
    ],
    [
      'a state without a shape',
      { ...own, state: () => ({ m: 'x' }) },
      {},
      'ERR_TYPE',
      /a shape or/,
    ],
    [
      'nothing to train',
      { ...own, group: () => ({ frozen: true }) },
      {},
      'ERR_VALUE',
      /parameters must be some that own trains, got frozen ones/,
    ],
  ])('%s', (_, definition, settings, code, message) => {
    scope(() => {
      const tensor = Tensor.from([1, 2], [2], { device: 'cpu' });
      const optimizer = defineOptimizer(definition as never) as never;
      const call = () =>
        new Trainer([{ name: 'p', role: 'other', tensor }], {
          optimizer,
          settings: settings as never,
        });
      expect(codeOf(call)).toBe(code);
      expect(call).toThrow(message);
    });
  });

  it.each([optimizers.lion, optimizers.adamw8bit, optimizers.loraRite, optimizers.sora])(
    'no step whose norm is not finite, but writes nothing: $optimizer',
    (optimizer) => {
      scope(() => {
        const p = Tensor.from([1, 2], [2], { device: 'cpu' });
        const trainer = new Trainer([{ name: 'p', role: 'other', tensor: p }], { optimizer });
        const pass =
          (value: number): TrainPass =>
          (tape) => ({
            loss: tape.own(Tensor.from([0], [1])),
            added: [[p, Tensor.from([value, 1], [2])]],
          });
        const contents = () => trainer.stored.map(({ read }) => read().slice());
        const before = contents();
        trainer.step(pass(Number.NaN));
        expect(contents()).toEqual(before);
        trainer.step(pass(1));
        expect(contents()).not.toEqual(before);
      });
    },
  );
});
