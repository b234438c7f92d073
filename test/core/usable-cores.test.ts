/**
 * The default number of threads: the cores that the process may use, by its affinity and by the quota of its
 * control group (native/cpu/usable_cores.h), over folders that stand for /proc and /sys of other machines.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { buildFolder, buildTargets, outputFolder } from '../emulator/build-folder.js';

const program = path.join(outputFolder(), 'host_check');
const taskset = '/usr/bin/taskset';

describe.runIf(buildFolder() !== undefined && os.platform() === 'linux')('usable cores', () => {
  let folder = '';
  let machines = 0;
  beforeAll(async () => {
    folder = mkdtempSync(path.join(os.tmpdir(), 'lowrank-cores-'));
    await buildTargets('host_check');
  }, 600_000);
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  /** @param files of the machine, by path */
  function cores(files: Record<string, string>, prefix: readonly string[] = []): number {
    const root = path.join(folder, String(machines++));
    for (const [file, text] of Object.entries(files)) {
      mkdirSync(path.join(root, path.dirname(file)), { recursive: true });
      writeFileSync(path.join(root, file), text);
    }
    const [command = '', ...args] = [...prefix, program, 'cores', root];
    return Number(execFileSync(command, args, { encoding: 'utf8' }));
  }

  const v2 = (group: string) => ({ 'proc/self/cgroup': `0::${group}\n` });
  const v1 = (line: string) => ({
    'proc/self/cgroup': `5:memory:/m\n${line}\n1:name=systemd:/s\n`,
  });
  const all = os.availableParallelism();

  it('are all without control groups, and without a quota', () => {
    expect(cores({})).toBe(all);
    expect(cores({ ...v2('/'), 'sys/fs/cgroup/cpu.max': 'max 100000\n' })).toBe(all);
    expect(cores({ ...v2('/a/b') })).toBe(all);
    expect(cores({ ...v2(''), 'sys/fs/cgroup/cpu.max': 'nonsense' })).toBe(all);
    const unlimited = {
      'sys/fs/cgroup/cpu/cpu.cfs_quota_us': '-1\n',
      'sys/fs/cgroup/cpu/cpu.cfs_period_us': '100000\n',
    };
    expect(cores({ ...v1('4:cpu,cpuacct:/'), ...unlimited })).toBe(all);
  });

  it.runIf(all > 1)('are those of a quota of version 2, of the group or of one above it', () => {
    const low = '100000 100000\n';
    expect(cores({ ...v2('/'), 'sys/fs/cgroup/cpu.max': low })).toBe(1);
    expect(cores({ ...v2('/a/b'), 'sys/fs/cgroup/a/b/cpu.max': low })).toBe(1);
    expect(
      cores({
        ...v2('/a/b'),
        'sys/fs/cgroup/a/cpu.max': low,
        'sys/fs/cgroup/a/b/cpu.max': 'max 100000',
      }),
    ).toBe(1);
    // A container that sees its own group as the top.
    expect(cores({ ...v2('/docker/0123'), 'sys/fs/cgroup/cpu.max': low })).toBe(1);
    expect(cores({ ...v2('/a'), 'sys/fs/cgroup/other/cpu.max': low })).toBe(all);
  });

  it.runIf(all > 1)('are those of a quota of version 1', () => {
    const at = (place: string) => ({
      [`sys/fs/cgroup/${place}/cpu.cfs_quota_us`]: '150000\n',
      [`sys/fs/cgroup/${place}/cpu.cfs_period_us`]: '100000\n',
    });
    expect(cores({ ...v1('4:cpu,cpuacct:/a'), ...at('cpu,cpuacct/a') })).toBe(1);
    expect(cores({ ...v1('4:cpuacct,cpu:/a/b'), ...at('cpu/a') })).toBe(1);
    expect(cores({ ...v1('4:cpu:/a'), ...at('cpu') })).toBe(1);
    expect(cores({ ...v1('4:cpuset:/a'), ...at('cpuset/a') })).toBe(all);
  });

  it('are rounded down, at least 1, and no more than there are', () => {
    expect(cores({ ...v2('/'), 'sys/fs/cgroup/cpu.max': '10000 100000' })).toBe(1);
    expect(cores({ ...v2('/'), 'sys/fs/cgroup/cpu.max': '199999 100000' })).toBe(1);
    expect(cores({ ...v2('/'), 'sys/fs/cgroup/cpu.max': '99900000 100000' })).toBe(all);
  });

  it('are those of the affinity', () => {
    const one = execFileSync(taskset, ['-cp', String(process.pid)], { encoding: 'utf8' });
    const first = /: (\d+)/.exec(one)?.[1] ?? '0';
    expect(cores({}, [taskset, '-c', first])).toBe(1);
  });

  it('are the default of threads', () => {
    const one = execFileSync(taskset, ['-cp', String(process.pid)], { encoding: 'utf8' });
    const first = /: (\d+)/.exec(one)?.[1] ?? '0';
    const { LOWRANK_NUM_THREADS: _, OMP_NUM_THREADS: __, ...env } = process.env;
    const addon = path.join(outputFolder(), 'lowrank.node');
    const script = `console.log(require(${JSON.stringify(addon)}).threads())`;
    const text = execFileSync(taskset, ['-c', first, process.execPath, '-e', script], {
      encoding: 'utf8',
      env,
    });
    expect(text).toBe('1\n');
  });
});
