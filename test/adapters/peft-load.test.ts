// What PEFT makes of the folders that this library writes: for every method that PEFT has, on layers of unequal size, with
// and without a bias, over dense and 4-bit bases. PEFT does not run here. The loader is this project's own account of it
// (test/oracle/peft), which is held against PEFT's recorded folders and outputs in test/golden/peft-loader.test.ts.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  type Adapter,
  adapterMethods,
  type BaseWeight,
  dequantize,
  quantize,
  scope,
  Tensor,
  writeAdapterFolder,
} from '../../lib/index.js';
import { loadAsPeft, type PeftLinear, type PeftModel } from '../oracle/peft/index.js';
import {
  type Expectation,
  fieldsOf,
  filesOf,
  matrixOf,
  OWN,
  PEFT,
  psoftOf,
  worst,
} from './peft-load.js';
import { METHOD_CASES, settingsOf } from './settings.js';

/** Variants of layers that are not linear: their folders are checked in golden cases and in peft-layers.test.ts. */
const OTHER_LAYERS =
  /^(ia3-input\/kernel|lora\/(embedding|groups.*)|loha\/tucker|lokr\/(kernel|taps|tucker))$/;

const cases = METHOD_CASES.filter(
  (name) => (name.split('/')[0] as string) in PEFT && !OTHER_LAYERS.test(name),
);

const wave = (size: number, phase: number): Float32Array =>
  Float32Array.from({ length: size }, (_, i) => Math.sin(1.3 * i + phase));

/** Layers of two kinds in two blocks: of more outputs than inputs, and of fewer. */
function layersOf(name: string) {
  const { N, K } = settingsOf(name);
  const sizes =
    N === 24 && K === 32
      ? { 'self_attn.q_proj': [48, 32], 'mlp.down_proj': [24, 96] }
      : { 'self_attn.q_proj': [2 * N, K], 'mlp.down_proj': [N, 3 * K] };
  return [0, 1].flatMap((block) =>
    Object.entries(sizes).map(([kind, [outFeatures = 0, inFeatures = 0]]) => {
      const module = `model.layers.${block}.${kind}`;
      return { module, outFeatures, inFeatures };
    }),
  );
}

interface Layer {
  readonly module: string;
  readonly w: BaseWeight;
  readonly bias: Tensor | undefined;
  readonly adapter: Adapter;
}

/** Fresh adapters for a small model, with values as training may leave them. */
function adaptersFor(name: string, base: 'dense' | 'nf4', biased: boolean): Layer[] {
  const { settings } = settingsOf(name);
  const method = adapterMethods.find((each) => each.method === name.split('/')[0]);
  const places = layersOf(name).map((layer, i) => {
    const { outFeatures: N, inFeatures: K } = layer;
    const dense = Tensor.randn([N, K], { seed: 11 + i, std: 1 / Math.sqrt(K), device: 'cpu' });
    const weight = base === 'dense' ? dense : quantize(dense, { format: 'nf4' });
    return { ...layer, weight, seed: 5 + i };
  });
  const made = (method as NonNullable<typeof method>).createAll(
    places.map(({ module: _, ...place }) => ({ ...place, ...settings })),
  ) as Adapter[];
  const shared = new Map<string, number>();
  return places.map(({ module, weight, outFeatures }, i) => {
    const adapter = made[i] as Adapter;
    Object.entries(adapter.parameters).forEach(([key, tensor], k) => {
      // What all layers share stays the same in all of them.
      const phase = shared.get(key) ?? k;
      const moved = wave(tensor.size, phase);
      tensor.write(tensor.readSync().map((v, j) => v + 0.2 * (moved[j] as number)));
    });
    // Tables that follow from the values.
    if (adapter.definition.indexesFollowValues === true) adapter.refresh();
    const bias = biased
      ? Tensor.from(wave(outFeatures, 3), [outFeatures], { device: 'cpu' })
      : undefined;
    return { module, w: weight, bias, adapter };
  });
}

async function inFolder(body: (folder: string) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-test-'));
  try {
    await scope(() => body(join(folder, 'adapter')));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

describe('every method', () => {
  it('has a row here: what PEFT computes from its folders, or why PEFT has none', () => {
    const rows = Object.keys(PEFT).filter((name) => !name.includes('/'));
    const known = [...rows, ...Object.keys(OWN)].sort();
    expect(known).toEqual(adapterMethods.map(({ method }) => method).sort());
    for (const { method, definition } of adapterMethods) {
      expect(method in PEFT, method).toBe(definition.peft !== undefined);
    }
  });
});

describe.each(cases)('%s', (name) => {
  it.each([
    ['dense', true],
    ['dense', false],
    ['nf4', false],
  ] as const)('is what PEFT computes, over a %s base, with a bias: %s', async (base, biased) => {
    const row = (PEFT[name] ?? PEFT[name.split('/')[0] as string]) as Expectation;
    await inFolder(async (folder) => {
      const layers = adaptersFor(name, base, biased && row.embedding !== true);
      const byModule = new Map(layers.map(({ module, adapter }) => [module, adapter]));
      const warnings = await writeAdapterFolder(folder, byModule);
      if (row.caveat === undefined) expect(warnings).toEqual([]);
      else expect(warnings).toEqual([expect.stringMatching(row.caveat)]);
      const files = filesOf(folder);
      const known = fieldsOf(files.config.peft_type);
      expect(Object.keys(files.config).filter((field) => !known.has(field))).toEqual(
        row.unknown ?? [],
      );
      const model: PeftModel = new Map(
        layers.map(({ module, w, bias }): [string, PeftLinear] => {
          const dense = matrixOf(w instanceof Tensor ? w : dequantize(w, { dtype: 'f32' }));
          const weight = row.embedding === true ? dense.transposed() : dense;
          return [module, { weight, bias: bias && Float64Array.from(bias.readSync()) }];
        }),
      );
      if (row.refuses !== undefined) {
        expect(() => loadAsPeft(files, model)).toThrow(row.refuses);
        return;
      }
      const loaded = loadAsPeft(files, model, { PSOFT: psoftOf(files) });
      expect(loaded.ignored.filter((key) => row.ignored?.test(key) !== true)).toEqual([]);
      for (const { module, w, bias, adapter } of layers) {
        const x = Tensor.from(wave(3 * adapter.inFeatures, 4), [3, adapter.inFeatures], {
          device: 'cpu',
        });
        const inputs = inputsOf(name, adapter);
        const given = { training: false, inputs, ...(bias === undefined ? {} : { bias }) };
        const { y } = adapter.forward(x, w, given);
        const tasks = inputs.tasks === undefined ? {} : { tasks: matrixOf(inputs.tasks) };
        const expected = loaded.forward(module, matrixOf(x), tasks);
        const error = worst(y.readSync(), expected);
        if (row.otherwise === true) expect(error, module).toBeGreaterThan(1e-3);
        else expect(error, module).toBeLessThan(1e-5);
      }
    });
  });
});

/** Every token is active, and has one task. */
function inputsOf(
  name: string,
  { outFeatures: N, inFeatures: K }: Adapter,
): Record<string, Tensor> {
  const { inputs = {} } = settingsOf(name);
  return Object.fromEntries(
    Object.entries(inputs).map(([input, shape]) => {
      const dims = shape(3, { N, K });
      const cols = dims.at(-1) as number;
      const one = (i: number) =>
        input === 'active' || i % cols === Math.floor(i / cols) % cols ? 1 : 0;
      const values = Float32Array.from({ length: 3 * cols }, (_, i) => one(i));
      return [input, Tensor.from(values, dims, { device: 'cpu' })];
    }),
  );
}
