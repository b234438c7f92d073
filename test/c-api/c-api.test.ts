/** The C interface: programs in C with loops in double, and what the library shows of itself. */
import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { LoraAdapter, loraBackward, loraForward, quantize, Tensor } from '../../lib/index.js';
import { buildTargets, run } from '../emulator/build-folder.js';
import { TIME_SCALE } from '../reliability/program.js';
import {
  compile,
  cRuns,
  headers,
  library,
  libraryFolder,
  output,
  sanitized,
  temporaryFolder,
} from './library.js';

const here = import.meta.dirname;
const folder = temporaryFolder();
const source = (name: string) => path.join(here, `${name}.c`);
const timeout = 300_000 * TIME_SCALE;

describe.runIf(cRuns)('the C interface', () => {
  beforeAll(() => buildTargets('lowrank_c'), 1_200_000);

  describe('programs in C', () => {
    let suite = '';
    beforeAll(async () => {
      const parts = [
        'check',
        'linear',
        'quantized',
        'ops',
        'model',
        'grouped',
        'experts',
        'refusals',
        'hostile',
        'lifetime',
        'gpu',
      ];
      suite = await compile(path.join(folder, 'suite'), parts.map(source));
    }, timeout);

    it.each([
      ['linear', ''],
      ['linear', 'portable'],
      ['quantized', ''],
      ['quantized', 'portable'],
      ['ops', ''],
      ['model', ''],
      ['grouped', ''],
      ['grouped', 'portable'],
      ['experts', ''],
      ['experts', 'portable'],
      ['refusals', ''],
      ['hostile', ''],
      ['lifetime', ''],
    ])('%s %s', { timeout }, async (name, isa) => {
      expect(await output(suite, [name], { LOWRANK_ISA: isa })).toBe('all right\n');
    });

    it('gpu, where there is one', { timeout }, async () => {
      const printed = await output(suite, ['gpu']);
      if (printed.startsWith('not run')) console.warn(printed.split('\n')[0]);
      expect(printed).toMatch(/^(not run: .*\n)?all right\n$/);
    });

    // The device "cuda" and the program both take the emulated driver for the system's.
    it('gpu, on the emulated driver', { timeout }, async () => {
      const files = ['lowrank-emulator.so', 'lowrank.fatbin'].map((file) =>
        path.join(libraryFolder, file),
      );
      const missing = files.filter((file) => !fs.existsSync(file));
      if (missing.length > 0) return console.warn(`not run: there is no ${missing.join(', ')}`);
      const driver = temporaryFolder();
      fs.symlinkSync(files[0] as string, path.join(driver, 'libcuda.so.1'));
      expect(await output(suite, ['gpu'], { LD_LIBRARY_PATH: driver })).toBe('all right\n');
    });
  });

  it('gives the bits that JavaScript gets', { timeout }, async () => {
    const [M, N, K, r] = [9, 40, 192, 4] as const;
    let seed = 7;
    const random = (count: number) =>
      Float32Array.from({ length: count }, () => {
        seed = (Math.imul(seed, 1664525) + 1013904223) | 0;
        return seed / 2 ** 31;
      });
    const [x, w, a, b, dy] = [M * K, N * K, r * K, N * r, M * N].map(random) as Float32Array[];
    const given = path.join(folder, 'operands');
    const result = path.join(folder, 'results');
    fs.writeFileSync(
      given,
      Buffer.concat([x, w, a, b, dy].map((each) => Buffer.from((each as Float32Array).buffer))),
    );
    const program = await compile(path.join(folder, 'bits'), [source('bits')]);
    expect(await output(program, [given, result, ...[M, N, K, r].map(String)])).toBe('');
    const tensor = (data: Float32Array | undefined, rows: number, cols: number) =>
      Tensor.from(data as Float32Array, [rows, cols], { device: 'cpu' });
    const weight = quantize(tensor(w, N, K), { format: 'nf4' });
    const adapter = new LoraAdapter({
      loraA: tensor(a, r, K),
      loraB: tensor(b, N, r),
      loraAlpha: 2 * r,
      dropout: 0.125,
    });
    const { y, saved } = loraForward(tensor(x, M, K), weight, adapter, { seed: 42 });
    const h = await saved.h?.read();
    const back = loraBackward(tensor(dy, M, N), saved);
    const parts = [y, back.dx, back.dLoraA, back.dLoraB];
    const [ys, dx, dA, dB] = await Promise.all(parts.map((each) => (each as Tensor).read()));
    const state = await weight.toBitsandbytes();
    const stored = ['weight', 'weight.absmax'].map((name) => state[name]?.data);
    const expected = [ys, h, dx, dA, dB, ...stored].map((each) => {
      const view = each as Uint8Array;
      return Buffer.from(view.buffer, view.byteOffset, view.byteLength);
    });
    expect(fs.readFileSync(result).equals(Buffer.concat(expected))).toBe(true);
  });

  it('exports what the headers declare, and nothing else', async () => {
    const declared = [...headers().matchAll(/LOWRANK_API[^;(]*?\b(lowrank_\w+)\s*\(/g)];
    const { stdout } = await run('nm', ['-D', '--defined-only', library]);
    const exported = [...stdout.matchAll(/ [A-Za-z] (\S+)$/gm)].map(([, name]) => name as string);
    expect(exported.filter((name) => name !== 'LOWRANK_1').sort()).toEqual(
      declared.map(([, name]) => `${name}@@LOWRANK_1`).sort(),
    );
  });

  it('names itself, and needs no C++ library', async () => {
    if (sanitized) return console.warn('not run: a sanitizer brings libraries of its own');
    const { stdout } = await run('readelf', ['-d', library]);
    expect(stdout).toMatch(/SONAME.*\[liblowrank\.so\.1\]/);
    const needed = [...stdout.matchAll(/NEEDED.*\[(.*)\]/g)].map(([, name]) => name);
    expect(
      needed.filter((name) => !/^(libc|libm|libdl|libpthread|ld-linux.*)\.so/.test(name ?? '')),
    ).toEqual([]);
  });

  it('has structs of the committed sizes and offsets', { timeout }, async () => {
    const structs = [...headers().matchAll(/typedef struct (\w+ )?\{([^}]*)\} (\w+);/g)];
    const lines = structs.flatMap(([, , body, name]) => [
      `printf("${name} %zu\\n", sizeof(${name}));`,
      ...(body as string).split(';').flatMap((declaration) => {
        const names = declaration.replace(/\(\*(\w+)\)\([^)]*\)/, '$1').split(',');
        return names.flatMap((each) => {
          const field = /(\w+)(?:\[\w+\])?\s*$/.exec(each.trim())?.[1];
          return field === undefined
            ? []
            : [`printf("  ${field} %zu\\n", offsetof(${name}, ${field}));`];
        });
      }),
    ]);
    const constants = [...headers().matchAll(/\b(LOWRANK_[A-Z_0-9]+) = \d+/g)].map(
      ([, name]) => `printf("${name} %d\\n", (int)${name});`,
    );
    const program = path.join(folder, 'abi.c');
    const body = [...lines, ...constants].join('\n');
    fs.writeFileSync(
      program,
      `#include <lowrank.h>\n#include <stdio.h>\nint main(void) {\n${body}\nreturn 0;\n}\n`,
    );
    const { stdout } = await run(await compile(path.join(folder, 'abi'), [program]), []);
    await expect(stdout).toMatchFileSnapshot(path.join(here, 'abi.txt'));
  });
});
