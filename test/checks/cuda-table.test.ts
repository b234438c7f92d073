/**
 * The table of what kernels cost: that it holds together, and what a run of check:cuda finds and
 * leaves alone. Needs no nvcc.
 */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, it } from 'vitest';

interface Row {
  readonly shared: number;
  readonly registers: number;
  readonly blocks: number;
  readonly percent: number;
  readonly limit: string;
}
interface Kernel {
  readonly module: string;
  readonly threads: number;
  readonly ptx: Record<string, number>;
  readonly on: Record<string, Row>;
}
type Table = Record<string, Kernel>;
interface Run {
  /** Compiled; false: not, for want of its architecture. */
  readonly modules: ReadonlyMap<string, boolean>;
  readonly archs: readonly string[];
}

const load = (file: string) => import(new URL(file, import.meta.url).href);
const { differences, kArchitectures, plansOf, readPlans, readTable, updated, writeTable } =
  (await load('./cuda-table.mjs')) as {
    differences(is: Table, was: Table, run: Run): string[];
    kArchitectures: string[];
    plansOf(table: Table): Map<string, Map<string, number>>;
    readPlans(text: string): Map<string, Map<string, number>>;
    readTable(text: string): Table;
    updated(is: Table, was: Table, run: Run): Table;
    writeTable(table: Table): string;
  };
const { occupancy } = (await load('./occupancy.mjs')) as {
  occupancy(
    arch: string,
    kernel: { threads: number; registers: number; sharedBytes: number },
  ): { blocks: number; percent: number; limit: string };
};

const row = (shared: number, registers = 64): Row => ({
  shared,
  registers,
  blocks: 1,
  percent: 17,
  limit: 'shared',
});
const kernel = (module: string, on: Record<string, Row>): Kernel => ({
  module,
  threads: 256,
  ptx: { 'ld.global 16': 2 },
  on,
});
const known: Table = {
  a_kernel: kernel('a_sm80', { sm_80: row(130336), sm_86: row(98080), sm_90a: row(98080) }),
  h_kernel: kernel('h_sm90a', { sm_90a: row(220160) }),
};
/** The default build, and one for a card of sm_86. */
const usual: Run = {
  modules: new Map([
    ['a_sm80', true],
    ['h_sm90a', true],
  ]),
  archs: ['sm_80', 'sm_90a'],
};
const ampere: Run = {
  modules: new Map([
    ['a_sm80', true],
    ['h_sm90a', false],
  ]),
  archs: ['sm_86'],
};
/** The rows of a run. */
const builtBy = ({ modules, archs }: Run, table: Table = known): Table =>
  Object.fromEntries(
    Object.entries(table)
      .filter(([, { module }]) => modules.get(module))
      .map(([name, { on, ...rest }]) => [
        name,
        { ...rest, on: Object.fromEntries(Object.entries(on).filter(([a]) => archs.includes(a))) },
      ]),
  );
const changed = (name: string, arch: string, to: Row): Table => {
  const before = known[name] as Kernel;
  return { ...known, [name]: { ...before, on: { ...before.on, [arch]: to } } };
};

describe('the table of costs', () => {
  const folder = path.join(import.meta.dirname, '..', '..', 'cuda');
  const text = readFileSync(path.join(folder, 'resources.json'), 'utf8');

  it('is of the architectures of a package', () => {
    const build = readFileSync(path.join(folder, 'tools', 'kernels.cmake'), 'utf8');
    const [, list] = /"package"\)\s+set\(lowrank_archs ([^)]*) ptx\)/.exec(build) ?? [];
    expect(list?.split(' ').map((arch) => `sm_${arch}`)).toEqual(kArchitectures);
  });

  it('is as the program writes it', () => {
    expect(writeTable(readTable(text))).toBe(text);
    expect(readTable(writeTable(known))).toEqual(known);
  });

  it('has a row of each kernel on every architecture that its file is compiled for', () => {
    const missing = Object.entries(readTable(text)).flatMap(([name, { module, on }]) => {
      const only = /_sm(\d+a)$/.exec(module)?.[1];
      // A file for 9.0 and later is one of clusters, which the cards of 12.x are not given.
      const later = module.endsWith('_sm90') ? ['sm_90a', 'sm_100'] : kArchitectures;
      const wanted = only === undefined ? later : [`sm_${only}`];
      return JSON.stringify(Object.keys(on)) === JSON.stringify(wanted) ? [] : [name];
    });
    expect(missing).toEqual([]);
  });

  it('has the occupancy that its registers and shared memory give', () => {
    for (const [name, { threads, on }] of Object.entries(readTable(text))) {
      for (const [arch, { shared, registers, blocks, percent, limit }] of Object.entries(on)) {
        const is = occupancy(arch.slice(3), { threads, registers, sharedBytes: shared });
        expect({ name, arch, ...is }).toEqual({ name, arch, blocks, percent, limit });
        expect(blocks, `${name} on ${arch}`).toBeGreaterThan(0);
      }
    }
  });

  it('is the same for what a run has built, and silent of the rest', () => {
    for (const run of [usual, ampere]) expect(differences(builtBy(run), known, run)).toEqual([]);
  });

  it('differs by registers, shared memory and rows of an architecture that was built', () => {
    const registers = changed('a_kernel', 'sm_86', row(98080, 65));
    expect(differences(builtBy(ampere, registers), known, ampere)).toHaveLength(1);
    expect(differences(builtBy(usual, registers), known, usual)).toEqual([]);
    const shared = changed('h_kernel', 'sm_90a', row(220161));
    expect(differences(builtBy(usual, shared), known, usual)).toHaveLength(1);
    const more = changed('h_kernel', 'sm_80', row(0));
    expect(differences(builtBy(usual, more), known, usual)).toHaveLength(1);
    expect(differences(builtBy(usual), more, usual)).toHaveLength(1);
    expect(differences({}, known, usual)).toHaveLength(2);
    const gone = { ...usual, modules: new Map([['a_sm80', true]]) };
    expect(differences(builtBy(gone), known, gone)).toHaveLength(1);
  });

  it('is updated where a run has built, and nowhere else', () => {
    const other = changed('a_kernel', 'sm_90a', row(98080, 72));
    expect(updated(builtBy(usual, other), known, usual)).toEqual(other);
    expect(updated(builtBy(ampere, other), known, ampere)).toEqual(known);
    const gone = { ...usual, modules: new Map([['a_sm80', true]]) };
    expect(Object.keys(updated(builtBy(gone), known, gone))).toEqual(['a_kernel']);
  });
});

describe('plans', () => {
  const line = (arch: string, bytes: number) =>
    JSON.stringify({ arch, kernel: 'a_kernel', shared_bytes: bytes });

  it('are read by architecture, or taken from the table', () => {
    const plans = readPlans(`${line('sm_80', 130336)}\n${line('sm_86', 98080)}\n`);
    expect(plans.get('sm_86')?.get('a_kernel')).toBe(98080);
    expect(plans.has('sm_90a')).toBe(false);
    expect(plansOf(known).get('sm_80')).toEqual(new Map([['a_kernel', 130336]]));
    expect(plansOf(known).get('sm_89')).toEqual(new Map());
  });

  it('are refused without an architecture, as a trace of the emulator', () => {
    expect(() => readPlans('{"kernel":"a_kernel","shared_bytes":0}')).toThrow(/cuda_plan_table/);
    expect(() => readPlans(line('sm_75', 0))).toThrow(/cuda_plan_table/);
  });
});
