// Options: a name that is not known is refused with the one that is near, and nothing is read off a prototype.
import { readdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { describe, expect, it } from 'vitest';
import * as lowrank from '../../lib/index.js';
import {
  type Device,
  DeviceSeed,
  FeatureMap,
  GroupedLora,
  Im2col,
  Indices,
  LoraAdapter,
  LoraLinear,
  NormAdapter,
  SparsePattern,
  scope,
  Tape,
  Tensor,
  TokenRows,
} from '../../lib/index.js';
import { callWith } from './harness.js';

const device: Device = 'cpu';
const [M, N, K, r] = [3, 4, 64, 2];
const draw = (shape: number[], seed = 1) => Tensor.randn(shape, { seed, device });

/** Operands of the calls below, all right. */
function operands() {
  const [x, w, dy] = [draw([M, K]), draw([N, K], 2), draw([M, N], 3)];
  const [loraA, loraB, h] = [draw([r, K], 4), draw([N, r], 5), draw([M, r], 6)];
  const adapter = new LoraAdapter({ loraA, loraB, loraAlpha: 2 });
  const group = new GroupedLora({ inFeatures: K, outFeatures: N, device });
  group.add('a', adapter);
  const map = FeatureMap.slice(K, 0, 8, { device });
  return { x, w, dy, loraA, loraB, h, adapter, group, map };
}
type Operands = ReturnType<typeof operands>;

/** A call with these options; of each a name that it knows, misspelt. */
type Row = readonly [name: string, known: string, call: (o: Operands, options: object) => unknown];
const functions: Readonly<Record<string, unknown>> = { ...lowrank };
const of =
  (name: keyof typeof lowrank) =>
  (...args: unknown[]): unknown =>
    callWith(functions[name] as never, ...args);

const indices = (count: number, limit: number): Indices =>
  Indices.from(new Int32Array(count), { limit, device });
const route = () => lowrank.routeRows(indices(M, 2), { k: 1, experts: 2 });
const rowOf = (near: Tensor, size: number): Tensor => Tensor.zeros([size], { device: near.device });

const TABLE: readonly Row[] = [
  ['Tensor.from', 'dtype', (_, o) => callWith(Tensor.from, [1], [1], o)],
  ['Tensor.zeros', 'device', (_, o) => callWith(Tensor.zeros, [1], o)],
  ['Tensor.wrap', 'dtype', (_, o) => callWith(Tensor.wrap, new Float32Array(1), [1], o)],
  ['Tensor.randn', 'seed', (_, o) => callWith(Tensor.randn, [1], o)],
  ['Tensor.uniform', 'low', (_, o) => callWith(Tensor.uniform, [1], o)],
  ['to', 'dtype', ({ x }, o) => x.to(o)],
  ['full', 'dtype', (_, o) => of('full')([1], 2, o)],
  ['captureStep', 'device', (_, o) => of('captureStep')(() => undefined, o)],
  ['DeviceSeed.from', 'device', (_, o) => callWith(DeviceSeed.from, 1, o)],
  [
    'DeviceSeed.uniform',
    'low',
    (_, o) => {
      using seed = DeviceSeed.from(1, { device });
      return callWith(seed.uniform.bind(seed), [1], o);
    },
  ],
  ['matmul', 'bias', ({ x, w }, o) => of('matmul')(x, w, o)],
  ['svd', 'iterations', ({ w }, o) => of('svd')(w, o)],
  [
    'solveTriangular',
    'transposed',
    ({ h }, o) => of('solveTriangular')(lowrank.full([M, M], 1, { device }), h, o),
  ],
  ['loraForward', 'training', ({ x, w, adapter }, o) => of('loraForward')(x, w, adapter, o)],
  [
    'loraBackward',
    'needs',
    ({ x, w, dy, adapter }, o) =>
      of('loraBackward')(dy, lowrank.loraForward(x, w, adapter).saved, o),
  ],
  ['loraForwardMany', 'training', ({ x, w }, o) => of('loraForwardMany')(x, [{ w }], o)],
  [
    'loraForwardMany, projections[0]',
    'adapter',
    ({ x, w }, o) => of('loraForwardMany')(x, [{ w, ...o }]),
  ],
  ['loraForwardSwiglu', 'training', ({ x, w }, o) => of('loraForwardSwiglu')(x, { w }, { w }, o)],
  [
    'adamwStep',
    'maxNorm',
    ({ x, dy, h, loraA }, o) => {
      const four = [x, loraA, dy, h].map((near) => [rowOf(near, 2)]);
      return of('adamwStep')(...four, { lr: 1, step: 1, ...o });
    },
  ],
  ['gatedActivation', 'kind', ({ x }, o) => of('gatedActivation')(x, x, o)],
  ['gatedActivationBackward', 'kind', ({ x }, o) => of('gatedActivationBackward')(x, x, x, o)],
  ['rmsNormForward', 'residual', ({ x, h }, o) => of('rmsNormForward')(x, rowOf(h, K), o)],
  ['rmsNormBackward', 'invRms', ({ x, h }, o) => of('rmsNormBackward')(x, x, rowOf(h, K), o)],
  ['attention', 'heads', ({ x }, o) => of('attention')({ q: x, k: x, v: x }, o)],
  ['attentionBackward', 'heads', ({ x }, o) => of('attentionBackward')(x, { q: x, k: x, v: x }, o)],
  ['embedding', 'scale', ({ w }, o) => of('embedding')(indices(M, N), w, o)],
  [
    'linearCrossEntropy',
    'weights',
    ({ x, w }, o) => of('linearCrossEntropy')(x, w, indices(M, N), o),
  ],
  ['routeRows', 'experts', (_, o) => of('routeRows')(indices(M, 2), { k: 1, ...o })],
  ['selectExperts', 'softmax', ({ x }, o) => of('selectExperts')(x, { k: 1, ...o })],
  [
    'selectExpertsBackward',
    'softmax',
    ({ x }, o) =>
      of('selectExpertsBackward')(draw([M, 1]), x, { ...lowrank.selectExperts(x, { k: 1 }), ...o }),
  ],
  ['expertsMatmul', 'gather', ({ x, w }, o) => of('expertsMatmul')(x, w, route(), o)],
  [
    'expertsMatmulBackward',
    'needs',
    ({ w }, o) => of('expertsMatmulBackward')(draw([M, N / 2]), w, route(), o),
  ],
  ['combineRows', 'gates', ({ x }, o) => of('combineRows')(x, route(), o)],
  ['combineRowsBackward', 'gates', ({ x }, o) => of('combineRowsBackward')(x, route(), o)],
  ['Indices.from', 'limit', (_, o) => callWith(Indices.from, [0], o)],
  ['loraShrink', 'scaling', ({ x, loraA }, o) => of('loraShrink')(x, loraA, o)],
  ['loraExpand', 'bias', ({ x, w, h, loraB }, o) => of('loraExpand')(x, w, h, loraB, o)],
  [
    'loraExpandWithNorms',
    'weightNorms',
    ({ x, w, h, loraA, loraB }, o) => of('loraExpandWithNorms')(x, w, h, { loraA, loraB }, o),
  ],
  [
    'loraExpandBackward',
    'needs',
    ({ dy, h, loraB }, o) => of('loraExpandBackward')(dy, h, loraB, o),
  ],
  [
    'loraShrinkBackward',
    'needs',
    ({ dy, w, h, loraA }, o) => of('loraShrinkBackward')(dy, w, h, loraA, o),
  ],
  ['weightGrad', 'dtype', ({ dy, x }, o) => of('weightGrad')(dy, x, o)],
  [
    'fakeQuantize',
    'clippedBy',
    ({ w }, o) => {
      const t = new Tape();
      return of('fakeQuantize')(t, t.own(w), { bits: 4, scale: t.own(draw([N, 1])), ...o });
    },
  ],
  [
    'fakeQuantizeLevels',
    'scale',
    ({ w }, o) => {
      const t = new Tape();
      return of('fakeQuantizeLevels')(t, t.own(w), { levels: t.own(draw([1, 4])), ...o });
    },
  ],
  [
    'freezeGrid',
    'offset',
    ({ w }, o) => of('freezeGrid')(w, { bits: 4, scale: draw([N, 1]), ...o }),
  ],
  ['freezeLevels', 'scale', ({ w }, o) => of('freezeLevels')(w, { levels: draw([1, 4]), ...o })],
  ['multiplyAdd', 'alpha', ({ x }, o) => of('multiplyAdd')({ a: x, ...o })],
  ['mapTensor', 'dtype', ({ x }, o) => of('mapTensor')(x, 'exp', o)],
  ['sumProduct', 'axis', ({ x }, o) => of('sumProduct')(x, undefined, o)],
  ['mapFeatures', 'alpha', ({ x, map }, o) => of('mapFeatures')(x, map, o)],
  ['denseRows', 'dtype', ({ w }, o) => of('denseRows')(w, 0, 1, o)],
  ['oneHot', 'device', (_, o) => of('oneHot')([1], 2, o)],
  ['factoredNorm', 'scaling', ({ w }, o) => of('factoredNorm')({ w, ...o })],
  ['quantize', 'blocksize', ({ w }, o) => of('quantize')(w, { format: 'nf4', ...o })],
  [
    'dequantize',
    'dtype',
    ({ w }, o) => of('dequantize')(lowrank.quantize(w, { format: 'nf4' }), o),
  ],
  [
    'loraBackwardMany',
    'needs',
    ({ x, w, dy }, o) => of('loraBackwardMany')([dy], lowrank.loraForwardMany(x, [{ w }]).saved, o),
  ],
  [
    'loraBackwardSwiglu',
    'needs',
    ({ x, w, dy }, o) =>
      of('loraBackwardSwiglu')(dy, lowrank.loraForwardSwiglu(x, { w }, { w }).saved, o),
  ],
  ['coreScale', 'core', ({ h }, o) => of('coreScale')(h, o)],
  [
    'coreScaleBackward',
    'keep',
    ({ h }, o) => {
      const { saved } = lowrank.coreScale(h, { dIn: Tensor.zeros([r], { device }) });
      return of('coreScaleBackward')(h, saved, o);
    },
  ],
  ['checkGradients', 'inputs', (_, o) => of('checkGradients')(o)],
  ['checkAdapter', 'settings', (_, o) => of('checkAdapter')(lowrank.adapters.lora, o)],
  ['weightGradTiles', 'consume', ({ dy, x }, o) => of('weightGradTiles')(dy, x, o)],
  ['arrowExperts', 'general', ({ adapter }, o) => of('arrowExperts')([adapter], o)],
  ['Im2col', 'kernel', (_, o) => Reflect.construct(Im2col, [o])],
  ['FeatureMap', 'lists', (_, o) => Reflect.construct(FeatureMap, [o])],
  ['FeatureMap.slice', 'device', (_, o) => callWith(FeatureMap.slice, 4, 0, 2, o)],
  ['Sensitivities', 'beta1', (_, o) => Reflect.construct(lowrank.Sensitivities, [o])],
  ['laplace', 'rank', (_, o) => of('laplace')([], o)],
  ['noiseForPrivacy', 'epsilon', (_, o) => of('noiseForPrivacy')(o)],
  ['observe', 'wanted', (_, o) => of('observe')({}, {}, o)],
  ['perExampleGradients', 'trained', (_, o) => of('perExampleGradients')(() => {}, o)],
  ['predictiveProbabilities', 'samples', (_, o) => of('predictiveProbabilities')({}, o)],
  ['privacyAccountant', 'noise', (_, o) => of('privacyAccountant')(o)],
  ['GroupedLora', 'inFeatures', (_, o) => Reflect.construct(GroupedLora, [o])],
  [
    'GroupedLora.forward',
    'rowScale',
    ({ group, x, w }, o) => group.forward(x, w, ['a', 'a', 'a'], o),
  ],
  ['LoraAdapter', 'loraAlpha', (_, o) => Reflect.construct(LoraAdapter, [o])],
  ['LoraAdapter.init', 'loraAlpha', (_, o) => callWith(LoraAdapter.init, o)],
  ['LoraLinear', 'adapters', (_, o) => Reflect.construct(LoraLinear, [o])],
  ['NormAdapter', 'weight', (_, o) => Reflect.construct(NormAdapter, [o])],
  ['SparsePattern', 'columns', (_, o) => Reflect.construct(SparsePattern, [o])],
  ['TokenRows', 'tokens', (_, o) => Reflect.construct(TokenRows, [o])],
  ['Tape', 'recording', (_, o) => Reflect.construct(Tape, [o])],
  ['joinWorld', 'timeoutSeconds', (_, o) => of('joinWorld')(o)],
  [
    'lora.create',
    'loraAlpha',
    (_, o) =>
      callWith((options: object) => lowrank.adapters.lora.create(options as never), {
        inFeatures: K,
        outFeatures: N,
        ...o,
      }),
  ],
];

describe('options', () => {
  it.each(TABLE)('%s refuses a name it does not know', async (op, known, call) => {
    const misspelt = `${known}x`;
    // What the call throws, or rejects with.
    const { refused } = scope(() => {
      const given = operands();
      return { refused: (async () => call(given, { [misspelt]: 1 }))() };
    });
    await expect(refused).rejects.toThrow(
      expect.objectContaining({
        code: 'ERR_VALUE',
        message: expect.stringMatching(
          new RegExp(
            `^${op.replace(/[[\]]/g, '\\$&')}: .*got "${misspelt}" \\(did you mean ${known}\\?\\)$`,
          ),
        ),
      }),
    );
  });

  it('has a row for each public function that reads options', () => {
    const rows = new Set(TABLE.map(([op]) => op.split(/[.,]/)[0]));
    const reads = Object.entries(functions).filter(
      ([, value]) => typeof value === 'function' && /\breadOptions\b/.test(String(value)),
    );
    expect(reads.length).toBeGreaterThan(30);
    const without = reads.map(([name]) => name).filter((name) => !rows.has(name));
    expect(without.sort()).toEqual(OTHERS);
  });

  it('a polluted prototype changes nothing', () => {
    scope(() => {
      const { x, w, dy, adapter, h, loraB } = operands();
      const results = () => {
        const { y, saved } = lowrank.loraForward(x, w, adapter);
        return [
          lowrank.matmul(x, w),
          y,
          lowrank.loraForwardMany(x, [{ w, adapter }, { w }]).ys[1] as Tensor,
          lowrank.loraExpand(x, w, h, loraB),
          lowrank.mapTensor(x, 'exp'),
          lowrank.multiplyAdd({ a: x }),
          lowrank.weightGrad(dy, x),
          Tensor.zeros([2], {}),
          ...Object.values(lowrank.loraBackward(dy, saved)),
        ].map((tensor) => [tensor.dtype, Buffer.from(tensor.readSync().buffer).toString('base64')]);
      };
      const before = results();
      const bad: Record<string, unknown> = {
        bias: draw([N], 9),
        training: false,
        dropoutMask: draw([M, K], 9),
        scaling: 7,
        alpha: 7,
        beta: 7,
        c: draw([M, K], 9),
        b: draw([M, K], 9),
        dtype: 'bf16',
        compute: 'int8',
        keep: true,
        needs: [],
        dx: draw([M, K], 9),
        dLoraA: draw([r, K], 9),
        accumulateInto: draw([N, K], 9),
      };
      const polluted = Object.prototype as unknown as Record<string, unknown>;
      try {
        Object.assign(polluted, bad);
        expect(results()).toEqual(before);
      } finally {
        for (const name of Object.keys(bad)) delete polluted[name];
      }
    });
  });

  it('are read by readOptions or ownFields and not off the argument itself', () => {
    const lib = join(import.meta.dirname, '..', '..', 'lib');
    const found: string[] = [];
    for (const folder of ['core', 'ops', 'quant', 'autograd', 'adapters']) {
      const files = readdirSync(join(lib, folder), { recursive: true, encoding: 'utf8' });
      for (const path of files.filter((name) => name.endsWith('.ts')).sort()) {
        const file = basename(path);
        const text = readFileSync(join(lib, folder, path), 'utf8');
        for (const line of text.split('\n')) {
          if (/^\s*(\*|\/\/)/.test(line)) continue;
          if (/\boptions\??\.[a-z]|\} = options;/.test(line)) found.push(`${file}: ${line.trim()}`);
        }
      }
    }
    expect(found).toEqual(ALLOWED);
  });
});

/** With tests of their own: classes that the library makes, and adapters of one method. */
const OTHERS: readonly string[] = [
  'Adapter',
  'CapturedTraining',
  'GradientTape',
  'OftImages',
  'QuantizedWeight',
  'Trainer',
  'arrowFromPeft',
  'arrowPrototypes',
  'expertsFromPeft',
  'generate',
  'montecloraLoss',
];

/** Options of functions that are not public, or a field that is read beside the checked ones. */
const ALLOWED: readonly string[] = [
  'errors.ts: super(message, options?.cause === undefined ? undefined : { cause: options.cause });',
  'errors.ts: if (options?.op !== undefined) this.op = options.op;',
  'lora-many.ts: const { seed: _, dropoutMask: __, ...base } = options;',
  'zero-points.ts: const { dtype, first = 0, sign = 1 } = options;',
  'method.ts: ...(options.device === undefined && first !== undefined ? { device: first.device } : {}),',
];
