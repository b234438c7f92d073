// `lowrank finetune --epsilon`: what it guarantees, what it rejects, and that a stopped run goes on with the same bits.
import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { bundledModel, bundledText } from '../../lib/environment/package-folder.js';
import { type FinetuneOptions, finetune, Interrupted } from '../../lib/finetune/finetune.js';
import { planRun } from '../../lib/finetune/plan.js';
import { noiseForPrivacy, privacyAccountant, readSafetensors, starts } from '../../lib/index.js';
import { methodNamed } from '../../lib/train/adapter-set.js';
import { requireBuilt, run } from '../finetune/command.js';
import { temporaryFolder } from '../finetune/setup.js';

beforeAll(requireBuilt);

function optionsFor(out: string, change: Partial<FinetuneOptions> = {}): FinetuneOptions {
  return {
    ...{ model: bundledModel(), data: [bundledText()], out, separator: '\n\n', seqLen: 32 },
    format: { format: 'nf4' },
    adapter: {
      method: methodNamed('test', 'lora'),
      settings: { r: 4 },
      targets: ['q_proj', 'v_proj'],
    },
    train: {
      ...{ steps: 6, batch: 8, accumulate: 2, lr: 0.003, warmup: 1, weightDecay: 0, clip: 0.4 },
      ...{ seed: 1234567890123, dtype: 'f32', recompute: false },
    },
    ...{ evalEvery: 0, saveEvery: 0, resume: false, compare: false, prompts: [], sampleTokens: 0 },
    privacy: { epsilon: 3, delta: 1e-4 },
    device: 'cpu',
    ...change,
  };
}

const weightsOf = (folder: string): Buffer =>
  fs.readFileSync(path.join(folder, 'adapter_model.safetensors'));

/** Stops a run after a step. */
async function stopped(options: FinetuneOptions, after: number): Promise<void> {
  const controller = new AbortController();
  const observer = {
    step: ({ step }: { step: number }) => {
      if (step === after) controller.abort();
    },
  };
  await expect(finetune(options, observer, controller.signal)).rejects.toBeInstanceOf(Interrupted);
}

describe('a private run', () => {
  it('says what it guarantees, and goes on after a stop with the same bits', async () => {
    const folder = temporaryFolder();
    const [whole, parts] = [path.join(folder, 'whole'), path.join(folder, 'parts')];
    const result = await finetune(optionsFor(whole));
    const { epsilon, noise, sampleRate, sequences, delta, clip } = result.privacy ?? ({} as never);
    expect(sampleRate).toBe(16 / sequences);
    expect([delta, clip]).toEqual([1e-4, 0.4]);
    expect(noise).toBe(noiseForPrivacy({ sampleRate, steps: 6, epsilon: 3, delta }));
    expect(epsilon).toBeLessThanOrEqual(3);
    expect(epsilon).toBeGreaterThan(2.999);
    expect(epsilon).toBe(privacyAccountant({ sampleRate, noise, steps: 6, delta }).epsilon);

    await stopped(optionsFor(parts), 3);
    await finetune(optionsFor(parts, { resume: true }));
    expect(weightsOf(parts)).toEqual(weightsOf(whole));
    expect(readSafetensors(path.join(parts, 'adapter_model.safetensors')).tensors.size).toBe(16);

    // Another seed, and another epsilon, are other runs.
    await stopped(optionsFor(parts), 3);
    const { train } = optionsFor(parts);
    const other = (change: Partial<FinetuneOptions>) =>
      finetune(optionsFor(parts, { resume: true, ...change }));
    await expect(other({ privacy: { epsilon: 4, delta: 1e-4 } })).rejects.toThrow(
      'epsilon 3 instead of 4',
    );
    await expect(other({ train: { ...train, seed: 5 } })).rejects.toThrow('seed');
    const { privacy, ...plain } = optionsFor(parts, { resume: true });
    expect(privacy).toBeDefined();
    await expect(finetune(plain)).rejects.toThrow('epsilon 3 instead of left out');
  });

  it('takes noise instead of epsilon', async () => {
    const out = path.join(temporaryFolder(), 'adapter');
    const { privacy } = await finetune(optionsFor(out, { privacy: { noise: 0.9, delta: 1e-4 } }));
    expect(privacy?.noise).toBe(0.9);
    const { sampleRate = 0 } = privacy ?? {};
    const expected = privacyAccountant({ sampleRate, noise: 0.9, steps: 6, delta: 1e-4 });
    expect(privacy?.epsilon).toBe(expected.epsilon);
  });

  it('rejects what cannot be private before it reads anything', async () => {
    const out = path.join(temporaryFolder(), 'adapter');
    const options = optionsFor(out);
    const { adapter, train } = options;
    const missing = { model: 'nowhere' };
    const refused = async (change: Partial<FinetuneOptions>, text: string) => {
      await expect(finetune({ ...options, ...missing, ...change })).rejects.toThrow(text);
      expect(() => planRun({ ...options, ...change })).toThrow(text);
    };
    const dora = { ...adapter, method: methodNamed('test', 'dora') };
    await refused({ adapter: dora }, '--adapter must be lora or lora-fa');
    const settings = { r: 4, dropout: 0.1 };
    await refused(
      { adapter: { ...adapter, settings } },
      '--dropout must be 0 in private runs, got 0.1',
    );
    const biased = { ...adapter, settings: { r: 4, loraBias: true } };
    await refused({ adapter: biased }, 'loraBias must be false in private runs');
    const start = { start: starts.eva, settings: {} };
    await refused(
      { adapter: { ...adapter, start } },
      '--init must be one without data in private runs, got eva',
    );
    await refused(
      { train: { ...train, recompute: true } },
      '--recompute must be left out in private runs',
    );
    await refused(
      { train: { ...train, dpoBeta: 0.1 } },
      '--loss must be lm in private runs, got dpo',
    );
    await refused(
      { train: { ...train, batch: 1025 } },
      '--batch must be at most 1024 in private runs',
    );
    const experts = { ...adapter, targets: ['experts.down_proj'] };
    await refused({ adapter: experts }, '--targets must be without experts in private runs');
    expect(fs.existsSync(out)).toBe(false);
  });

  it('rejects a guarantee that means nothing', async () => {
    const out = path.join(temporaryFolder(), 'adapter');
    const refused = (change: Partial<FinetuneOptions>, text: string | RegExp) =>
      expect(finetune(optionsFor(out, change))).rejects.toThrow(text);
    await refused(
      { privacy: { epsilon: 3, delta: 0.01 } },
      /--delta must be below 1 \/ \d+, one over/,
    );
    await refused({ privacy: { epsilon: 1e-6, delta: 1e-4 } }, 'epsilon must be at least');
    const { train } = optionsFor(out);
    await refused(
      { train: { ...train, accumulate: 60_000 } },
      /--batch times --accumulate must be at most/,
    );
  });

  it('needs more memory than a run that is not, and says so', () => {
    const out = path.join(temporaryFolder(), 'adapter');
    const { privacy, ...plain } = optionsFor(out);
    expect(privacy).toBeDefined();
    const [own, other] = [planRun(optionsFor(out)), planRun(plain)];
    expect(own.memory.activations).toBeGreaterThan(1.1 * other.memory.activations);
  });
});

describe('the command', () => {
  const ask = async (...args: string[]) => {
    const { code, stderr } = await run(['finetune', ...args]);
    return { code, stderr };
  };

  it.each([
    [
      ['--epsilon', '3'],
      '--epsilon needs --clip (which bounds the gradient of a sequence), --delta',
    ],
    [['--epsilon', '3', '--delta', '1e-5', '--seed', '9'], '--epsilon needs --clip (which bounds'],
    [
      ['--noise', '1', '--clip', '1', '--delta', '1e-5'],
      '--noise needs --seed (which nobody else may know)',
    ],
    [['--epsilon', '3', '--noise', '1'], 'takes --epsilon or --noise, got both'],
    [['--delta', '1e-5'], '--delta needs --epsilon or --noise'],
    [
      ['--epsilon', '0', '--clip', '1', '--delta', '1e-5', '--seed', '9'],
      '--epsilon must be a positive number, got "0"',
    ],
    [
      ['--epsilon', '3', '--clip', '1', '--delta', '1', '--seed', '9'],
      '--delta must be a number above 0 and below 1',
    ],
  ])('rejects %j', async (args, text) => {
    const { code, stderr } = await ask(...args);
    expect(stderr).toContain(text);
    expect(code).toBe(2);
  });

  it('trains, says what it guarantees, and keeps the seed to itself', async () => {
    const out = path.join(temporaryFolder(), 'adapter');
    const args = [
      '--epsilon',
      '5',
      '--delta',
      '1e-4',
      '--clip',
      '0.5',
      '--seed',
      '987654321012345',
    ];
    const sizes = ['--seq-len', '32', '--batch', '8', '--steps', '4', '--rank', '2'];
    const quick = ['--no-compare', '--sample-tokens', '0', '--eval-every', '0', '--device', 'cpu'];
    const { code, stdout, stderr } = await run([
      'finetune',
      ...args,
      ...sizes,
      ...quick,
      '--out',
      out,
    ]);
    expect(code, stderr).toBe(0);
    expect(stdout).toMatch(
      /privacy of a sequence +epsilon 5\.00 +delta 0\.0001; noise 0\.\d+, clip 0\.5/,
    );
    for (const name of fs.readdirSync(out)) {
      expect(fs.readFileSync(path.join(out, name)).includes('987654321012345'), name).toBe(false);
    }
    const report = fs.readFileSync(path.join(out, 'report.html'), 'utf8');
    expect(report).toContain('--seed ...');
    expect(report).toContain('not shown');
  });
});
