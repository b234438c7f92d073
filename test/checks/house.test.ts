/** Folders stay small, nothing imports in a circle, and docs name what is there. */

import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { describe, expect, it } from 'vitest';
import { circles, crowded, importsOf, includesOf, isThere, linksOf, pathsNamed } from './house.js';

const root = resolve(import.meta.dirname, '..', '..');
const listed = ['ls-files', '--cached', '--others', '--exclude-standard'];
const files = execFileSync('git', listed, { cwd: root, encoding: 'utf8' })
  .split('\n')
  .filter((file) => file !== '' && existsSync(join(root, file)));
const read = (file: string): string => readFileSync(join(root, file), 'utf8');

/** Files directly in a folder. Tests are free: a folder of them has a file for every subject. */
const kMost = 25;

/** The rooms of a folder that is compiled as one file are headers of it, and may include each other. */
const kOneBody = ['native/cpu/kernels'];

/** What commands write, and git does not keep. */
const kWritten = ['bench/results'];

describe('folders', () => {
  it(`hold at most ${kMost} files`, () => {
    const checked = files.filter((file) => /^(lib|native|cuda|docs)\//.test(file));
    expect(checked.length).toBeGreaterThan(500);
    expect(crowded(checked, kMost)).toEqual([]);
  });

  it('would be found with more', () => {
    const many = (folder: string, count: number) =>
      Array.from({ length: count }, (_, i) => `${folder}/${i}.ts`);
    expect(crowded([...many('lib/ops', 26), ...many('lib/ops/lora', 25)], 25)).toEqual([
      'lib/ops: 26 files (limit 25)',
    ]);
  });
});

describe('imports', () => {
  const sources = files.filter((file) => /^lib\/.*\.ts$/.test(file));
  const imports = Object.fromEntries(sources.map((file) => [file, importsOf(file, read(file))]));

  it('are of files that are there', () => {
    const targets = Object.values(imports).flat();
    expect(targets.length).toBeGreaterThan(1000);
    expect(targets.filter((target) => !(target in imports))).toEqual([]);
  });

  it('have no circles, neither of files nor of folders', () => {
    expect(circles(imports)).toEqual([]);
  });

  it('reach lib/cli from nowhere else', () => {
    const upward = sources
      .filter((file) => !file.startsWith('lib/cli/'))
      .filter((file) => imports[file]?.some((target) => target.startsWith('lib/cli/')));
    expect(upward).toEqual([]);
  });

  it('would be found in a circle', () => {
    const text = "import type { A } from './b.js';\nexport {\n  c,\n} from '../d/c.js';\n";
    expect(importsOf('lib/a/a.ts', text)).toEqual(['lib/a/b.ts', 'lib/d/c.ts']);
    expect(importsOf('lib/a.ts', "const x = await import('./x.js');")).toEqual(['lib/x.ts']);
    expect(circles({ 'lib/a/a.ts': ['lib/a/b.ts'], 'lib/a/b.ts': ['lib/a/a.ts'] })).toEqual([
      'lib/a/a.ts -> lib/a/b.ts -> lib/a/a.ts',
    ]);
    const folders = {
      'lib/a/1.ts': ['lib/b/1.ts'],
      'lib/b/2.ts': ['lib/a/2.ts'],
      'lib/a/2.ts': [],
      'lib/b/1.ts': [],
    };
    expect(circles(folders)).toEqual(['lib/a -> lib/b -> lib/a']);
    const child = { 'lib/a/1.ts': ['lib/a/x/1.ts'], 'lib/a/x/2.ts': ['lib/a/1.ts'] };
    expect(circles(child)).toEqual(['lib/a -> lib/a/x -> lib/a']);
    const below = { 'lib/a/x/1.ts': ['lib/b/y/1.ts'], 'lib/b/z/1.ts': ['lib/a/w/1.ts'] };
    expect(circles(below)).toEqual(['lib/a -> lib/b -> lib/a']);
  });
});

describe('includes', () => {
  const sources = files.filter((file) => /^(native|cuda)\/.*\.(cpp|h|cu|cuh)$/.test(file));
  const includes = Object.fromEntries(sources.map((file) => [file, includesOf(read(file))]));

  it('are of files that are there', () => {
    const targets = Object.values(includes).flat();
    expect(targets.length).toBeGreaterThan(600);
    expect(targets.filter((target) => !(target in includes))).toEqual([]);
  });

  it('have no circles, neither of files nor of folders', () => {
    expect(circles(includes, kOneBody)).toEqual([]);
  });

  it('would be found in a circle', () => {
    const text =
      '#pragma once\n#include <vector>\n\n  # include "native/b/b.h"\n#include "napi.h"\n';
    expect(includesOf(text)).toEqual(['native/b/b.h']);
    const top = { 'native/a/a.h': ['cuda/k/k.h'], 'cuda/x/x.cuh': ['native/b/b.h'] };
    expect(circles(top)).toEqual(['native -> cuda -> native']);
    const rooms = { 'k/a/a.h': ['k/b/b.h'], 'k/b/b.h': ['k/a/b.h'], 'k/a/b.h': [] };
    expect(circles(rooms)).toEqual(['k/a -> k/b -> k/a']);
    expect(circles(rooms, ['k'])).toEqual([]);
    const outside = { ...rooms, 'k/a/b.h': ['l/l.h'], 'l/l.h': ['k/c/c.h'], 'k/c/c.h': [] };
    expect(circles(outside, ['k'])).toEqual(['k -> l -> k']);
    const file = { 'k/a/a.h': ['k/b/b.h'], 'k/b/b.h': ['k/a/a.h'] };
    expect(circles(file, ['k'])).toEqual(['k/a/a.h -> k/b/b.h -> k/a/a.h']);
  });
});

describe('docs', () => {
  const pages = files.filter((file) => /^(docs\/.*|[^/]*)\.md$/.test(file));

  it('name files that are there', () => {
    const named = pages.flatMap((page) => pathsNamed(read(page)).map((name) => ({ page, name })));
    expect(named.length).toBeGreaterThan(100);
    const gone = named
      .filter(({ name }) => !kWritten.some((folder) => name.startsWith(folder)))
      .filter(({ name }) => !isThere(name, files))
      .map(({ page, name }) => `${page}: ${name}`);
    expect(gone).toEqual([]);
  });

  it('link to files that are there', () => {
    const gone = pages.flatMap((page) =>
      linksOf(page, read(page))
        .filter((target) => !isThere(target, files))
        .map((target) => `${page}: ${target}`),
    );
    expect(gone).toEqual([]);
  });

  it('would be found to name one that is not', () => {
    const text =
      'in `lib/quant/format.ts`, `native/nowhere/`, and node test/none.mjs; see [it](no.md#x)';
    expect(pathsNamed(text).filter((name) => !isThere(name, files))).toEqual([
      'lib/quant/format.ts',
      'native/nowhere/',
      'test/none.mjs',
    ]);
    expect(linksOf('docs/a.md', text)).toEqual(['docs/no.md']);
    const known =
      '`lib/quant/*.ts`, `lib/core/{tensor,scope}.ts`, `lib/adapters/methods/<family>/lora.ts`';
    expect(pathsNamed(known).map((name) => isThere(name, files))).toEqual([true, true, true]);
  });
});
