// What starts reject, in words, and that the next call works.
import { describe, expect, it } from 'vitest';
import {
  adapters,
  defineStart,
  flushSync,
  InputSums,
  memoryUsage,
  scope,
  startLayer,
  starts,
  Tensor,
} from '../../lib/index.js';
import { startedTrainer } from './setup.js';

const device = 'cpu' as const;
const weight = () => Tensor.randn([8, 16], { seed: 1, device });

const code = (run: () => unknown): string => {
  try {
    scope(() => void run());
  } catch (error) {
    return `${(error as { code?: string }).code} ${(error as Error).message}`;
  }
  return 'no error';
};

const rejects = async (run: Promise<unknown>): Promise<string> =>
  run.then(
    () => 'no error',
    (error: { code?: string; message: string }) => `${error.code} ${error.message}`,
  );

describe('defineStart', () => {
  const good = {
    start: 'mine',
    reference: 'me',
    from: 'weight',
    defaults: {},
    factors: () => ({}),
  } as const;
  it.each([
    [{ start: '' }, /^ERR_VALUE defineStart: start must be a text/],
    [{ start: 'a b' }, /^ERR_VALUE defineStart: start must be letters/],
    [{ start: 3 }, /start must be a string, got/],
    [
      { from: 'outputs' },
      /^ERR_VALUE .*from must be one of weight, inputs, gradient, quantised, model, got "outputs"/,
    ],
    [{ defaults: null }, /defaults must be an object/],
    [{ defaults: { seed: 1 } }, /without settings named .*got "seed"/],
    [{ factors: undefined }, /factors must be a function/],
    [{ measure: () => [] }, /measure and ranks must be given together/],
    [{ frozen: 'loraA' }, /frozen must be an array of strings/],
    [{ adapters: [1] }, /adapters must be an array of strings/],
    [{ replacesBase: 1 }, /replacesBase must be a boolean/],
    [{ peft: 1 }, /peft must be a string/],
  ])('rejects %o', (change, message) => {
    expect(code(() => defineStart({ ...good, ...change } as typeof good))).toMatch(message);
    expect(Object.isFrozen(defineStart(good))).toBe(true);
  });
});

describe('startLayer', () => {
  const inputs = (K: number) => {
    const sums = new InputSums(K);
    sums.add(Tensor.randn([20, K], { seed: 2, device }));
    return sums;
  };

  it.each([
    [
      { start: 'pisa' },
      /^ERR_VALUE startLayer: start must be one of .*got "pisa" \(did you mean pissa/,
    ],
    [{ start: 4 }, /start must be the name of a start, or what defineStart returns/],
    [
      { start: 'pissa', method: adapters.dora },
      /^ERR_UNSUPPORTED .*one of lora, which pissa starts, got dora/,
    ],
    [{ start: 'pissa', r: 9 }, /^ERR_VALUE svd: r must be .*got 9/],
    [{ start: 'olora', r: 9 }, /^ERR_VALUE start olora: r must be from 1 to 8/],
    [{ start: 'lora-ga', r: 5, dw: 'a' }, /dw must be a Tensor/],
    [{ start: 'pissa', passes: 3 }, /limited to .*the settings of pissa \(iterations\)/],
    [{ start: 'pissa', iterations: '3' }, /iterations must be a number/],
    [{ start: 'pissa', iterations: -1 }, /iterations must be an integer from 0 on/],
    [
      { start: 'loftq', r: 2 },
      /^ERR_VALUE startLayer: format must be a quantised one \(loftq needs it\), got none/,
    ],
    [{ start: 'eva', r: 2 }, /^ERR_VALUE startLayer: inputs must be given \(eva needs sums/],
    [
      { start: 'lora-ga', r: 2 },
      /^ERR_VALUE startLayer: dw must be given \(lora-ga needs it\), got none/,
    ],
    [
      { start: 'goat', method: adapters.loramoe, r: 5 },
      /^ERR_VALUE start goat: r must be from 1 to 2/,
    ],
    [{ start: 'slora' }, /stage must be the adapter folder of the first stage, got none/],
  ])('rejects %o', (options, message) => {
    expect(code(() => startLayer(weight(), options as never))).toMatch(message);
  });

  it('rejects sums and gradients of another size, and what is not finite', () => {
    expect(code(() => startLayer(weight(), { start: 'eva', r: 2, inputs: inputs(8) }))).toMatch(
      /^ERR_SHAPE .*sums of 16 features/,
    );
    expect(
      code(() => startLayer(weight(), { start: 'eva', r: 2, inputs: new InputSums(16) })),
    ).toMatch(/at least one row, got 0/);
    const dw = Tensor.zeros([16, 8], { device });
    expect(code(() => startLayer(weight(), { start: 'lora-ga', r: 2, dw }))).toMatch(
      /^ERR_SHAPE .*dw must be of shape \[8, 16\]/,
    );
    const sums = new InputSums(2);
    expect(code(() => sums.add(Tensor.from([1, Number.NaN], [1, 2], { device })))).toMatch(
      /^ERR_NON_FINITE /,
    );
    expect([...sums.gram, sums.rows]).toEqual([0, 0, 0, 0, 0]);
    expect(code(() => sums.add(Tensor.zeros([2, 3], { device })))).toMatch(/^ERR_SHAPE /);
  });

  it('rejects what factors of one’s own may return, and leaks nothing', () => {
    const mine = (factors: () => unknown, more: object = {}) =>
      defineStart({
        start: 'mine',
        reference: 'me',
        from: 'weight',
        defaults: {},
        factors: () => factors() as never,
        ...more,
      });
    const w = weight();
    const loraA = () => Tensor.zeros([2, 16], { device });
    flushSync(device);
    const before = memoryUsage(device).liveTensors;
    for (const [start, message] of [
      [mine(() => 3), /what factors returns must be an object/],
      [mine(() => ({ lora_a: loraA() })), /tensors of lora .*got "lora_a"/],
      [mine(() => ({ loraA: 'a' })), /loraA must be a Tensor/],
      [
        mine(() => ({ loraA: loraA(), base: 'residual' })),
        /base must be left out without replacesBase/,
      ],
      [
        mine(() => ({ loraA: loraA() }), { replacesBase: true }),
        /base must be given, because of replacesBase, got none/,
      ],
      [
        mine(() => ({
          loraA: Tensor.from(new Float32Array(32).fill(Number.NaN), [2, 16], { device }),
        })),
        /^ERR_NON_FINITE .*loraA of layer/,
      ],
      [mine(() => ({ loraA: Tensor.zeros([3, 16], { device }) })), /^ERR_SHAPE /],
      [
        mine(() => ({ loraA: loraA(), base: loraA() }), { replacesBase: true }),
        /^ERR_SHAPE .*base must be of shape \[8, 16\]/,
      ],
    ] as const) {
      expect(code(() => startLayer(w, { start, r: 2 }))).toMatch(message);
    }
    flushSync(device);
    expect(memoryUsage(device).liveTensors).toBe(before);
    const { adapter } = startLayer(w, { start: mine(() => ({ loraA: loraA() })), r: 2 });
    expect(adapter.parameters.loraB?.shape).toEqual([8, 2]);
    adapter.dispose();
  });
});

describe('a model', () => {
  it('is refused before its weights are read', async () => {
    expect(await rejects(startedTrainer('loftq', { format: { format: 'none' } }))).toMatch(
      /^ERR_VALUE start: format must be a quantised format \(loftq needs one\), got none/,
    );
    expect(await rejects(startedTrainer('pissa', { method: 'vera' }))).toMatch(
      /^ERR_UNSUPPORTED .*one of lora, which pissa starts, got vera/,
    );
    expect(await rejects(startedTrainer('pissa', { settings: { iterations: 0.5 } }))).toMatch(
      /^ERR_VALUE .*iterations/,
    );
    expect(await rejects(startedTrainer('pissa', { targets: ['q_proj', 'experts'] }))).toMatch(
      /^ERR_UNSUPPORTED .*linear layers, for --init pissa, got experts/,
    );
  });

  it('all starts say what they are', () => {
    const all = Object.values(starts);
    expect(all.length).toBe(30);
    for (const { reference, start } of all)
      expect(reference, start).toMatch(/arXiv:\d{4}\.\d{5}|NeurIPS/);
  });
});
