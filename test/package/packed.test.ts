/** The packed package alone, without TensorFlow.js: it fine-tunes, and uses the result. */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';

const root = resolve(import.meta.dirname, '..', '..');
const folder = mkdtempSync(join(tmpdir(), 'lowrank-packed-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

beforeAll(() => {
  const modules = join(folder, 'node_modules');
  mkdirSync(modules);
  execFileSync('npm', ['pack', '--silent', '--ignore-scripts', '--pack-destination', folder], {
    cwd: root,
  });
  const [file = ''] = readdirSync(folder).filter((name) => name.endsWith('.tgz'));
  execFileSync('tar', ['-xzf', join(folder, file), '-C', modules]);
  execFileSync('mv', [join(modules, 'package'), join(modules, 'lowrank')]);
  // What npm would install beside it, but for the optional peers.
  for (const name of ['@huggingface/jinja', '@huggingface/tokenizers']) {
    mkdirSync(dirname(join(modules, name)), { recursive: true });
    symlinkSync(join(root, 'node_modules', name), join(modules, name));
  }
});

function lowrank(...args: string[]) {
  const command = join(folder, 'node_modules', 'lowrank', 'dist', 'cli', 'main.js');
  const addon = join(root, 'build', 'Release', 'lowrank.node');
  return spawnSync(process.execPath, [command, ...args], {
    cwd: folder,
    encoding: 'utf8',
    // No Python to compare with, so that the run is short.
    env: { ...process.env, LOWRANK_BINDING: addon, PYTHON: '/nonexistent' },
  });
}

it('fine-tunes the bundled model, and generates with the adapter', () => {
  const line = (i: number) => `Document ${i} says that ${i} times ${i} is ${i * i}.`;
  writeFileSync(join(folder, 'text'), Array.from({ length: 60 }, (_, i) => line(i)).join('\n\n'));
  const tuned = lowrank(
    ...['finetune', '--data', 'text', '--out', 'adapter', '--seq-len', '32'],
    ...['--steps', '4', '--sample-tokens', '4'],
  );
  expect(tuned.stderr).not.toMatch(/tensorflow/i);
  expect(tuned.status, tuned.stderr).toBe(0);
  expect(tuned.stdout).toContain('held-out loss after');
  expect(tuned.stdout).not.toContain('TensorFlow');
  const text = lowrank('generate', '--adapter', 'adapter', '--prompt', 'Headline', '--tokens', '4');
  expect(text.status, text.stderr).toBe(0);
  expect(text.stdout.startsWith('Headline')).toBe(true);
});

it('says what is missing where TensorFlow.js is wanted', () => {
  const code = "import { loraLinear } from 'lowrank/tfjs'; loraLinear(1, 2, 3, 4);";
  const run = spawnSync(process.execPath, ['--input-type=module', '-e', code], {
    cwd: folder,
    encoding: 'utf8',
  });
  expect(run.stderr).toContain('@tensorflow/tfjs must be installed');
});

it('says what is missing where jax-js is wanted', () => {
  const code = `
    import { chain } from 'lowrank/jax';
    class Fake { shape = [1]; dtype = 'float32'; refCount = 1; ref = this; dispose() {} }
    chain((x) => x).valueAndGrad([], new Fake()).catch((error) => console.log(error.code, error.message));`;
  const run = spawnSync(process.execPath, ['--input-type=module', '-e', code], {
    cwd: folder,
    encoding: 'utf8',
  });
  expect(run.stdout).toBe(
    'ERR_UNSUPPORTED Chain.valueAndGrad: the peer dependency @jax-js/jax must be installed (npm install @jax-js/jax), got no such package\n',
  );
});
