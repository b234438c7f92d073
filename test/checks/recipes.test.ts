/** docs/architecture.md names files that are there, and its recipes count theirs. */

import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { describe, expect, it } from 'vitest';

const root = resolve(import.meta.dirname, '..', '..');
const text = readFileSync(join(root, 'docs', 'architecture.md'), 'utf8');
const listed = ['ls-files', '--cached', '--others', '--exclude-standard'];
const files = execFileSync('git', listed, { cwd: root, encoding: 'utf8' })
  .split('\n')
  .filter((file) => file !== '' && existsSync(join(root, file)));

/** Of Node-API's own packages. */
const kForeign = ['napi.h'];

/** What stands in backquotes and is a path or the name of a file. */
function pathsIn(markdown: string): string[] {
  const quoted = [...markdown.matchAll(/`([^`\s]+)`/g)].map(([, name = '']) => name);
  const path = /^[\w.*<>-]+(\/[\w.*<>-]+)*(\/|\.(ts|mjs|cpp|h|cu|cuh|json|md))$/;
  return quoted.filter((name) => path.test(name) && !kForeign.includes(name));
}

/** `*` and `<method>` stand for any name; a bare name for a file of any folder, `_x.cu` for the end of one. */
function isThere(name: string): boolean {
  const pattern = name.replace(/\./g, '\\.').replace(/\*|<\w+>/g, '[^/]*');
  const start = name.startsWith('_') ? '' : '(^|/)';
  const end = name.endsWith('/') ? '' : '$';
  const expression = new RegExp(`${start}${pattern}${end}`);
  return files.some((file) => expression.test(file));
}

describe('docs/architecture.md', () => {
  it('names files that are there', () => {
    const named = pathsIn(text);
    expect(named.length).toBeGreaterThan(40);
    expect(named.filter((name) => !isThere(name))).toEqual([]);
  });

  it('would be found to name one that is not', () => {
    const wrong = 'in `lib/quant/format.ts`, `plan_nothing*.cpp`, `lib/nowhere/` and `_sm99.cu`';
    expect(pathsIn(wrong).filter(isThere)).toEqual([]);
    expect(pathsIn(wrong)).toHaveLength(4);
  });

  it('counts the files of its recipes', () => {
    const recipes = text
      .slice(text.indexOf('## Recipes'), text.indexOf('## Tests'))
      .split(/^- /m)
      .filter((recipe) => /^\*\*[^*]*: \d+ files?\.\*\*/.test(recipe));
    expect(recipes).toHaveLength(2);
    for (const recipe of recipes) {
      const [needed = ''] = recipe.split('Beyond these');
      const [, title, count] = /^\*\*([^*]*): (\d+) files?\.\*\*/.exec(recipe) ?? [];
      expect(new Set(pathsIn(needed)).size, title).toBe(Number(count));
    }
  });
});
