// Merges of adapters as PEFT, KnOTS and ComPEFT gave them.
import { describe, expect, it } from 'vitest';
import {
  adapterFromPeft,
  combineAdapters,
  type Device,
  merges,
  type PeftFolder,
  readAdapterFolder,
  scope,
  Tensor,
} from '../../lib/index.js';
import { updatesOf } from '../../lib/merging/adapter-updates.js';
import type { AnyMerge, LoraUpdate } from '../../lib/merging/definition/definition.js';
import { adaptersOfFolder } from '../../lib/merging/folders.js';
import { mergeNamed } from '../../lib/merging/merge-methods.js';
import {
  mergeUpdates,
  type RandomOf,
  seededRandom,
  settingsOf,
  weightsOf,
} from '../../lib/merging/merge-updates.js';
import { ternaryOf } from '../../lib/merging/methods/compeft.js';
import { clampFactors } from '../../lib/merging/parts/clamp.js';
import { mergeEntries } from '../../lib/merging/parts/entries.js';
import { DEVICES } from '../conformance/operands.js';
import { caseIds, type GoldenCase, loadCase } from './case-file.js';
import { tensorOf } from './library.js';
import { RuleBook } from './rules.js';

const NAMES = ['a', 'b', 'c'];
const path = (id: string, name: string) => new URL(`./${id}/${name}`, import.meta.url).pathname;
const foldersOf = ({ id }: GoldenCase) => NAMES.map((name) => readAdapterFolder(path(id, name)));

const COMBINED = caseIds('merging').filter(
  (id) => typeof loadCase(id).params.combination_type === 'string',
);

interface Params {
  readonly weights: Readonly<Record<string, number>>;
  readonly combination_type: string;
  readonly density?: number;
  readonly majority_sign_method?: string;
  readonly svd_rank?: number;
}

function settingsIn(golden: GoldenCase): { by: string; [name: string]: unknown } {
  const { combination_type, density, majority_sign_method, svd_rank } =
    golden.params as unknown as Params;
  return {
    by: combination_type,
    ...(density === undefined ? {} : { density }),
    ...(majority_sign_method === undefined ? {} : { sign: majority_sign_method }),
    ...(svd_rank === undefined ? {} : { rank: svd_rank }),
  };
}

/** The masks that the peer drew, as numbers below the density or not. */
const drawn = (golden: GoldenCase): RandomOf => {
  return (adapter, module, tensor) => {
    const end = tensor === 'update' ? '' : `_${tensor.slice(-1)}`;
    const mask = golden.numbers(`aux.${module}.dare_mask${end}.${NAMES[adapter]}`);
    let at = 0;
    return () => 1 - (mask[at++] as number);
  };
};

async function merged(golden: GoldenCase, device: Device) {
  const { by, ...given } = settingsIn(golden);
  const merge = mergeNamed('test', 'by', by);
  const weights = Object.values((golden.params as unknown as Params).weights);
  const adapters = await updatesOf(foldersOf(golden).map(adaptersOfFolder));
  return mergeUpdates({
    merge,
    adapters,
    device,
    weights: weightsOf(merge, adapters.length, weights),
    settings: settingsOf(merge, given),
    randomOf: by.startsWith('dare') ? drawn(golden) : seededRandom(0),
  });
}

function deltaOf({ loraA, loraB, r, inFeatures: K, outFeatures: N, scaling }: LoraUpdate) {
  const delta = new Float64Array(N * K);
  for (let n = 0; n < N; n++) {
    for (let k = 0; k < K; k++) {
      let sum = 0;
      for (let i = 0; i < r; i++)
        sum += (loraB[n * r + i] as number) * (loraA[i * K + k] as number);
      delta[n * K + k] = sum * scaling;
    }
  }
  return delta;
}

/** With the signs of the rows of A that the peer had: clamping depends on them. */
function clamped(golden: GoldenCase, module: string, update: LoraUpdate): LoraUpdate {
  const theirs = golden.numbers(`aux.${module}.lora_A`);
  const { r, inFeatures: K, outFeatures: N } = update;
  const [loraA, loraB] = [update.loraA.slice(), update.loraB.slice()];
  for (let i = 0; i < r; i++) {
    let along = 0;
    for (let k = i * K; k < (i + 1) * K; k++) along += (loraA[k] as number) * (theirs[k] as number);
    if (along >= 0) continue;
    for (let k = i * K; k < (i + 1) * K; k++) loraA[k] = -(loraA[k] as number);
    for (let n = 0; n < N; n++) loraB[n * r + i] = -(loraB[n * r + i] as number);
  }
  return clampFactors({ ...update, loraA, loraB }, golden.params.svd_clamp as number);
}

describe.each(DEVICES)('on %s', (device) => {
  it.each(COMBINED)('%s', async (id) => {
    const golden = loadCase(id);
    const rules = new RuleBook(golden);
    const ranks = golden.params.r as { merged: number };
    for (const [module, update] of await merged(golden, device)) {
      expect([update.r, update.scaling]).toEqual([ranks.merged, 1]);
      const own = golden.params.svd_clamp === undefined ? update : clamped(golden, module, update);
      for (const [name, values] of [
        ['lora_A', own.loraA],
        ['lora_B', own.loraB],
        ['delta', deltaOf(own)],
      ] as const) {
        if (rules.has(`out.${module}.${name}`)) rules.check(`out.${module}.${name}`, values);
      }
    }
    rules.finish();
  });

  it('merging/multi_active: the exact sum of two adapters', async () => {
    await scope(async () => {
      const golden = loadCase('merging/multi_active');
      const rules = new RuleBook(golden);
      const [a, , c] = foldersOf(golden) as [PeftFolder, PeftFolder, PeftFolder];
      let x = tensorOf(golden.tensor('in.x'), device);
      for (const module of ['fc1', 'fc2']) {
        const w = tensorOf(golden.tensor(`base.${module}.weight`), device);
        const bias = tensorOf(golden.tensor(`base.${module}.bias`), device);
        const [outFeatures = 0, inFeatures = 0] = w.shape;
        const place = { inFeatures, outFeatures, device };
        const own = [a, c].map((folder) => adapterFromPeft(folder, module, place));
        const adapter = await combineAdapters(own, undefined, { by: 'cat' });
        const { weight } = adapter.merge(w);
        rules.check(`merged.${module}.weight`, await (weight as Tensor).read());
        const { weight: again } = adapter.unmerge(weight);
        rules.check(`out.unmerged.${module}.weight`, await (again as Tensor).read());
        const { y } = adapter.forward(x, w, { bias });
        const values = await y.read();
        if (module === 'fc2') rules.check('out.y_active_a_c', values);
        x = Tensor.from(values.map(Math.tanh), y.shape, { device });
      }
      rules.finish();
    });
  });
});

/** Rows of the first dimension as f32. */
function tasksOf(golden: GoldenCase, name = 'in.tasks'): Float32Array[] {
  const all = Float32Array.from(golden.numbers(name));
  const count = golden.tensor(name).shape[0] as number;
  const size = all.length / count;
  return Array.from({ length: count }, (_, i) => all.slice(i * size, (i + 1) * size));
}

describe('entries at their edges', () => {
  it.each([
    ['merging/ties_exact_sign_tie', merges.ties],
    ['merging/ties_frequency_tie', merges.ties],
    ['merging/ties_density_zero', merges.ties],
    ['merging/magnitude_prune_truncates', merges.magnitudePrune],
    ['merging/dare_ties_task_dropped', merges.dareTies],
  ] as [string, AnyMerge][])('%s', (id, merge) => {
    const golden = loadCase(id);
    const rules = new RuleBook(golden);
    const { density, majority_sign_method: sign = 'total' } = golden.params as Partial<Params>;
    const masks = golden.has('in.masks') ? tasksOf(golden, 'in.masks') : [];
    const tasks = tasksOf(golden);
    const randoms = tasks.map((_, t) => {
      let at = 0;
      return () => 1 - (masks[t]?.[at++] as number);
    });
    const weights = [...golden.numbers('in.weights')];
    rules.check('out.merged', mergeEntries(merge, tasks, weights, { density, sign }, randoms));
    rules.finish();
  });

  it('merging/knots_ties_mean', async () => {
    const golden = loadCase('merging/knots_ties_mean');
    const rules = new RuleBook(golden);
    const [, N = 0, K = 0] = golden.tensor('in.tasks').shape;
    const loraA = new Float32Array(K * K);
    for (let k = 0; k < K; k++) loraA[k * K + k] = 1;
    const size = { r: K, inFeatures: K, outFeatures: N, scaling: 1 };
    const adapters = tasksOf(golden).map((loraB) => new Map([['lin', { loraA, loraB, ...size }]]));
    const { topK, scaling_coeff: scale } = golden.params as { topK: number; scaling_coeff: number };
    const done = await mergeUpdates({
      merge: merges.knots,
      adapters,
      weights: [1, 1, 1],
      settings: { density: topK / 100, scale, rank: 0 },
      device: 'cpu',
      randomOf: seededRandom(0),
    });
    rules.check('out.merged', deltaOf(done.get('lin') as LoraUpdate));
    rules.finish();
  });

  it.each([
    ['merging/compeft_k20_a1', { magnitude: 'std', scale: 1 }],
    ['merging/compeft_stc_k10', { magnitude: 'mean', scale: 1 }],
  ])('%s', (id, settings) => {
    const golden = loadCase(id);
    const rules = new RuleBook(golden);
    const density = (golden.params.density_percent as number) / 100;
    const update = Float32Array.from(golden.numbers('in.update'));
    const { signs, alpha } = ternaryOf([update], { density, ...settings });
    const [own] = signs as [Int8Array];
    rules.check('out.ternary', own);
    rules.check(
      'out.compressed',
      Float32Array.from(own, (sign) => sign * alpha),
    );
    expect(alpha).toBeCloseTo(golden.numbers('out.alpha')[0] as number, 7);
    rules.finish();
  });
});

it('folders are merged as the peer merged them', async () => {
  for (const id of COMBINED) {
    const golden = loadCase(id);
    if (id.includes('dare') || golden.params.svd_clamp !== undefined) continue;
    const weights = Object.values((golden.params as unknown as Params).weights);
    const mine = await combineAdapters(foldersOf(golden), weights, settingsIn(golden));
    const theirs = readAdapterFolder(path(id, 'merged'));
    const { r, lora_alpha } = theirs.config;
    expect(mine.config, id).toMatchObject({ peft_type: 'LORA', r, lora_alpha, use_rslora: false });
    expect([...mine.tensors.keys()].sort(), id).toEqual([...theirs.tensors.keys()].sort());
  }
});
