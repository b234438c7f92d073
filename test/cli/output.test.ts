/** What the command prints where nobody can read it, and what it prints of texts that others wrote. */

import fs from 'node:fs';
import { beforeAll, describe, expect, it } from 'vitest';
import { describeDevice } from '../../lib/cli/info.js';
import type { DeviceInfo } from '../../lib/index.js';
import { jsonText } from '../../lib/report/terminal.js';
import { requireBuilt, run } from '../finetune/command.js';

beforeAll(requireBuilt);

if (!fs.existsSync('/dev/full')) console.warn('skipped: there is no /dev/full');
describe.skipIf(!fs.existsSync('/dev/full'))('output that cannot be written', () => {
  it.each(['info', '--help', 'info --json'])('%s: a sentence and exit code 6', async (line) => {
    const { code, stderr } = await run(line.split(' '), { wrap: 'exec "$@" > /dev/full' });
    expect(stderr).toBe(
      'lowrank: output: "stdout" must have room, got a full disk or a file size limit (ENOSPC)\n',
    );
    expect(code).toBe(6);
  });

  it('messages alone end nothing', async () => {
    const { code, stdout } = await run(['nope'], { wrap: '"$@" 2> /dev/full; echo "rc $?"' });
    expect([code, stdout]).toEqual([0, 'rc 2\n']);
  });
});

/** Clears the screen, by an escape, by the 8-bit CSI, and turns the writing round. */
const hostile = 'a\u001b[2J\u009b2J\u202eb\nc';
const escaped = 'a\\u001b[2J\\u009b2J\\u202eb\\u000ac';
const device: DeviceInfo = {
  device: 'cuda',
  available: true,
  name: hostile,
  memory: 2 ** 30,
  features: [hostile],
  isa: hostile,
  driver: hostile,
  betterIsas: [hostile],
} as DeviceInfo;

describe('info', () => {
  it('escapes what a driver says', () => {
    expect(describeDevice(device)).toBe(
      `cuda: available\n  ${escaped}, 1.00 GiB\n  ${escaped}, driver ${escaped}; ${escaped}\n  not ${escaped}\n`,
    );
    expect(describeDevice({ ...device, available: false, reason: hostile })).toBe(
      `cuda: not available\n  ${escaped}\n`,
    );
  });

  it('JSON keeps such texts, and steers no terminal', () => {
    const text = jsonText({ [hostile]: [hostile, '😀'] });
    // biome-ignore lint/suspicious/noControlCharactersInRegex: finding them is the point
    expect(text).not.toMatch(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u202e]/);
    expect(JSON.parse(text)).toEqual({ [hostile]: [hostile, '😀'] });
  });

  it('gives JSON without the addon too', async () => {
    const { code, stdout, stderr } = await run(['info', '--json'], {
      wrap: 'LOWRANK_BINDING=/nowhere/no.node exec "$@"',
    });
    const facts = JSON.parse(stdout);
    expect(facts).toMatchObject({ node: process.version, devices: [], threads: null });
    expect(facts.defaultDevice).toBeNull();
    expect(facts.cLibrary === null || fs.existsSync(facts.cLibrary)).toBe(true);
    expect(facts.bindingProblem).toContain('/nowhere/no.node: no such file');
    expect(stderr).toContain('/nowhere/no.node');
    expect(code).toBe(8);
  });
});
