/** The built package as users meet it: ES module, CommonJS, command, and a missing addon. */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { describe, expect, it } from 'vitest';
import { binding } from '../../lib/core/binding.js';
import { FORMATS } from '../../lib/index.js';

const root = resolve(import.meta.dirname, '..', '..');

function node(args: string[], env: Record<string, string> = {}) {
  const run = spawnSync(process.execPath, args, {
    cwd: root,
    encoding: 'utf8',
    env: { ...process.env, ...env },
  });
  return { status: run.status, out: run.stdout, err: run.stderr };
}

const USE = 'console.log(devices().map((d) => d.device).join())';
const DEVICES = /^cpu,reference,cuda(,cuda:\d+)*,cuda-emulated\n$/;

describe('entry points', () => {
  it('loads as an ES module', () => {
    const run = node(['--input-type=module', '-e', `import { devices } from 'lowrank'; ${USE}`]);
    expect(run).toMatchObject({ status: 0, err: '' });
    expect(run.out).toMatch(DEVICES);
  });

  it('loads as CommonJS', () => {
    const run = node([
      '--input-type=commonjs',
      '-e',
      `const { devices } = require('lowrank'); ${USE}`,
    ]);
    expect(run).toMatchObject({ status: 0, err: '' });
    expect(run.out).toMatch(DEVICES);
  });

  it.each(['module', 'commonjs'])('joins jax-js in a program that is %s', (type) => {
    const load = (name: string) =>
      type === 'module' ? `await import('${name}')` : `require('${name}')`;
    const code = `
      globalThis.navigator ??= { userAgent: 'node' };
      const { numpy: np } = ${load('@jax-js/jax')};
      const { Tensor } = ${load('lowrank')};
      const { chain, loraLinear } = ${load('lowrank/jax')};
      const w = Tensor.from(new Float32Array([1, 2, 3, 4]), [2, 2]);
      const layer = loraLinear({ w, loraA: 'a', loraB: 'b', loraAlpha: 1 });
      chain(layer, (y) => np.sum(y))
        .valueAndGrad({ a: np.ones([1, 2]), b: np.zeros([2, 1]) }, np.ones([1, 2]))
        .then(({ value, grads }) => console.log(value.item(), grads.a.js(), grads.b.js()));`;
    expect(node([`--input-type=${type}`, '-e', code])).toMatchObject({
      out: '10 [ [ 0, 0 ] ] [ [ 2 ], [ 2 ] ]\n',
      err: '',
      status: 0,
    });
  });

  it.each(['module', 'commonjs'])(
    'has parts that share their classes in a program that is %s',
    (type) => {
      const load = (name: string) =>
        type === 'module' ? `await import('${name}')` : `require('${name}')`;
      const code = `
      const all = ${load('lowrank')};
      const adapters = ${load('lowrank/adapters')};
      const checkpoint = ${load('lowrank/checkpoint')};
      const own = (part) => Object.keys(part).filter((name) => part[name] !== all[name]).sort();
      console.log(own(adapters).join() === Object.keys(all.adapters).sort().join());
      console.log(adapters.dora === all.adapters.dora, own(checkpoint).length);
      try { checkpoint.encodeSafetensors({ w: 1 }); } catch (e) { console.log(e instanceof all.LowrankTypeError); }`;
      expect(node([`--input-type=${type}`, '-e', code])).toMatchObject({
        out: 'true\ntrue 0\ntrue\n',
        err: '',
        status: 0,
      });
    },
  );

  it('errors are the same class through both ways', () => {
    const code = `
      const { Tensor, LowrankError } = require('lowrank');
      try { Tensor.zeros([-1]); } catch (e) { console.log(e instanceof LowrankError, e.code); }`;
    expect(node(['--input-type=commonjs', '-e', code]).out).toBe('true ERR_SHAPE\n');
  });

  it('say of each other’s objects that they are of another copy', () => {
    const code = `
      import { createRequire } from 'node:module';
      import { LoraAdapter, matmul, quantize, Tape, Tensor } from 'lowrank';
      const cjs = createRequire(import.meta.url)('lowrank');
      const w = Tensor.zeros([32, 64]);
      const own = cjs.Tensor.zeros([1, 64]);
      const wq = quantize(w, { format: 'nf4' });
      const lora = LoraAdapter.init({ inFeatures: 64, outFeatures: 32, r: 2, loraAlpha: 4, seed: 1 });
      for (const call of [
        () => cjs.matmul(Tensor.zeros([1, 64]), w),
        () => cjs.matmul(own, wq),
        () => cjs.loraForward(own, cjs.Tensor.zeros([32, 64]), lora),
        () => new cjs.Tape().affine(new Tape().own(w), 2),
        () => matmul(Object.create(Tensor.prototype), w),
      ]) {
        try { call(); } catch (e) { console.log(e.code, e.message); }
      }`;
    const run = node(['--input-type=module', '-e', code]);
    const how =
      'of another copy of lowrank (load lowrank either by import or by require, and from one install)';
    expect(run.out.split('\n')).toEqual([
      `ERR_TYPE matmul: x must be a Tensor, got a Tensor ${how}`,
      `ERR_TYPE matmul: w must be a Tensor or a QuantizedWeight, got a QuantizedWeight ${how}`,
      expect.stringMatching(
        /^ERR_TYPE loraForward: adapter must be .*got a LoraAdapter of another copy/,
      ),
      expect.stringMatching(/^ERR_TYPE Tape.affine: a must be .*got a Value of another copy/),
      'ERR_TYPE matmul: x must be a Tensor, got an object',
      '',
    ]);
  });

  it('every export of the map exists, and nothing runs at install time', () => {
    const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
    const targets = JSON.stringify(manifest.exports).match(/\.\/dist\/[^"]+/g) ?? [];
    expect(targets.length).toBeGreaterThanOrEqual(8);
    expect(targets.filter((target: string) => !existsSync(join(root, target)))).toEqual([]);
    expect(
      Object.keys(manifest.scripts).filter((name) => /^(pre|post)?install$/.test(name)),
    ).toEqual([]);
    expect(manifest.gypfile).toBe(false);
    expect(existsSync(join(root, 'binding.gyp'))).toBe(false);
  });

  it('a missing addon lists every attempt and the way out', () => {
    const code = `import { devices } from 'lowrank';
      try { devices(); } catch (e) { console.log(e.code); console.log(e.message); }`;
    const run = node(['--input-type=module', '-e', code], { LOWRANK_BINDING: '/nowhere/x.node' });
    expect(run.out).toContain('ERR_NO_BINDING');
    expect(run.out).toContain('/nowhere/x.node: no such file');
    expect(run.out).toContain('LOWRANK_BINDING');
  });

  it('the two tables of formats agree', () => {
    const rows = binding()
      .formats()
      .map(({ codebook, ...row }) => row);
    // What only JavaScript needs to know of a format has no place in the native table.
    expect(rows).toEqual(FORMATS.map(({ bitsandbytes: _, ...row }) => row));
  });

  it.each([
    ['portable', 0],
    ['sse9', 1],
  ])('LOWRANK_ISA=%s is taken or refused in words', (isa, refused) => {
    const code = `import { devices, Tensor } from 'lowrank';
      const cpu = devices().find((d) => d.device === 'cpu');
      console.log(cpu.available, cpu.isa, cpu.reason ?? '');
      try { Tensor.zeros([1], { device: 'cpu' }); console.log('made'); } catch (e) { console.log(e.code); }`;
    const { out } = node(['--input-type=module', '-e', code], { LOWRANK_ISA: isa });
    expect(out).toContain(refused ? 'ERR_DEVICE' : 'true portable');
    if (refused) expect(out).toMatch(/false .*portable/);
  });

  const x64 = process.arch === 'x64';
  if (!x64) console.warn('not run: why faster instruction sets of x86-64 are not used');
  it.runIf(x64)('says why faster instruction sets are not used', () => {
    const code = `import { devices } from 'lowrank';
      const cpu = devices().find((d) => d.device === 'cpu');
      console.log(JSON.stringify({ isa: cpu.isa, better: cpu.betterIsas ?? [] }));`;
    const facts = (env: Record<string, string>): { isa: string; better: string[] } =>
      JSON.parse(node(['--input-type=module', '-e', code], env).out);
    const here = facts({ LOWRANK_ISA: '' });
    for (const line of here.better) expect(line).toMatch(/^avx\S+: the (processor|kernel) /);
    const forced = facts({ LOWRANK_ISA: 'portable' });
    const sets: { arch: string }[] = JSON.parse(
      readFileSync(join(root, 'native', 'sources.json'), 'utf8'),
    ).isa;
    expect(forced.better).toHaveLength(sets.filter(({ arch }) => arch === 'x64').length);
    for (const line of forced.better) expect(line).toMatch(/: LOWRANK_ISA asks for portable$/);

    // A kernel that grants no tiles: of a processor that has them it is named.
    const folder = mkdtempSync(join(tmpdir(), 'lowrank-tiles-'));
    try {
      const library = join(folder, 'no_tiles.so');
      const source = join(import.meta.dirname, 'no_tiles.c');
      execFileSync('gcc', ['-O1', '-shared', '-fPIC', source, '-o', library]);
      const preload = [process.env.LD_PRELOAD, library].filter(Boolean).join(' ');
      const refused = facts({ LOWRANK_ISA: '', LD_PRELOAD: preload });
      if (here.isa !== 'avx512-amx') {
        expect(refused).toEqual(here);
      } else {
        expect(refused.isa).toBe('avx512-bf16');
        expect(refused.better).toHaveLength(1);
        expect(refused.better[0]).toMatch(
          /^avx512-amx: the kernel grants no tiles .*not permitted/,
        );
      }
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });

  it('traces one line an op on demand, and nothing otherwise', () => {
    const code = `import { matmul, Tensor } from 'lowrank';
      matmul(Tensor.zeros([2, 3]), Tensor.zeros([4, 3])).readSync();`;
    const traced = node(['--input-type=module', '-e', code], { LOWRANK_TRACE: '1' }).err;
    expect(traced).toMatch(
      /^lowrank \S+ matmul x \[2, 3\] f32 w \[4, 3\] f32 bias none [\d.]+ us\n$/,
    );
    expect(node(['--input-type=module', '-e', code]).err).toBe('');
  });
});
