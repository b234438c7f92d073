/** The parameter file of `lowrank emulate --kernel`: what is read of it, without a kernel. */

import fs from 'node:fs';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { prepareKernelRun } from '../../lib/cli/emulate/emulate-kernel.js';
import { parseParams } from '../../lib/cli/emulate/emulate-params.js';
import { temporaryFolder } from '../finetune/setup.js';

const folder = temporaryFolder();
const file = path.join(folder, 'params.json');

const parse = (text: string) => {
  fs.writeFileSync(file, text);
  return parseParams(file);
};

/** The bytes of the members, as the runner is given them. */
async function bytesOf(text: string): Promise<string[]> {
  const shape = { grid: [1, 1, 1], threads: 32, shared: 0, cluster: 1 } as const;
  const run = await prepareKernelRun(path.join(folder, 'run'), 'lib.so', 'k', shape, parse(text));
  const lines = fs.readFileSync(run.spec, 'utf8').split('\n');
  return lines.flatMap((line) => (line.startsWith('value') ? [line.split(' ')[2] as string] : []));
}

describe('numbers of 64 bits', () => {
  it('are numbers, or text with every digit of them', async () => {
    expect(
      await bytesOf(
        `[{"u64": "18446744073709551615"}, {"u64": "9007199254740993"}, {"u64": 5},
          {"i64": "-9223372036854775808"}, {"i64": -2}, {"f32": 1}, {"u16": 7}]`,
      ),
    ).toEqual([
      'ffffffffffffffff',
      '0100000000002000',
      '0500000000000000',
      '0000000000000080',
      'feffffffffffffff',
      '0000803f',
      '0700',
    ]);
  });

  it.each([
    [
      '{"name": "n", "u64": 18446744073709551615}',
      /n must be an integer from 0 to 18446744073709551615 \(u64\), got .*as text \("18446744073709551615"\)/,
    ],
    [
      '{"name": "n", "u64": "18446744073709551616"}',
      /to 18446744073709551615 \(u64\), got 18446744073709551616\./,
    ],
    ['{"name": "n", "i64": "0x10"}', /n must have an integer, or one as text, under i64/],
    ['{"name": "n", "u32": "5"}', /n must have a "buffer", or a number under one of/],
    ['{"name": "n", "u32": 4294967296}', /\(u32\), got 4294967296$/],
  ])('are refused where the type does not hold them: %s', (member, message) => {
    expect(() => parse(`[${member}]`)).toThrow(
      expect.objectContaining({ code: 'ERR_FILE', message: expect.stringMatching(message) }),
    );
  });
});
