import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { requireDistinctNames, resolveInside } from '../../lib/checkpoint/files/paths.js';
import {
  encodeSafetensors,
  openSafetensors,
  readSafetensors,
} from '../../lib/checkpoint/safetensors.js';
import { printable } from '../../lib/core/printable.js';
import { codeOf, tempFolder } from './raw-file.js';

const kFile = encodeSafetensors({
  a: { dtype: 'U8', shape: [1], data: new Uint8Array([7]) },
});

/** A model folder with one shard, inside a folder that also holds a secret. */
function layout(): { outer: string; model: string } {
  const outer = tempFolder();
  const model = path.join(outer, 'model');
  fs.mkdirSync(path.join(model, 'sub'), { recursive: true });
  fs.mkdirSync(path.join(outer, 'model-evil'));
  for (const file of ['model/s.safetensors', 'model/sub/t.safetensors', 'secret.safetensors']) {
    fs.writeFileSync(path.join(outer, file), kFile);
  }
  fs.writeFileSync(path.join(outer, 'model-evil', 'x.safetensors'), kFile);
  return { outer, model };
}

describe('names from a file', () => {
  it.each([
    ['parent', '../secret.safetensors'],
    ['parent in the middle', 'sub/../../secret.safetensors'],
    ['parent that stays inside', 'sub/../s.safetensors'],
    ['parent at the end', 'sub/..'],
    ['current folder', './s.safetensors'],
    ['absolute', '/etc/passwd'],
    ['double slash', '//server/share'],
    ['empty segment', 'sub//t.safetensors'],
    ['empty', ''],
    ['NUL', 's.safetensors\0.png'],
    ['control character', 's\u001b[2J.safetensors'],
    ['backslash', 'sub\\t.safetensors'],
    ['backslash traversal', '..\\secret.safetensors'],
    ['drive letter', 'C:secret.safetensors'],
    ['stream', 's.safetensors:evil'],
    ['URL', 'file:///etc/passwd'],
    ['Windows device', 'NUL'],
    ['Windows device with an ending', 'sub/com1.safetensors'],
    ['trailing dot', 's.safetensors.'],
    ['trailing space', 's.safetensors '],
    ['trailing slash', 'sub/'],
    ['too long', 'n'.repeat(600)],
  ])('refuses by its text: %s', (_, name) => {
    const { model } = layout();
    expect(codeOf(() => resolveInside('test', model, name))).toBe('ERR_PATH');
  });

  it('accepts plain names, also in subfolders', () => {
    const { model } = layout();
    const real = fs.realpathSync(model);
    expect(resolveInside('test', model, 's.safetensors')).toBe(path.join(real, 's.safetensors'));
    expect(resolveInside('test', model, 'sub/t.safetensors')).toBe(
      path.join(real, 'sub', 't.safetensors'),
    );
    expect(codeOf(() => resolveInside('test', model, 'none'))).toBe('ERR_FILE_NOT_FOUND');
    expect(codeOf(() => resolveInside('test', model, 's.safetensors/x'))).toBe(
      'ERR_FILE_NOT_FOUND',
    );
  });

  it('refuses symbolic links that lead outside', () => {
    const { outer, model } = layout();
    fs.symlinkSync('../secret.safetensors', path.join(model, 'final.safetensors'));
    fs.symlinkSync('..', path.join(model, 'parent'));
    fs.symlinkSync('final.safetensors', path.join(model, 'chain.safetensors'));
    // A folder whose name begins like the model's is outside as well.
    fs.symlinkSync('../model-evil/x.safetensors', path.join(model, 'sibling.safetensors'));
    for (const name of [
      'final.safetensors',
      'parent/secret.safetensors',
      'chain.safetensors',
      'sibling.safetensors',
    ]) {
      expect([name, codeOf(() => resolveInside('test', model, name))]).toEqual([name, 'ERR_PATH']);
    }
    expect(fs.existsSync(path.join(outer, 'secret.safetensors'))).toBe(true);
  });

  it('accepts links that stay inside, and a model folder that is itself a link', () => {
    const { outer, model } = layout();
    fs.symlinkSync('sub/t.safetensors', path.join(model, 'inner.safetensors'));
    fs.symlinkSync('model', path.join(outer, 'alias'));
    const real = path.join(fs.realpathSync(model), 'sub', 't.safetensors');
    expect(resolveInside('test', model, 'inner.safetensors')).toBe(real);
    expect(resolveInside('test', path.join(outer, 'alias'), 'inner.safetensors')).toBe(real);
  });

  it('refuses loops and dangling links', () => {
    const { model } = layout();
    fs.symlinkSync('b.safetensors', path.join(model, 'a.safetensors'));
    fs.symlinkSync('a.safetensors', path.join(model, 'b.safetensors'));
    fs.symlinkSync('self', path.join(model, 'self'));
    fs.symlinkSync('nothing', path.join(model, 'dangling'));
    expect(codeOf(() => resolveInside('test', model, 'a.safetensors'))).toBe('ERR_PATH');
    expect(codeOf(() => resolveInside('test', model, 'self'))).toBe('ERR_PATH');
    expect(codeOf(() => resolveInside('test', model, 'dangling'))).toBe('ERR_FILE_NOT_FOUND');
  });

  it('follows links of a hub cache into its blobs, and nowhere else', () => {
    const outer = tempFolder();
    const repo = path.join(outer, 'models--a--b');
    const snapshot = path.join(repo, 'snapshots', '0123abc');
    const other = path.join(outer, 'models--c--d', 'blobs');
    for (const folder of [snapshot, path.join(repo, 'blobs'), path.join(repo, 'refs'), other]) {
      fs.mkdirSync(folder, { recursive: true });
      fs.writeFileSync(path.join(folder, 'file'), kFile);
    }
    fs.symlinkSync('../../blobs/file', path.join(snapshot, 'good.safetensors'));
    fs.symlinkSync('../../refs/file', path.join(snapshot, 'refs.safetensors'));
    fs.symlinkSync('../../../models--c--d/blobs/file', path.join(snapshot, 'other.safetensors'));
    expect(resolveInside('test', snapshot, 'good.safetensors')).toBe(
      path.join(fs.realpathSync(repo), 'blobs', 'file'),
    );
    expect(codeOf(() => resolveInside('test', snapshot, 'refs.safetensors'))).toBe('ERR_PATH');
    expect(codeOf(() => resolveInside('test', snapshot, 'other.safetensors'))).toBe('ERR_PATH');
    // The same links in a folder that is no snapshot are refused.
    const copy = path.join(repo, 'copies', '0123abc');
    fs.mkdirSync(copy, { recursive: true });
    fs.symlinkSync('../../blobs/file', path.join(copy, 'good.safetensors'));
    expect(codeOf(() => resolveInside('test', copy, 'good.safetensors'))).toBe('ERR_PATH');
  });

  it('refuses names that differ by case or Unicode form alone', () => {
    expect(codeOf(() => requireDistinctNames('t', ['a.st', 'A.st']))).toBe('ERR_PATH');
    expect(codeOf(() => requireDistinctNames('t', ['\u00e9', 'e\u0301']))).toBe('ERR_PATH');
    expect(codeOf(() => requireDistinctNames('t', ['a.st', 'b.st', 'a.st']))).toBe('no error');
  });
});

describe('what is not a regular file', () => {
  it('refuses folders, devices and FIFOs without blocking', () => {
    const folder = tempFolder();
    const fifo = path.join(folder, 'fifo.safetensors');
    execFileSync('mkfifo', [fifo]);
    const start = performance.now();
    for (const file of [folder, '/dev/null', '/dev/zero', fifo]) {
      expect([file, codeOf(() => readSafetensors(file))]).toEqual([file, 'ERR_PATH']);
      expect([file, codeOf(() => openSafetensors(file))]).toEqual([file, 'ERR_PATH']);
    }
    expect(performance.now() - start).toBeLessThan(1000);
  });

  it('follows a link that the user names, not one that appears behind a resolved name', () => {
    const { model } = layout();
    const link = path.join(model, 'link.safetensors');
    fs.symlinkSync('s.safetensors', link);
    expect(readSafetensors(link).tensors.size).toBe(1);
    expect(codeOf(() => openSafetensors(link, { noFollow: true }))).toBe('ERR_PATH');
  });

  it('refuses impossible paths', () => {
    for (const file of ['a\0b', 'n'.repeat(5000)]) {
      expect(codeOf(() => readSafetensors(file))).toBe('ERR_PATH');
    }
    expect(codeOf(() => readSafetensors('/dev/null/x'))).toBe('ERR_FILE_NOT_FOUND');
    expect(codeOf(() => readSafetensors('/nowhere'))).toBe('ERR_FILE_NOT_FOUND');
  });
});

describe('printable', () => {
  it('escapes whatever could move a cursor, and cuts', () => {
    expect(printable('a"\\b')).toBe('"a\\"\\\\b"');
    expect(printable('\u001b[31m\u009b\u202e\u2066\ufeff\n')).toBe(
      '"\\u001b[31m\\u009b\\u202e\\u2066\\ufeff\\u000a"',
    );
    expect(printable('x'.repeat(1e6)).length).toBeLessThan(130);
  });
});
