/** Writers that are killed at each of their calls: the next run finishes the work, and leaves nothing else. */

import fs from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { lockOutput } from '../../lib/checkpoint/files/lock.js';
import { kMarkPattern, mayRun, processMark } from '../../lib/checkpoint/files/process-mark.js';
import { writePeftAdapter } from '../../lib/checkpoint/peft/peft.js';
import { readSafetensors, writeSafetensors } from '../../lib/checkpoint/safetensors.js';
import { quantizeCommand } from '../../lib/cli/quantize/quantize.js';
import { LowrankError } from '../../lib/core/errors.js';
import { temporaryFolder } from '../finetune/setup.js';
import { killedAt } from './killed-process.js';
import { codeOf } from './raw-file.js';

const folder = temporaryFolder();
const inFolder = (name: string) => path.join(folder, name);
const contents = (at: string) =>
  fs.readdirSync(at).map((name) => [name, fs.readFileSync(path.join(at, name), 'base64')]);

/** Every call of a process at which it can be killed, and a fresh place for each. */
async function atEachCall(
  name: string,
  run: (place: string) => unknown,
  prepare: (place: string) => void,
  check: (place: string, at: number) => void,
): Promise<number> {
  for (let at = 1; ; at++) {
    const place = inFolder(`${name}-${at}`);
    fs.mkdirSync(place);
    prepare(place);
    const killed = await killedAt(at, () => run(place));
    if (killed) expect(await killedAt(Number.POSITIVE_INFINITY, () => run(place))).toBe(false);
    check(place, at);
    fs.rmSync(place, { recursive: true });
    if (!killed) return at - 1;
  }
}

/** A layer in each of two files. */
function writeTwoShards(model: string): void {
  fs.mkdirSync(model);
  const data = Float32Array.from({ length: 64 }, (_, i) => Math.sin(i));
  const weight_map: Record<string, string> = {};
  for (const name of ['a', 'b']) {
    const key = `${name}.q_proj.weight`;
    writeSafetensors(path.join(model, `${name}.safetensors`), {
      [key]: { dtype: 'F32', shape: [2, 32], data },
    });
    weight_map[key] = `${name}.safetensors`;
  }
  const index = path.join(model, 'model.safetensors.index.json');
  fs.writeFileSync(index, JSON.stringify({ weight_map }));
  fs.writeFileSync(path.join(model, 'config.json'), '{"model_type":"llama"}');
  fs.writeFileSync(path.join(model, 'tokenizer.json'), '{}');
}

// The mark of a process that is told apart by its start needs Linux.
if (process.platform !== 'linux')
  console.warn('skipped: the start of a process is read from /proc');
describe.skipIf(process.platform !== 'linux')('killed at each call', () => {
  const output = [process.stdout, process.stderr].map((stream) => vi.spyOn(stream, 'write'));
  beforeAll(() => {
    for (const spy of output) spy.mockReturnValue(true);
    writeTwoShards(inFolder('model'));
  });
  afterAll(() => {
    for (const spy of output) spy.mockRestore();
  });

  it('quantize of a folder: the same command goes on to the same bytes', async () => {
    fs.mkdirSync(inFolder('whole'));
    await quantizeCommand([inFolder('model'), inFolder('whole/out')]);
    const whole = contents(inFolder('whole/out'));
    const quantize = async (place: string) => {
      const out = path.join(place, 'out');
      try {
        await quantizeCommand([inFolder('model'), out, '--json']);
      } catch (error) {
        // Killed at the last call but one: the folder is complete already, and not overwritten.
        if (!(error instanceof LowrankError) || error.code !== 'ERR_PATH') throw error;
        expect(contents(out)).toEqual(whole);
      }
    };
    expect(whole.map(([name]) => name)).toContain('model.safetensors.index.json');
    const calls = await atEachCall(
      'quantize',
      quantize,
      () => {},
      (place, at) => {
        expect(fs.readdirSync(place), `killed at ${at}`).toEqual(['out']);
        expect(contents(path.join(place, 'out'))).toEqual(whole);
      },
    );
    expect(calls).toBeGreaterThan(30);
  });

  const tensor = (value: number, shape: number[]) => {
    const length = shape.reduce((product, dim) => product * dim, 1);
    return { dtype: 'F32' as const, shape, data: new Float32Array(length).fill(value) };
  };
  const adapter = (value: number) => ({
    config: { r: 2, loraAlpha: 4, targetModules: ['q'] },
    modules: [{ module: 'q', loraA: tensor(value, [2, 3]), loraB: tensor(value, [3, 2]) }],
  });

  it.each([
    ['a new', false],
    ['an older', true],
  ])('%s adapter folder: the new adapter, and what else was in the folder', async (_, older) => {
    const target = (place: string) => path.join(place, 'adapter');
    writePeftAdapter(inFolder('wanted'), adapter(2));
    const wanted = contents(inFolder('wanted'));
    const calls = await atEachCall(
      `adapter-${older}`,
      (place) => writePeftAdapter(target(place), adapter(2)),
      (place) => {
        if (!older) return;
        writePeftAdapter(target(place), adapter(1));
        fs.writeFileSync(path.join(target(place), 'README.md'), 'kept');
      },
      (place, at) => {
        expect(fs.readdirSync(place), `killed at ${at}`).toEqual(['adapter']);
        const kept = older ? [['README.md', Buffer.from('kept').toString('base64')]] : [];
        expect(contents(target(place)), `killed at ${at}`).toEqual([...kept, ...wanted]);
      },
    );
    expect(calls).toBeGreaterThan(older ? 12 : 8);
    fs.rmSync(inFolder('wanted'), { recursive: true });
  });

  it('a lock', async () => {
    await atEachCall(
      'lock',
      (place) => lockOutput('test', path.join(place, 'out')).release(),
      () => {},
      (place, at) => expect(fs.readdirSync(place), `killed at ${at}`).toEqual([]),
    );
  });
});

describe('what is left beside a name', () => {
  const file = () => {
    const place = fs.mkdtempSync(inFolder('left-'));
    return { place, target: path.join(place, 'x.safetensors') };
  };
  const [machine = '', pid = '', start = ''] = processMark().split('-');
  /** No process has the highest number that Linux gives. */
  const dead = `${machine}-4194304-1`;
  const random = '0123456789ab';

  it('goes with the next write where its process has ended, and stays where it may run', () => {
    const { place, target } = file();
    const kept = [
      `.x.safetensors.${processMark()}-${random}`,
      // Of another machine, and what only looks alike.
      `.x.safetensors.ffffffff-4194304-1-${random}`,
      `.x.safetensors.${dead}-${random}.backup`,
      `.x.safetensors.4194304-${random}`,
      `.xx.safetensors.${dead}-${random}`,
      `x.safetensors.${dead}-${random}`,
    ];
    const gone = [`.x.safetensors.${dead}-${random}`];
    if (process.platform === 'linux') {
      gone.push(`.x.safetensors.${machine}-${pid}-${Number(start) + 1}-${random}`);
    }
    for (const name of [...kept, ...gone]) fs.writeFileSync(path.join(place, name), '');
    const data = Float32Array.of(1);
    writeSafetensors(target, { a: { dtype: 'F32', shape: [1], data } });
    expect(fs.readdirSync(place).sort()).toEqual([...kept, 'x.safetensors'].sort());
    expect(readSafetensors(target).tensors.size).toBe(1);
  });

  it('marks this process, and says that it runs', () => {
    expect(processMark()).toMatch(new RegExp(`^${kMarkPattern}$`));
    expect(mayRun(processMark())).toBe(true);
    expect(mayRun(dead)).toBe(false);
    expect(mayRun('ffffffff-4194304-1')).toBe(true);
  });

  it('a lock is held once, and taken over from a process that has ended', () => {
    const { place, target } = file();
    const lock = lockOutput('test', target);
    expect(codeOf(() => lockOutput('test', target))).toBe('ERR_PATH');
    expect(() => lockOutput('test', target)).toThrow(
      new RegExp(
        `^test: ".*x\\.safetensors" must be written by one run at a time, got process ${pid} on ".*" since "20.*Z" writing to it\\. .*remove ".*x\\.safetensors\\.lock"$`,
      ),
    );
    lock.release();
    expect(fs.readdirSync(place)).toEqual([]);
    const stale = JSON.stringify({ mark: dead, pid: 4194304, host: 'a', since: 'b' });
    fs.writeFileSync(`${target}.lock`, stale);
    const taken = lockOutput('test', target);
    expect(fs.readFileSync(`${target}.lock`, 'utf8')).toContain(processMark());
    taken.release();
    expect(fs.readdirSync(place)).toEqual([]);
  });

  it('a lock of another machine, or one just being written, is not touched', () => {
    const { place, target } = file();
    const foreign = JSON.stringify({ mark: 'ffffffff-1-1', pid: 1, host: '\u001b[2J', since: '' });
    for (const text of [foreign, '{"mark":']) {
      fs.writeFileSync(`${target}.lock`, text);
      expect(codeOf(() => lockOutput('test', target))).toBe('ERR_PATH');
      expect(fs.readFileSync(`${target}.lock`, 'utf8')).toBe(text);
    }
    // Half written, and long ago.
    fs.utimesSync(`${target}.lock`, 1, 1);
    lockOutput('test', target).release();
    expect(fs.readdirSync(place)).toEqual([]);
  });

  it('of two that take over a stale lock, the later one sees the other', () => {
    const { place, target } = file();
    const stale = JSON.stringify({ mark: dead, pid: 4194304, host: 'a', since: 'b' });
    const other = JSON.stringify({ mark: processMark(), pid: 77, host: 'c', since: 'd' });
    fs.writeFileSync(`${target}.lock`, stale);
    const mkdir = fs.mkdirSync;
    // The other one was quicker by all of it.
    const spy = vi.spyOn(fs, 'mkdirSync').mockImplementation(((...args: [string]) => {
      fs.writeFileSync(`${target}.lock`, other);
      return mkdir(...args);
    }) as never);
    try {
      expect(() => lockOutput('test', target)).toThrow(/got process 77 on "c" since "d"/);
    } finally {
      spy.mockRestore();
    }
    expect(fs.readFileSync(`${target}.lock`, 'utf8')).toBe(other);
    expect(fs.readdirSync(place)).toEqual(['x.safetensors.lock']);
  });
});
