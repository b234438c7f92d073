/** The first example of docs/jax.md and the program in examples/jax, run as they stand against the built package. */

import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { expect, it } from 'vitest';

const root = resolve(import.meta.dirname, '..', '..');
const node = (...args: string[]): string =>
  execFileSync(process.execPath, args, { cwd: root, encoding: 'utf8' });
const lossesOf = (printed: string): number[] =>
  [...printed.matchAll(/loss (\S+)/g)].map(([, loss]) => Number(loss));

it('the first example of the page has a loss and gradients', () => {
  const page = readFileSync(join(root, 'docs', 'jax.md'), 'utf8');
  const example = /```js\n([\s\S]*?)```/.exec(page)?.[1] ?? '';
  expect(example.trimEnd().split('\n').length).toBeLessThan(15);
  const [line = ''] = /globalThis\.navigator [^`]*;/.exec(page) ?? [];
  const print = "console.log('loss', value.item(), 'shapes', grads.a.shape, grads.b.shape);";
  const printed = node(
    '--input-type=module',
    '-e',
    `${example}\n${print}`.replace('\n\n', `\n${line}\n`),
  );
  expect(lossesOf(printed)[0]).toBeGreaterThan(0.1);
  expect(printed).toContain('shapes [ 8, 192 ] [ 512, 8 ]');
});

it('examples/jax learns', () => {
  const losses = lossesOf(node('examples/jax/train.mjs', '31'));
  expect(losses.length).toBe(4);
  expect(losses[0]).toBeGreaterThan(3);
  expect(losses.at(-1)).toBeLessThan(1);
});
