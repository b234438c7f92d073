// Rules that cannot work: refused with expected and actual values, and the run goes on.
import fs from 'node:fs';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { restoreRunState, saveRunState } from '../../lib/finetune/run-state.js';
import {
  type AnyRule,
  defineRule,
  type LowrankError,
  openSafetensors,
  optimizers,
  type RawTensor,
  type RuleDefinition,
  rules,
  SequenceSet,
  writeSafetensors,
} from '../../lib/index.js';
import type { ModelTrainer, TrainOptions } from '../../lib/train/model-trainer.js';
import { temporaryFolder, tinyTrainer } from '../finetune/setup.js';
import { contents } from './setup.js';

const SIZES = { hiddenSize: 32, intermediateSize: 48, numKeyValueHeads: 2, headDim: 8 };
const own = { rule: 'own', reference: 'none', defaults: { size: 1 } };

const errorOf = (call: () => unknown): string => {
  try {
    call();
  } catch (error) {
    return `${(error as LowrankError).code ?? (error as Error).name} ${(error as Error).message}`;
  }
  return 'nothing';
};

describe('defineRule refuses', () => {
  it.each<[string, object, RegExp]>([
    ['no object', 'x' as never, /^ERR_TYPE defineRule/],
    ['no name', { ...own, rule: undefined }, /^ERR_TYPE .*rule must be a string/],
    ['an empty reference', { ...own, reference: '' }, /^ERR_VALUE .*reference must be a text/],
    ['a name with a space', { ...own, rule: 'a b' }, /^ERR_VALUE .*letters, digits/],
    ['no defaults', { ...own, defaults: null }, /^ERR_TYPE .*defaults must be an object/],
    ['a hook that is none', { ...own, after: 3 }, /^ERR_TYPE .*after must be a function/],
    [
      'a flag that is none',
      { ...own, keepsGradients: 1 },
      /^ERR_TYPE .*keepsGradients must be a boolean/,
    ],
    [
      'a claim that is none',
      { ...own, claims: ['bse'] },
      /^ERR_VALUE .*claims must be of base, shapes/,
    ],
    ['claims that are no list', { ...own, claims: 'base' }, /^ERR_TYPE .*claims must be an array/],
    [
      'a rate without its claim',
      { ...own, rate: () => 1 },
      /^ERR_VALUE .*with "rate", because of rate, got none/,
    ],
    ['data without its claim', { ...own, data: () => undefined }, /with "data", because of data/],
    [
      'a choice of parameters without its claim',
      { ...own, trains: () => true },
      /with "step", because of trains/,
    ],
  ])('%s', (_, definition, message) => {
    expect(errorOf(() => defineRule(definition as never))).toMatch(message);
  });
});

const tiny = (chosen: readonly [AnyRule, object?][], more: Partial<TrainOptions> & object = {}) =>
  tinyTrainer(
    SIZES,
    { format: 'none' },
    {
      ...more,
      rules: chosen.map(([rule, settings = {}]) => ({ rule, settings: settings as never })),
    },
  );

describe('a run refuses', () => {
  it.each<[string, readonly [AnyRule, object?][], object, RegExp]>([
    [
      'two rules that take the same',
      [[rules.relora], [rules.cola]],
      {},
      /^ERR_UNSUPPORTED rule: only one rule may take the base, got relora and cola\. Leave one of them out$/,
    ],
    [
      'a rule twice',
      [[rules.dropbp], [rules.dropbp]],
      {},
      /^ERR_VALUE .*named once each, got dropbp twice/,
    ],
    [
      'an adapter that a rule is not for',
      [[rules.adalora]],
      {},
      /^ERR_UNSUPPORTED .*the adapter must be one of adalora, which the rule adalora is for, got lora/,
    ],
    [
      'an unknown setting',
      [[rules.relora, { evry: 1 }]],
      {},
      /settings of the rule relora .*got "evry"/,
    ],
    [
      'a setting of another type',
      [[rules.relora, { every: 'x' }]],
      {},
      /^ERR_TYPE .*every must be a number/,
    ],
    [
      'a setting out of range',
      [[rules.lte, { heads: 3, every: 1 }]],
      {},
      /a divisor of the steps \(10\), got 3/,
    ],
    [
      'an optimiser that evaluates other values',
      [[rules.cola]],
      { optimizer: optimizers.scheduleFree },
      /^ERR_UNSUPPORTED .*the optimizer must be one that evaluates what it trains/,
    ],
    [
      'an optimiser with states in bytes under a rule that writes them',
      [[rules.relora]],
      { optimizer: optimizers.adamw8bit, optimizerSettings: { minSize: 0 } },
      /^ERR_UNSUPPORTED .*one with states in f32, because the rule relora changes them, got adamw-8bit/,
    ],
    [
      'a bias that could not be merged',
      [[rules.relora]],
      { adapter: { loraBias: true } },
      /^ERR_UNSUPPORTED .*loraBias must be false, because the rule relora merges into the base, got true/,
    ],
    [
      'a state without a shape',
      [[defineRule({ ...own, state: () => ({ x: 3 as never }) })]],
      {},
      /^ERR_TYPE rule own: shape must be an array/,
    ],
  ])('%s', (_, chosen, more, message) => {
    expect(errorOf(() => tiny(chosen, more))).toMatch(message);
  });
});

describe('a trainer refuses', () => {
  it.each<[string, object, RegExp]>([
    ['steps that are none', { steps: 0 }, /^ERR_VALUE ModelTrainer: steps must be .*got 0/],
    ['half a sequence', { batch: 1.5 }, /^ERR_VALUE ModelTrainer: batch/],
    ['a rate below 0', { lr: -1 }, /^ERR_VALUE ModelTrainer: lr must be at least 0, got -1/],
    ['a norm of 0', { clip: 0 }, /^ERR_VALUE ModelTrainer: clip must be above 0, got 0/],
    ['a rate that is a text', { lr: '1' }, /^ERR_TYPE ModelTrainer: lr/],
    ['another dtype', { dtype: 'f8' }, /ModelTrainer: dtype must be/],
    [
      'a flag that is none',
      { recompute: 1 },
      /^ERR_TYPE ModelTrainer: recompute must be a boolean/,
    ],
    [
      'rules that are no list',
      { rules: rules.relora },
      /^ERR_TYPE ModelTrainer: rules must be an array/,
    ],
    [
      'a rule that is none',
      { rules: [{ rule: { rule: 'x' } }] },
      /^ERR_TYPE rule: rules\[0\]\.rule must be what defineRule returns/,
    ],
  ])('%s', (_, more, message) => {
    expect(errorOf(() => tinyTrainer(SIZES, { format: 'none' }, more as never))).toMatch(message);
  });

  it('tokens that are no whole sequences', () => {
    const set = (tokens: unknown, T: unknown) =>
      errorOf(() => new SequenceSet(tokens as never, T as never));
    expect(set([1, 2], 1)).toMatch(/^ERR_TYPE SequenceSet: tokens must be an Int32Array/);
    expect(set(new Int32Array(3), 0)).toMatch(/^ERR_VALUE SequenceSet: T/);
    expect(set(new Int32Array(8), 4)).toMatch(
      /tokens must be a multiple of T \(4\), and one more, got 8/,
    );
    expect(set(new Int32Array(1), 4)).toMatch(/got 1$/);
    expect(set(new Int32Array(9), 4)).toBe('nothing');
  });
});

describe('a hook that does what it may not', () => {
  const hooks: Readonly<Record<string, [Partial<RuleDefinition<object>>, RegExp]>> = {
    'merges without the claim': [
      { after: ({ layers }) => layers[0]?.merge() },
      /^ERR_UNSUPPORTED .*claims of own must be with "base", got none/,
    ],
    'replaces the base without the claim': [
      { after: ({ layers }) => layers[0]?.rebase([]) },
      /claims of own must be with "base"/,
    ],
    'removes ranks without the claim': [
      { after: ({ layers }) => layers[0]?.keepRanks([1, 1, 0]) },
      /claims of own must be with "shapes"/,
    ],
    'starts the optimiser anew without saying so': [
      { after: ({ optimizer }) => optimizer.restart() },
      /^ERR_UNSUPPORTED .*own must be with resetsOptimizer: true, got without/,
    ],
    'writes too few values': [
      { after: ({ parameters }) => [...parameters.values()][0]?.write(new Float32Array(2)) },
      /^ERR_SHAPE .*q_proj\.loraA must be 96 values, got 2/,
    ],
    'writes values that are not finite': [
      {
        after: ({ parameters }) =>
          [...parameters.values()][0]?.write(new Float32Array(96).fill(Number.NaN)),
      },
      /^ERR_NON_FINITE .*loraA must be finite, got NaN/,
    ],
    'asks for a state that is not there': [
      { after: ({ parameters }) => void [...parameters.values()][0]?.state('speed') },
      /^ERR_VALUE .*must be one of m, v, got "speed"/,
    ],
    'masks too few elements': [
      { mask: () => new Uint8Array(5) },
      /^ERR_SHAPE .*the mask of own for .*q_proj\.loraA must be 96 values, got 5/,
    ],
    'gives a gradient of another length': [
      {
        gradients: ({ parameters }) => {
          for (const parameter of parameters.values()) parameter.gradient = new Float32Array(3);
        },
      },
      /^ERR_SHAPE .*the gradient for .*q_proj\.loraA must be 96 values, got 3/,
    ],
    'gives a learning rate that is none': [
      { claims: ['rate'], rate: () => Number.NaN },
      /^ERR_VALUE .*the rate of own must be at least 0, got NaN/,
    ],
    'sees a part that is none': [
      { claims: ['data'], data: () => ({ part: 3, parts: 2 }) },
      /^ERR_VALUE .*within its parts, got part 3, width 1 of 2/,
    ],
    'sees a part without sequences': [
      { claims: ['data'], data: () => ({ part: 90, parts: 100 }) },
      /^ERR_VALUE .*part 90 of 100 must be some of the 9 sequences/,
    ],
    throws: [
      {
        before: () => {
          throw new Error('mine');
        },
      },
      /^Error mine/,
    ],
  };

  it.each(Object.entries(hooks))(
    '%s: an error, and the next run works',
    async (_, [hook, message]) => {
      const made = tiny([[defineRule({ ...own, ...hook } as never)]]);
      const error = await made.trainer.train().then(
        () => 'nothing',
        (reason) => `${reason.code ?? reason.name} ${reason.message}`,
      );
      expect(error).toMatch(message);
      made.dispose();
      const next = tiny([[rules.gsLora]]);
      expect(Number.isFinite((await next.trainer.train()).loss)).toBe(true);
      next.dispose();
    },
  );

  it('whose step is not finite leaves the state of the rule', async () => {
    const made = tiny([
      [rules.dropbp],
      [
        defineRule({
          ...own,
          gradients: ({
            parameters,
          }: {
            parameters: ReadonlyMap<string, { gradient: Float32Array | undefined }>;
          }) => {
            for (const parameter of parameters.values())
              parameter.gradient?.fill(Number.POSITIVE_INFINITY);
          },
        } as never),
      ],
    ]);
    await expect(made.trainer.train()).rejects.toThrow(/gradient's norm must be finite/);
    const values = contents(made.trainer).filter(([name]) => name.startsWith('values/'));
    const fresh = tiny([[rules.dropbp]]);
    const expected = contents(fresh.trainer).filter(([name]) => name.startsWith('values/'));
    expect(values).toEqual(expected);
    fresh.dispose();
    made.dispose();
  });
});

describe('a checkpoint is refused whose', () => {
  const make = () => tiny([[rules.relora, { every: 2, rewarm: 0 }]]);
  const change = (
    trainer: ModelTrainer,
    edit: (tensors: Record<string, RawTensor>, metadata: Record<string, string>) => void,
  ) => {
    const file = path.join(temporaryFolder(), 'state');
    saveRunState(file, trainer, {}, { train: [1, 2, 3], heldOut: [] });
    const state = openSafetensors(file);
    const tensors = Object.fromEntries(state.names().map((name) => [name, state.read(name)]));
    const metadata = Object.fromEntries(state.metadata);
    edit(tensors, metadata);
    writeSafetensors(file, tensors, metadata);
    return file;
  };

  it.each<[string, Parameters<typeof change>[1], RegExp]>([
    [
      'merges are missing',
      (_, data) => void delete data.merges,
      /the numbers of merges of each layer, got ""/,
    ],
    [
      'merges are of other layers',
      (_, data) => {
        data.merges = '[1,1]';
      },
      /the numbers of merges of each layer, got "\[1,1\]"/,
    ],
    [
      'merges are more than steps',
      (_, data) => {
        data.merges = data.merges?.replaceAll('1', '9') ?? '';
      },
      /the numbers of merges/,
    ],
    [
      'merges are no list',
      (_, data) => {
        data.merges = '{"a":1}';
      },
      /the numbers of merges/,
    ],
    [
      'optimiser began later',
      (_, data) => {
        data.optimizer_origin = '7';
      },
      /optimizer_origin of at most 3, got 7/,
    ],
    [
      'factors are missing',
      (tensors) =>
        void delete tensors[Object.keys(tensors).find((name) => name.startsWith('merged/')) ?? ''],
      /must hold "merged\/0\/.*" in F32, got something else/,
    ],
    [
      'factors have another shape',
      (tensors) => {
        const name = Object.keys(tensors).find((own) => own.startsWith('merged/')) as string;
        const data = tensors[name] as RawTensor;
        tensors[name] = { ...data, shape: [(data.shape[0] as number) * (data.shape[1] as number)] };
      },
      /must hold "merged\/0\/.*" as \[/,
    ],
    [
      'factors are not finite',
      (tensors) => {
        const name = Object.keys(tensors).find((own) => own.startsWith('merged/')) as string;
        (tensors[name]?.data as Float32Array)[0] = Number.NaN;
      },
      /holds values that are not finite/,
    ],
  ])('%s; the trainer is as it was, and the next one works', async (_, edit, message) => {
    const saved = make();
    for (let i = 0; i < 3; i++) await saved.trainer.train();
    const file = change(saved.trainer, edit);
    const made = make();
    const before = contents(made.trainer);
    const error = errorOf(() => restoreRunState('test', file, made.trainer, {}));
    expect(error).toMatch(/^ERR_CHECKPOINT/);
    expect(error).toMatch(message);
    expect(contents(made.trainer)).toEqual(before);
    const good = change(saved.trainer, () => {});
    restoreRunState('test', good, made.trainer, {});
    expect(contents(made.trainer)).toEqual(contents(saved.trainer));
    expect(fs.existsSync(file)).toBe(true);
    saved.dispose();
    made.dispose();
  });
});
