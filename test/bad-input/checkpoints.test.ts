// Bad input to what reads and writes checkpoints, by the types of what is given; files that are bad
// themselves are in test/checkpoint.
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  encodeSafetensors,
  joinBitsandbytes,
  LoraAdapter,
  openHfModel,
  openSafetensors,
  type RawTensor,
  rawToFloat32,
  readPeftAdapter,
  readSafetensors,
  splitBitsandbytes,
  writePeftAdapter,
  writeSafetensors,
} from '../../lib/index.js';
import { type BadCase, type BadClass, bad, callWith, checkCases } from './harness.js';

const raw = (...shape: number[]): RawTensor => ({
  dtype: 'F32',
  shape,
  data: new Float32Array(shape.reduce((size, dim) => size * dim, 1)),
});

/** Values that are neither text nor an object of names. */
const others: readonly (readonly [BadClass, string, unknown])[] = [
  [2, 'null', null],
  [3, 'a number', 3],
  [3, 'a symbol', Symbol('x')],
  [3, 'an array', []],
  [3, 'a function', () => 3],
];
const noText: typeof others = [
  ...others,
  [1, 'undefined', undefined],
  [3, 'an object', {}],
  [3, 'a URL', new URL('file:///x')],
];
const noObject: typeof others = [...others, [3, 'a string', 'x']];
const noMap: typeof others = [...noObject, [3, 'an object', {}]];

let parent: string;
beforeAll(() => {
  parent = mkdtempSync(join(tmpdir(), 'lowrank-test-'));
});
afterAll(() => rmSync(parent, { recursive: true }));

/** One refused value after another in place of an argument. */
const each = (
  name: string,
  values: typeof others,
  run: (value: unknown) => unknown,
  code = 'ERR_TYPE',
): BadCase[] =>
  values.map(([kind, what, value]) => bad(kind, `${name}: ${what}`, code, () => run(value)));

const check = (op: string, cases: readonly BadCase[]) =>
  checkCases(op, 'cpu', {
    watched: [],
    cases,
    valid: async () => [rawToFloat32(raw(2))],
  });

describe('bad input to checkpoints', () => {
  it('safetensors', async () => {
    const file = join(parent, 'model.safetensors');
    const bytes = encodeSafetensors({ w: raw(2) });
    const whole = join(parent, 'whole.safetensors');
    writeSafetensors(whole, { w: raw(2) });
    const opened = openSafetensors(whole);
    const writers = [
      encodeSafetensors,
      (...args: unknown[]) => callWith(writeSafetensors, file, ...args),
    ];
    await check('safetensors', [
      ...writers.flatMap((write) => [
        ...each('tensors', [...noObject, [1, 'undefined', undefined]], (value) =>
          callWith(write, value),
        ),
        ...each('metadata', noObject, (value) => callWith(write, { w: raw(2) }, value)),
        ...each('a tensor', noObject, (value) => callWith(write, { w: value })),
        ...each('a tensor of a Map', noObject, (value) => callWith(write, new Map([['w', value]]))),
      ]),
      ...each('path', noText, (value) => callWith(writeSafetensors, value, { w: raw(2) })),
      ...each('openSafetensors', noText, (value) => callWith(openSafetensors, value)),
      ...each('readSafetensors', noText, (value) => callWith(readSafetensors, value)),
      bad(3, 'readSafetensors: an ArrayBuffer', 'ERR_TYPE', () =>
        callWith(readSafetensors, bytes.slice().buffer),
      ),
      bad(4, 'readSafetensors: floats', 'ERR_TYPE', () =>
        callWith(readSafetensors, new Float32Array(4)),
      ),
      ...[openSafetensors, readSafetensors].flatMap((read) => [
        ...each('options', noObject, (value) => callWith(read, whole, value)),
        bad(3, 'maxHeaderBytes: a string', 'ERR_TYPE', () =>
          callWith(read, whole, { maxHeaderBytes: '9' }),
        ),
        bad(16, 'maxHeaderBytes: a half', 'ERR_VALUE', () => read(whole, { maxHeaderBytes: 0.5 })),
        bad(15, 'maxHeaderBytes: negative', 'ERR_VALUE', () => read(whole, { maxHeaderBytes: -1 })),
        bad(17, 'maxHeaderBytes: NaN', 'ERR_VALUE', () =>
          read(whole, { maxHeaderBytes: Number.NaN }),
        ),
      ]),
      bad(3, 'names: a string', 'ERR_TYPE', () => callWith(readSafetensors, bytes, { names: 'w' })),
      bad(3, 'names: a number', 'ERR_TYPE', () => callWith(readSafetensors, bytes, { names: 3 })),
      bad(3, 'names: a number inside', 'ERR_TYPE', () =>
        callWith(readSafetensors, bytes, { names: [3] }),
      ),
      ...each('read', noText, (value) => callWith(opened.read.bind(opened), value)),
    ]);
    expect(existsSync(file)).toBe(false);
  });

  it('rawToFloat32', async () => {
    await check('rawToFloat32', [
      ...each('tensor', [...noObject, [1, 'undefined', undefined]], (value) =>
        callWith(rawToFloat32, value),
      ),
      bad(3, 'empty', 'ERR_DTYPE', () => callWith(rawToFloat32, {})),
      bad(2, 'no shape', 'ERR_SHAPE', () =>
        callWith(rawToFloat32, { ...raw(2), shape: undefined }),
      ),
      bad(2, 'no data', 'ERR_DTYPE', () => callWith(rawToFloat32, { ...raw(2), data: undefined })),
      bad(11, 'one short', 'ERR_SHAPE', () =>
        rawToFloat32({ ...raw(2), data: new Float32Array(1) }),
      ),
      bad(12, 'bytes that are no f32', 'ERR_SHAPE', () =>
        rawToFloat32({ ...raw(2), data: new Uint8Array(7) }),
      ),
    ]);
  });

  it('bitsandbytes', async () => {
    const split = splitBitsandbytes(new Map([['bias', raw(2)]]));
    const { layers, rest } = split;
    await check('bitsandbytes', [
      ...each('splitBitsandbytes', [...noMap, [1, 'undefined', undefined]], (value) =>
        callWith(splitBitsandbytes, value),
      ),
      bad(3, 'what readSafetensors gives', 'ERR_TYPE', () =>
        callWith(splitBitsandbytes, readSafetensors(encodeSafetensors({ w: raw(2) }))),
      ),
      bad(3, 'a number as a name', 'ERR_TYPE', () =>
        callWith(splitBitsandbytes, new Map([[3, raw(2)]])),
      ),
      ...each('joinBitsandbytes', [...noMap, [1, 'undefined', undefined]], (value) =>
        callWith(joinBitsandbytes, value),
      ),
      ...each('layers', noMap, (value) => callWith(joinBitsandbytes, { layers: value, rest })),
      ...each('rest', noMap, (value) => callWith(joinBitsandbytes, { layers, rest: value })),
      ...each('a state', noObject, (value) =>
        callWith(joinBitsandbytes, { layers: new Map([['fc', value]]), rest }),
      ),
    ]);
  });

  it('folders', async () => {
    await check('folders', [
      ...each('openHfModel', noText, (value) => callWith(openHfModel, value)),
      ...each('limits', noObject, (value) => callWith(openHfModel, parent, value)),
      ...each('readPeftAdapter', noText, (value) => callWith(readPeftAdapter, value)),
      ...each('options', noObject, (value) => callWith(readPeftAdapter, parent, value)),
      bad(3, 'baseShape: an object', 'ERR_TYPE', () =>
        callWith(readPeftAdapter, parent, { baseShape: {} }),
      ),
    ]);
  });

  it('writePeftAdapter', async () => {
    const folder = join(parent, 'adapter');
    const config = { r: 2, loraAlpha: 4, targetModules: ['q'] };
    const module = { module: 'q', loraA: raw(2, 4), loraB: raw(3, 2) };
    const write = (wrong: object) =>
      callWith(writePeftAdapter, folder, { config, modules: [module], ...wrong });
    const configured = (name: string) => (value: unknown) =>
      write({ config: { ...config, [name]: value } });
    const inModule = (name: string) => (value: unknown) =>
      write({ modules: [{ ...module, [name]: value }] });
    const factors = LoraAdapter.init({
      inFeatures: 4,
      outFeatures: 3,
      r: 2,
      loraAlpha: 4,
      seed: 1,
    });
    const noNumber = [...noObject.filter(([, what]) => what !== 'a number')];
    const noList = noObject.filter(([, what]) => what !== 'an array');
    // Left out, these have PEFT's defaults.
    const given = ([, , value]: (typeof noObject)[number]) => value !== undefined && value !== null;
    const loop: unknown[] = [];
    loop.push(loop);
    const hole = ['q'];
    hole.length = 2;
    await check('writePeftAdapter', [
      ...each('folder', noText, (value) =>
        callWith(writePeftAdapter, value, { config, modules: [module] }),
      ),
      ...each('adapter', [...noMap, [1, 'undefined', undefined]], (value) =>
        callWith(writePeftAdapter, folder, value),
      ),
      bad(3, 'a LoraAdapter', 'ERR_TYPE', () => callWith(writePeftAdapter, folder, factors)),
      ...each('config', noMap, (value) => write({ config: value })),
      ...['r', 'loraAlpha', 'loraDropout'].flatMap((name) =>
        each(name, noNumber, configured(name)),
      ),
      ...['targetModules', 'excludeModules'].flatMap((name) =>
        each(
          name,
          noList.filter(([, what]) => what !== 'a string'),
          configured(name),
        ),
      ),
      ...['layersPattern', 'layersToTransform', 'modulesToSave'].flatMap((name) =>
        each(name, noList, configured(name)),
      ),
      ...['targetModules', 'excludeModules', 'layersPattern', 'modulesToSave'].flatMap((name) =>
        each(`in ${name}`, noText, (value) => configured(name)(['q', value])),
      ),
      ...each('in layersToTransform', noNumber, (value) =>
        configured('layersToTransform')([value]),
      ),
      bad(3, 'targetModules: itself', 'ERR_TYPE', () => configured('targetModules')(loop)),
      bad(3, 'targetModules: a hole', 'ERR_TYPE', () => configured('targetModules')(hole)),
      ...['bias', 'baseModelNameOrPath', 'revision', 'taskType'].flatMap((name) =>
        each(name, noText.filter(given), configured(name)),
      ),
      ...['useRslora', 'useDora', 'fanInFanOut', 'loraBias'].flatMap((name) =>
        each(name, noObject.filter(given), configured(name)),
      ),
      ...['alphaPattern', 'rankPattern'].flatMap((name) => each(name, noMap, configured(name))),
      ...['biases', 'savedParameters', 'extraFiles'].flatMap((name) => [
        ...each(name, noMap, (value) => write({ [name]: value })),
        ...each(`in ${name}`, noObject, (value) =>
          write({ [name]: new Map([['q', value]]), config: { ...config, bias: 'all' } }),
        ),
        bad(3, `a name in ${name}`, 'ERR_TYPE', () => write({ [name]: new Map([[3, raw(2)]]) })),
      ]),
      ...each('modules', noList, (value) => write({ modules: value })),
      ...each('a module', noObject, (value) => write({ modules: [value] })),
      ...each('its name', noText, inModule('module')),
      ...['loraA', 'loraB', 'magnitude', 'loraBias'].flatMap((name) =>
        each(name, noObject, inModule(name)),
      ),
      bad(3, 'loraA: a Tensor', 'ERR_TYPE', () => inModule('loraA')(factors.loraA)),
    ]);
    expect(() => callWith(writeSafetensors, folder, { w: factors.loraA })).toThrow(
      'writeSafetensors: tensor "w" must be as files hold it, like ' +
        "{ dtype: 'F32', shape, data: tensor.readSync() }, got a Tensor",
    );
    factors.dispose();
    expect(existsSync(folder)).toBe(false);
    write({});
    expect(readPeftAdapter(folder).modules).toHaveLength(1);
  });
});
