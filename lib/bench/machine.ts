/**
 * Describes the measured machine, and checks whether it is quiet.
 */

import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import os from 'node:os';
import { packageFolder } from '../environment/package-folder.js';
import { type Device, deviceInfo } from '../index.js';

/** Everything visible that a result depends on. */
export interface Machine {
  readonly cpu: string;
  readonly cores: number;
  readonly isa: string;
  /** `L1d 32K`, one per entry. */
  readonly caches: readonly string[];
  /** Bytes of the last-level cache. */
  readonly lastCache: number;
  readonly memory: number;
  readonly virtual: boolean;
  readonly governor?: string;
  readonly kernel: string;
  readonly node: string;
  readonly gpu?: string;
}

/** @param measured the measured devices; it only looks for a GPU if they include one */
export function describeMachine(measured: Iterable<Device> = []): Machine {
  const caches = readCaches();
  const gpu = [...measured].find((device) => /^cuda(:\d+)?$/.test(device));
  const governor = read('/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor')?.trim();
  return {
    cpu: os.cpus()[0]?.model.trim() ?? os.arch(),
    cores: os.availableParallelism(),
    isa: deviceInfo('cpu').isa ?? '',
    caches: caches.map(({ name, text }) => `${name} ${text}`),
    lastCache: Math.max(kUsualCache, ...caches.map(({ bytes }) => bytes)),
    memory: os.totalmem(),
    virtual: /\bhypervisor\b/.test(read('/proc/cpuinfo') ?? ''),
    ...(governor === undefined ? {} : { governor }),
    kernel: `${os.type()} ${os.release()} ${os.arch()}`,
    node: process.version,
    ...(gpu === undefined ? {} : { gpu: deviceInfo(gpu).name }),
  };
}

/** Bytes to assume if the size of the last-level cache is unknown. */
const kUsualCache = 8 * 2 ** 20;

function readCaches(): { name: string; text: string; bytes: number }[] {
  const folder = '/sys/devices/system/cpu/cpu0/cache';
  try {
    return readdirSync(folder)
      .filter((entry) => entry.startsWith('index'))
      .sort()
      .flatMap((entry) => {
        const of = (what: string) => read(`${folder}/${entry}/${what}`)?.trim() ?? '';
        const [text, type] = [of('size'), of('type')];
        const units: Readonly<Record<string, number>> = { K: 2 ** 10, M: 2 ** 20, G: 2 ** 30 };
        const bytes = Number.parseInt(text, 10) * (units[text.slice(-1)] ?? 1);
        if (type === 'Instruction' || !(bytes > 0)) return [];
        return [{ name: `L${of('level')}${type === 'Data' ? 'd' : ''}`, text, bytes }];
      });
  } catch {
    return [];
  }
}

/** The commit of a checkout, with `+` if files differ from it; `undefined` in an installed package. */
export function sourceCommit(): string | undefined {
  const git = (...args: string[]) =>
    spawnSync('git', ['-C', packageFolder(), ...args], { encoding: 'utf8' });
  const top = git('rev-parse', '--show-toplevel');
  if (top.status !== 0 || top.stdout.trim() !== packageFolder()) return undefined;
  const dirty = git('status', '--porcelain', '--untracked-files=no').stdout.trim() !== '';
  return `${git('rev-parse', '--short=12', 'HEAD').stdout.trim()}${dirty ? '+' : ''}`;
}

/** Number of cores that others keep busy, over a short time in which this process sleeps; `undefined` off Linux. */
export async function busyCores(wait_ms = 400): Promise<number | undefined> {
  const before = busyTicks();
  await new Promise((resolve) => setTimeout(resolve, wait_ms));
  const after = busyTicks();
  if (before === undefined || after === undefined || after.all <= before.all) return undefined;
  const share = (after.busy - before.busy) / (after.all - before.all);
  return share * os.cpus().length;
}

/** Milliseconds of work on all cores since the machine started, by all processes; `undefined` off Linux. */
export function busyMilliseconds(): number | undefined {
  const ticks = busyTicks();
  // A tick of /proc/stat is 10 ms on every Linux that Node runs on.
  return ticks === undefined ? undefined : 10 * ticks.busy;
}

function busyTicks(): { busy: number; all: number } | undefined {
  const line = /^cpu +(.*)$/m.exec(read('/proc/stat') ?? '')?.[1];
  if (line === undefined) return undefined;
  const [user = 0, nice = 0, system = 0, idle = 0, wait = 0, irq = 0, soft = 0, steal = 0] = line
    .split(/ +/)
    .map(Number);
  const busy = user + nice + system + irq + soft + steal;
  return { busy, all: busy + idle + wait };
}

function read(file: string): string | undefined {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return undefined;
  }
}
