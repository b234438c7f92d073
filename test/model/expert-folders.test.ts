// The forms in which folders hold experts: one by one, stacked, transposed, in MXFP4; quantised as they are loaded; trained.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { FinetuneOptions } from '../../lib/finetune/finetune-files.js';
import {
  AdapterSet,
  adapters,
  Decoder,
  DecoderWeights,
  dequantize,
  type ExpertsLora,
  type LoadOptions,
  loadAdapters,
  loadDecoderAdapters,
  ModelTape,
  openHfModel,
  type QuantizedWeight,
  type RawTensor,
  rawToFloat32,
  readSafetensors,
  scope,
  Tensor,
  Trainer,
  type Value,
  writeSafetensors,
} from '../../lib/index.js';
import { requireFitting } from '../../lib/train/adapter-set.js';
import { writeAdapter } from '../../lib/trained/write-adapter.js';
import { codeOf } from '../checkpoint/raw-file.js';
import { loadCase } from '../golden/case-file.js';
import { ModelCase } from '../golden/models/cases.js';
import { source } from '../oracle/inputs.js';
import { exact } from '../oracle.js';

const golden = new ModelCase('mixtral/top2');
const kHosts = ['cpu', 'reference'] as const;

type Tensors = Readonly<Record<string, RawTensor>>;

/** Runs with a folder of these files. */
function withModel<T>(config: object, tensors: Tensors, use: (folder: string) => T): T {
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-experts-'));
  try {
    writeFileSync(join(folder, 'config.json'), JSON.stringify(config));
    writeSafetensors(join(folder, 'model.safetensors'), new Map(Object.entries(tensors)));
    return use(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function logitsOf(folder: string, ids: Int32Array, options: LoadOptions): Float32Array {
  return scope(() => {
    const model = openHfModel(folder);
    using decoder = new Decoder(model.decoder, DecoderWeights.load(model, options));
    const tape = new ModelTape({ recording: false });
    const { features } = decoder.forward(tape, { B: 1, T: ids.length, ids });
    return decoder.logits(tape, features).tensor.readSync();
  });
}

const joined = (parts: readonly RawTensor[], shape: number[]): RawTensor =>
  ({
    dtype: 'BF16',
    shape,
    data: Uint16Array.from(parts.flatMap(({ data }) => [...(data as Uint16Array)])),
  }) as RawTensor;

/** The tensors of Mixtral as transformers 5 holds them. */
function stacked(tensors: Tensors): Tensors {
  const made: Record<string, RawTensor> = {};
  for (const [name, tensor] of Object.entries(tensors)) {
    if (!name.includes('block_sparse_moe')) made[name] = tensor;
  }
  for (const layer of [0, 1]) {
    const at = `model.layers.${layer}.`;
    const of = (e: number, w: string) =>
      tensors[`${at}block_sparse_moe.experts.${e}.${w}.weight`] as RawTensor;
    const each = [0, 1, 2, 3];
    made[`${at}mlp.gate.weight`] = tensors[`${at}block_sparse_moe.gate.weight`] as RawTensor;
    made[`${at}mlp.experts.gate_up_proj`] = joined(
      each.flatMap((e) => [of(e, 'w1'), of(e, 'w3')]),
      [4, 54, 32],
    );
    made[`${at}mlp.experts.down_proj`] = joined(
      each.map((e) => of(e, 'w2')),
      [4, 32, 27],
    );
  }
  return made;
}

/** All tensors of a folder of one file. */
const read = (folder: string): Record<string, RawTensor> =>
  Object.fromEntries(readSafetensors(join(folder, 'model.safetensors')).tensors);

describe('experts of Mixtral', () => {
  const ids = Int32Array.from({ length: 11 }, (_, i) => (7 * i + 3) % 72);

  it.each(kHosts)('stacked give the bits of those one by one: %s', (device) => {
    const alone = logitsOf(golden.base, ids, { device });
    withModel(golden.config('v5'), stacked(read(golden.base)), (folder) => {
      exact('logits', logitsOf(folder, ids, { device }), alone);
    });
  });

  it('are counted, and tell of every tensor of the folder', () => {
    const model = openHfModel(golden.base);
    const seen = new Set<string>();
    const steps = [...DecoderWeights.loading(model, { device: 'cpu' })];
    using weights = DecoderWeights.load(model, {
      device: 'cpu',
      onTensor: (name) => seen.add(name),
    });
    expect([...seen].sort()).toEqual(model.names().sort());
    expect(steps.at(-1)).toEqual({ done: 12, total: 12 });
    const experts = 2 * 4 * (54 * 32 + 32 * 27);
    const attention = 2 * (2 * 32 * 32 + 2 * 16 * 32);
    expect(weights.memory.linear_bytes).toBe(2 * (experts + attention));
    expect(weights.memory.linearF32_bytes).toBe(4 * (experts + attention));
  });

  it('are refused by name where a tensor is missing or of another shape', () => {
    const tensors = { ...read(golden.base) };
    const name = 'model.layers.1.block_sparse_moe.experts.2.w3.weight';
    delete tensors[name];
    const config = golden.config('v5');
    expect(codeOf(() => withModel(config, tensors, openHfModel))).toBe('ERR_FILE');
    expect(() => withModel(config, tensors, openHfModel)).toThrow(
      `must hold tensor ${name} [27, 32], got no such tensor`,
    );
    const wide = { ...config, num_local_experts: 3 };
    expect(() => withModel(wide, read(golden.base), openHfModel)).toThrow(
      /gate\.weight must be \[3, 32\]/,
    );
  });

  it('are refused in a format whose blocks would cross them', () => {
    // 32 · 27 values of an expert are no whole blocks of 64.
    const load = () => {
      const model = openHfModel(golden.base);
      using weights = DecoderWeights.load(model, { device: 'cpu', format: { format: 'nf4' } });
      using decoder = new Decoder(model.decoder, weights);
      scope(() =>
        decoder.forward(new ModelTape({ recording: false }), { B: 1, T: 1, ids: Int32Array.of(1) }),
      );
    };
    expect(codeOf(load)).toBe('ERR_SHAPE');
    expect(load).toThrow(/experts that begin with a block of scales/);
  });
});

/** A gpt-oss of one layer, with the recorded experts. */
function gptOss() {
  const folder = join(import.meta.dirname, '../golden/formats/folder/gptoss_mxfp4');
  const config = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')) as Record<
    string,
    unknown
  >;
  const from = source(5);
  const draw = (shape: number[]): RawTensor =>
    ({
      dtype: 'F32',
      shape,
      data: Float32Array.from(
        { length: shape.reduce((a, b) => a * b, 1) },
        () => from.uniform() - 0.5,
      ),
    }) as RawTensor;
  const at = 'model.layers.0.';
  const rest: Record<string, RawTensor> = {
    [`${at}input_layernorm.weight`]: draw([64]),
    [`${at}post_attention_layernorm.weight`]: draw([64]),
    'model.norm.weight': draw([64]),
    [`${at}self_attn.sinks`]: draw([4]),
  };
  for (const [name, N, K] of [
    ['q_proj', 64, 64],
    ['k_proj', 32, 64],
    ['v_proj', 32, 64],
    ['o_proj', 64, 64],
  ] as const) {
    rest[`${at}self_attn.${name}.weight`] = draw([N, K]);
    rest[`${at}self_attn.${name}.bias`] = draw([N]);
  }
  return { config, tensors: { ...read(folder), ...rest } };
}

describe('gpt-oss in MXFP4', () => {
  const { config, tensors } = gptOss();
  const expected = loadCase('formats/folder/gptoss_mxfp4');
  const ids = Int32Array.from({ length: 9 }, (_, i) => (5 * i + 2) % 40);

  it.each(kHosts)('has the bits of the peer, and the logits of its dense weights: %s', (device) => {
    const dense: Record<string, RawTensor> = { ...tensors };
    for (const [name, N, K] of [
      ['gate_up_proj', 192, 64],
      ['down_proj', 64, 96],
    ] as const) {
      const key = `model.layers.0.mlp.experts.${name}`;
      delete dense[`${key}_blocks`];
      delete dense[`${key}_scales`];
      const values = expected.numbers(`out.${key}`);
      // The file has them transposed.
      const data = Float32Array.from({ length: 2 * N * K }, (_, i) => {
        const [e, k, n] = [Math.floor(i / (N * K)), Math.floor(i / N) % K, i % N];
        return values[e * N * K + n * K + k] as number;
      });
      dense[key] = { dtype: 'F32', shape: [2, K, N], data } as RawTensor;
    }
    const packed = withModel(config, tensors, (folder) => {
      const model = openHfModel(folder);
      expect(model.layouts).toEqual(['mxfp4']);
      using weights = DecoderWeights.load(model, { device });
      for (const { place, w } of [
        weights.layers[0]?.experts?.gateUp,
        weights.layers[0]?.experts?.down,
      ].flatMap((each) => (each === undefined ? [] : [each]))) {
        const values = scope(() => dequantize(w as QuantizedWeight, { dtype: 'f32' }).readSync());
        exact(place.parameter, values, expected.numbers(`out.${place.module}.${place.parameter}`));
      }
      return logitsOf(folder, ids, { device });
    });
    const { quantization_config: _, ...plain } = config;
    const same = withModel(plain, dense, (folder) => logitsOf(folder, ids, { device }));
    const most = Math.max(...same.map(Math.abs));
    packed.forEach((value, i) => {
      expect(Math.abs(value - (same[i] as number))).toBeLessThan(1e-5 * most);
    });
  });

  it('trains adapters on attention, with gradients through experts and router', async () => {
    await withModel(config, tensors, async (folder) => {
      const model = openHfModel(folder);
      using weights = DecoderWeights.load(model, { device: 'cpu' });
      const decoder = new Decoder(model.decoder, weights);
      const method = { method: adapters.lora, settings: { r: 4 }, targets: 'all-linear' } as const;
      using set = new AdapterSet(decoder, method, 1);
      expect(set.targets).toEqual(['q_proj', 'k_proj', 'v_proj', 'o_proj']);
      using trainer = new Trainer(set.parameters, { lr: 0.02 });
      const targets = ids.map((_, i) => ids[(i + 1) % ids.length] ?? 0);
      const losses: number[] = [];
      for (let i = 0; i < 8; i++) {
        const step = trainer.step((tape, { seed }) => {
          const call = { adapters: set.byModule, seed, recompute: i % 2 === 1 } as const;
          const { features } = decoder.forward(tape, { B: 1, T: ids.length, ids }, call);
          return decoder.loss(tape, features, targets, { ...call, scale: 1 / targets.length }).loss;
        });
        losses.push((await step.read()).loss);
      }
      expect(losses.at(-1)).toBeLessThan((losses[0] as number) * 0.95);
    });
  });

  it('is refused with another limit of its gate', () => {
    const { quantization_config: _, ...plain } = config;
    const other = () => withModel({ ...plain, swiglu_limit: 5 }, tensors, openHfModel);
    expect(codeOf(other)).toBe('ERR_FILE');
    expect(other).toThrow(/swiglu_limit/);
  });
});

/** W + scaling · B · A of each expert, in place of the stored weight of stacked experts [E, N, K]. */
function merged(tensors: Tensors, loras: ReadonlyMap<string, ExpertsLora>): Tensors {
  const made: Record<string, RawTensor> = { ...tensors };
  for (const [name, { loraA, loraB, scaling, place, config: own }] of loras) {
    const { E, N, K } = place;
    const [a, b, r] = [loraA.readSync(), loraB.readSync(), own.r];
    const before = rawToFloat32(tensors[name] as RawTensor);
    const data = Float32Array.from(before, (w, i) => {
      const [e, n, k] = [Math.floor(i / (N * K)), Math.floor(i / K) % N, i % K];
      let sum = 0;
      for (let j = 0; j < r; j++) {
        sum += (b[(e * N + n) * r + j] as number) * (a[(e * r + j) * K + k] as number);
      }
      return w + scaling * sum;
    });
    made[name] = { dtype: 'F32', shape: [E, N, K], data } as RawTensor;
  }
  return made;
}

describe('LoRA of experts', () => {
  const tensors = stacked(read(golden.base));
  const config = golden.config('v5');
  const ids = Int32Array.from({ length: 12 }, (_, i) => (5 * i + 4) % 72);
  const targets = ids.map((_, i) => ids[(i + 1) % ids.length] ?? 0);
  const method = {
    method: adapters.lora,
    settings: { r: 3, loraAlpha: 6 },
    targets: ['q_proj', 'experts.gate_up_proj', 'experts.down_proj'],
  } as const;

  it.each(kHosts)(
    'trains, is what merging gives, and goes through a PEFT folder: %s',
    async (device) => {
      await withModel(config, tensors, async (folder) => {
        const model = openHfModel(folder);
        expect(requireFitting(method, model.places, device)).toBe(
          2 * (3 * 64 + 4 * 3 * (54 + 32 + 32 + 27)),
        );
        using decoder = new Decoder(model.decoder, DecoderWeights.load(model, { device }));
        using set = new AdapterSet(decoder, method, 1);
        expect([...set.experts.keys()]).toEqual([
          'model.layers.0.mlp.experts.gate_up_proj',
          'model.layers.0.mlp.experts.down_proj',
          'model.layers.1.mlp.experts.gate_up_proj',
          'model.layers.1.mlp.experts.down_proj',
        ]);
        using trainer = new Trainer(set.parameters, { lr: 0.02 });
        const losses: number[] = [];
        for (let i = 0; i < 8; i++) {
          const step = trainer.step((tape) => {
            const both = { adapters: set.byModule, experts: set.experts };
            const call = { ...both, recompute: i % 2 === 1 };
            const { features } = decoder.forward(tape, { B: 1, T: ids.length, ids }, call);
            return decoder.loss(tape, features, targets, { ...call, scale: 1 / targets.length })
              .loss;
          });
          losses.push((await step.read()).loss);
        }
        expect(losses.at(-1)).toBeLessThan((losses[0] as number) * 0.9);
        const logits = (given: object): Float32Array =>
          scope(() => {
            const tape = new ModelTape({ recording: false });
            const { features } = decoder.forward(tape, { B: 1, T: ids.length, ids }, given);
            return decoder.logits(tape, features).tensor.readSync();
          });
        const own = logits({ experts: set.experts });
        const whole = withModel(config, merged(tensors, set.experts), (at) =>
          logitsOf(at, ids, { device }),
        );
        const most = Math.max(...own.map(Math.abs));
        own.forEach((value, i) => {
          expect(Math.abs(value - (whole[i] as number))).toBeLessThan(1e-5 * most);
        });

        const out = join(folder, 'adapter');
        await writeAdapter({ out, model: folder } as FinetuneOptions, set);
        const written = JSON.parse(readFileSync(join(out, 'adapter_config.json'), 'utf8'));
        expect(written.target_modules).toEqual([
          'model.layers.0.self_attn.q_proj',
          'model.layers.1.self_attn.q_proj',
        ]);
        expect(written.target_parameters).toEqual([...set.experts.keys()].sort());
        const file = readSafetensors(join(out, 'adapter_model.safetensors')).tensors;
        // PEFT reads the second dimension of [E, N, K], and has the module's last parameter outermost.
        const at = 'base_model.model.model.layers.0.mlp.experts.';
        const shapes = (key: string) => file.get(`${at}${key}.weight`)?.shape;
        expect([shapes('lora_A'), shapes('lora_B')]).toEqual([
          [12, 32],
          [27, 12],
        ]);
        expect(shapes('base_layer.lora_A')).toEqual([12, 54]);
        const back = loadDecoderAdapters(decoder, out);
        expect(codeOf(() => loadAdapters(decoder, out))).toBe('ERR_VALUE');
        exact(
          'from the folder',
          logits(back),
          logits({ adapters: set.byModule, experts: set.experts }),
        );
        for (const each of [...back.adapters.values(), ...back.experts.values()]) each.dispose();
      });
    },
  );

  it('has the gradients of differences, with recomputation too', () => {
    withModel(config, tensors, (folder) => {
      const model = openHfModel(folder);
      using decoder = new Decoder(
        model.decoder,
        DecoderWeights.load(model, { device: 'reference' }),
      );
      using set = new AdapterSet(decoder, method, 1);
      const lora = [...set.experts.values()][1] as ExpertsLora;
      // B of zeros has no gradient for A.
      lora.loraB.write(Float32Array.from({ length: lora.loraB.size }, (_, i) => Math.sin(i) / 4));
      const lossOf = (recompute: boolean) => {
        const tape = new ModelTape();
        const call = { adapters: set.byModule, experts: set.experts, recompute };
        const { features } = decoder.forward(tape, { B: 1, T: ids.length, ids }, call);
        return { tape, loss: decoder.loss(tape, features, targets, call).loss };
      };
      const gradientOf = (recompute: boolean, tensor: Tensor): Float32Array =>
        scope(() => {
          const { tape, loss } = lossOf(recompute);
          const value = tape.variables.get(tensor)?.[0] as Value;
          const one = Tensor.from([1], [1], { device: 'reference' });
          return (tape.gradients('loss', loss, one, [value])[0] as Tensor).readSync();
        });
      for (const tensor of [lora.loraA, lora.loraB]) {
        const gradient = gradientOf(false, tensor);
        exact('recomputed', gradientOf(true, tensor), gradient);
        const before = tensor.readSync();
        const direction = before.map((_, i) => Math.cos(3 * i));
        const at = (step: number): number => {
          tensor.write(before.map((v, i) => v + step * (direction[i] as number)));
          return scope(() => lossOf(false).loss.tensor.readSync()[0] as number);
        };
        const step = 2 ** -9;
        const slope = (at(step) - at(-step)) / (2 * step);
        tensor.write(before);
        const along = gradient.reduce((sum, d, i) => sum + d * (direction[i] as number), 0);
        expect(Math.abs(along - slope)).toBeLessThan(0.01 * Math.abs(slope) + 2e-3);
      }
    });
  });

  it('is refused for another method, with dropout, and by a wrong name', () => {
    const { places } = openHfModel(golden.base);
    const fits = (change: object) => () =>
      requireFitting({ ...method, ...change } as never, places, 'cpu');
    expect(codeOf(fits({ method: adapters.dora }))).toBe('ERR_UNSUPPORTED');
    expect(codeOf(fits({ settings: { r: 2, dropout: 0.1 } }))).toBe('ERR_UNSUPPORTED');
    expect(fits({ targets: ['experts.up_proj'] })).toThrow(
      /all-linear or a list of q_proj, k_proj, v_proj, o_proj, experts.gate_up_proj, experts.down_proj/,
    );
  });
});
