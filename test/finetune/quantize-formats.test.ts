/** `lowrank quantize` to the layouts of other libraries: what it writes is opened, has the values that it says, and trains. */

import fs from 'node:fs';
import path from 'node:path';
import { afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { quantizeCommand } from '../../lib/cli/quantize/quantize.js';
import { commandFormats, layoutsFor } from '../../lib/cli/quantize/settings.js';
import {
  AdapterSet,
  adapters,
  Decoder,
  DecoderWeights,
  openHfModel,
  Trainer,
} from '../../lib/index.js';
import { layerLinears } from '../../lib/model/decoder-tensors.js';
import { source as numbers } from '../oracle/inputs.js';
import { requireBuilt, run } from './command.js';
import { temporaryFolder } from './setup.js';
import { writeTinyCheckpoint } from './tiny-checkpoint.js';

const folder = temporaryFolder();
const inFolder = (name: string) => path.join(folder, name);
const config = (name: string, file = 'config.json') =>
  JSON.parse(fs.readFileSync(path.join(name, file), 'utf8'));

beforeAll(() => {
  const sizes = { hiddenSize: 64, intermediateSize: 96, headDim: 16, numHiddenLayers: 2 };
  writeTinyCheckpoint(inFolder('model'), { ...sizes, dtype: 'BF16', shards: 2 });
});
afterEach(() => {
  vi.restoreAllMocks();
});

interface Facts {
  readonly layers: number;
  readonly error: number;
  readonly errors: readonly { readonly name: string; readonly error: number }[];
}

/** Runs the command in this process, and returns what it prints. */
async function quantize(out: string, ...args: string[]): Promise<Facts> {
  const printed: string[] = [];
  vi.spyOn(process.stdout, 'write').mockImplementation((text) => {
    printed.push(String(text));
    return true;
  });
  expect(await quantizeCommand([inFolder('model'), out, '--json', ...args])).toBe(0);
  vi.restoreAllMocks();
  return JSON.parse(printed.join(''));
}

/** The loss before and after six steps of LoRA. */
async function losses(model: ReturnType<typeof openHfModel>): Promise<[number, number]> {
  using weights = DecoderWeights.load(model, { device: 'cpu' });
  const decoder = new Decoder(model.decoder, weights);
  const method = { method: adapters.lora, settings: { r: 4 }, targets: 'all-linear' } as const;
  const set = new AdapterSet(decoder, method, 1);
  const trainer = new Trainer(set.parameters, { lr: 0.02 });
  const from = numbers(7);
  const ids = Int32Array.from({ length: 2 * 8 }, () => from.integer(0, 255));
  const targets = ids.map((_, i) => ids[(i + 1) % ids.length] ?? 0);
  const all: number[] = [];
  for (let i = 0; i < 6; i++) {
    const step = trainer.step((tape, { seed }) => {
      const call = { adapters: set.byModule, seed } as const;
      const { features } = decoder.forward(tape, { B: 2, T: 8, ids }, call);
      return decoder.loss(tape, features, targets, { ...call, scale: 1 / targets.length }).loss;
    });
    all.push((await step.read()).loss);
  }
  return [all[0] as number, all[5] as number];
}

/** Groups that divide every row of the model: 64 and 96 columns. */
function groupArgs(layout: string, format: string): string[] {
  const integers = format.startsWith('int') && layout !== 'bitsandbytes' && layout !== 'llm-int8';
  return integers ? ['--group-size', '32'] : [];
}

const ROWS: [string, string, string[]][] = [
  ...commandFormats.flatMap((format) =>
    layoutsFor(format)
      // Blockwise int8 has no section by which transformers, or openHfModel, finds it.
      .filter((layout) => !(format === 'int8' && layout === 'bitsandbytes'))
      .map((layout): [string, string, string[]] => [format, layout, groupArgs(layout, format)]),
  ),
  ['fp8-e4m3', 'fp8', ['--strategy', 'block']],
  ['fp8-e4m3', 'fp8', ['--strategy', 'tensor']],
  ['fp8-e4m3', 'fp8', ['--group-size', '32']],
  ['int4', 'pack-quantized', ['--strategy', 'channel']],
  ['int4', 'pack-quantized', ['--group-size', '32', '--zero-points']],
  ['int8', 'int-quantized', ['--strategy', 'tensor']],
  ['int4', 'gptq', ['--strategy', 'channel', '--zero-points']],
];

describe('folders', () => {
  it.each(ROWS)('%s in %s %s', async (format, layout, more) => {
    const out = inFolder([format, layout, ...more].join('_'));
    const facts = await quantize(out, '--format', format, '--layout', layout, ...more);
    expect(facts.layers).toBe(14);
    const model = openHfModel(out);
    expect(model.layouts).toEqual([layout]);
    const source = openHfModel(inFolder('model'));
    // The errors that it prints are those of the values that the folder decodes to.
    let [off, all] = [0, 0];
    for (const { weight } of model.places.layers.flatMap((layer) => layerLinears(layer as never))) {
      const { name } = weight;
      const [before, after] = [source, model].map((each) => each.readFloat32(name));
      let [error, square] = [0, 0];
      (before as Float32Array).forEach((value, i) => {
        error += (((after as Float32Array)[i] as number) - value) ** 2;
        square += value ** 2;
      });
      const printed = facts.errors.find((each) => `${each.name}.weight` === name);
      expect(printed?.error, name).toBeCloseTo(Math.sqrt(error / square), 9);
      [off, all] = [off + error, all + square];
    }
    expect(facts.error).toBeCloseTo(Math.sqrt(off / all), 9);
    expect(facts.errors).toHaveLength(14);
    const [first, last] = await losses(model);
    expect(last).toBeLessThan(first * 0.98);
  });

  it('name the modules that stay as they are, as each library has them', async () => {
    const skip = ['--skip', 'lm_head,embed,norm,layers.1.mlp.down_proj'];
    const left = ['model.layers.1.mlp.down_proj'];
    const made = async (name: string, ...args: string[]) => {
      const out = inFolder(`skip-${name}`);
      await quantize(out, ...args, ...skip);
      const model = openHfModel(out);
      expect(model.layoutOf('model.layers.1.mlp.down_proj')).toBeUndefined();
      expect(model.layoutOf('model.layers.0.mlp.down_proj')).toBeDefined();
      return [config(out).quantization_config, out];
    };
    const groups = ['--group-size', '32'];
    const [packed] = await made('packed', '--format', 'int4', ...groups);
    expect(packed).toMatchObject({ quant_method: 'compressed-tensors', format: 'pack-quantized' });
    expect(packed.ignore).toEqual(expect.arrayContaining(['lm_head', ...left]));
    expect(packed.config_groups.group_0.weights).toMatchObject({
      num_bits: 4,
      type: 'int',
      strategy: 'group',
      group_size: 32,
      symmetric: true,
    });
    const [gptq, gptqOut] = await made('gptq', '--format', 'int4', '--layout', 'gptq', ...groups);
    expect(gptq.dynamic).toEqual({ '-:^model\\.layers\\.1\\.mlp\\.down_proj$': {} });
    expect(config(gptqOut, 'quantize_config.json')).toMatchObject({ bits: 4, group_size: 32 });
    const [awq] = await made('awq', '--format', 'int4', '--layout', 'awq', ...groups);
    expect(awq.modules_to_not_convert).toEqual(expect.arrayContaining(left));
    const [hqq] = await made('hqq', '--format', 'int4', '--layout', 'hqq', ...groups);
    expect(hqq.skip_modules).toEqual(expect.arrayContaining(left));
    const [fp8] = await made('fp8', '--format', 'fp8-e4m3', '--strategy', 'block');
    expect(fp8).toMatchObject({ quant_method: 'fp8', weight_block_size: [128, 128] });
    expect(fp8.modules_to_not_convert).toEqual(expect.arrayContaining(left));
    const modelopt = ['--format', 'nvfp4', '--layout', 'modelopt-nvfp4'];
    const [nvfp4, nvfp4Out] = await made('modelopt', ...modelopt);
    expect(nvfp4.ignore).toEqual(expect.arrayContaining(left));
    const { quantization } = config(nvfp4Out, 'hf_quant_config.json');
    expect(quantization.exclude_modules).toEqual(nvfp4.ignore);
  });
});

describe('the command', () => {
  beforeAll(requireBuilt);

  it('finetune trains on what quantize wrote, and names its layout', async () => {
    const [out, text] = [inFolder('for-finetune'), inFolder('text.txt')];
    const quantized = await run(['quantize', inFolder('model'), out, '--format', 'mxfp4']);
    expect(quantized.code, quantized.stderr).toBe(0);
    expect(quantized.stdout).toMatch(/^"model\.layers\.0\.mlp\.down_proj" +1\d\.\d %$/m);
    expect(quantized.stdout).toMatch(/^their error \(rms, relative\) +1\d\.\d %$/m);
    fs.writeFileSync(text, 'a line of text that the model learns. '.repeat(60));
    const trained = await run(
      ['finetune', '--model', out, '--data', text, '--out', inFolder('adapter')].concat(
        ['--steps', '12', '--seq-len', '32', '--lr', '0.02', '--batch', '2', '--no-compare'],
        ['--json'],
      ),
    );
    expect(trained.code, trained.stderr).toBe(0);
    const { lossBefore, lossAfter, table, run: settings } = JSON.parse(trained.stdout);
    expect(settings.base).toMatch(/^mxfp4-pack-quantized;/);
    expect(lossAfter).toBeLessThan(lossBefore * 0.9);
    expect(Object.keys(table)).toContain('linear layers in mxfp4-pack-quantized');
  });

  it.each<[string, string[], number, RegExp]>([
    ['an unknown layout', ['--layout', 'x'], 2, /--layout must be one of bitsandbytes, .*awq/],
    [
      'a layout of another format',
      ['--format', 'mxfp4', '--layout', 'awq'],
      2,
      /--layout must be one of mxfp4-pack-quantized with --format mxfp4, got "awq"/,
    ],
    ['a group of nothing', ['--format', 'int4', '--group-size', '0'], 2, /integer from 1 to/],
    [
      'a blocksize of another format',
      ['--format', 'mxfp4', '--blocksize', '64'],
      2,
      /--blocksize must be left out with --format mxfp4 in layout mxfp4-pack-quantized, got "64"/,
    ],
    [
      'a group and a strategy',
      ['--format', 'int4', '--group-size', '32', '--strategy', 'channel'],
      2,
      /--group-size must be left out with --strategy channel/,
    ],
    [
      'zero-points of floats',
      ['--format', 'nvfp4', '--zero-points'],
      2,
      /--zero-points must be left out with --format nvfp4/,
    ],
    [
      'groups that do not divide',
      ['--format', 'int4'],
      3,
      /"model\.layers\.\d.*": quantizeLayer: w must be of columns that groups of 128 divide, got/,
    ],
  ])('rejects %s', async (_, args, code, message) => {
    const result = await run(['quantize', inFolder('model'), inFolder('rejected'), ...args]);
    expect(result.stderr).toMatch(message);
    expect(result.code).toBe(code);
    expect(fs.existsSync(inFolder('rejected'))).toBe(false);
  });

  it('says that a folder is quantised already', async () => {
    const [once, twice] = [inFolder('already'), inFolder('already-twice')];
    await quantize(once, '--format', 'int4', '--layout', 'hqq', '--group-size', '32');
    const again = await run(['quantize', once, twice, '--format', 'mxfp4']);
    expect(again.stderr).toContain('no layer was quantised: 14 are quantised already, 2 are left');
    expect(config(twice)).toEqual(config(once));
  });
});
