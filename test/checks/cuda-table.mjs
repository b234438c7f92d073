/**
 * The table of costs, cuda/resources.json, and the plans that its shared memory comes from:
 *
 *   kernel -> module, threads, ptx: {access or instruction -> count},
 *             on: {architecture -> shared, registers, blocks, percent, limit}
 *
 * A kernel has a row on an architecture where plans launch it. `shared` is the most dynamic shared
 * memory that one asks for there; in the file it stands beside `threads` where all rows agree.
 */
import { kLimits } from './occupancy.mjs';

/** In the order of rows; an object has its keys that are numbers before the others. */
export const kArchitectures = Object.keys(kLimits)
  .sort((a, b) => Number.parseInt(a, 10) - Number.parseInt(b, 10))
  .map((arch) => `sm_${arch}`);

const sorted = (object, order) =>
  Object.fromEntries(order.filter((key) => key in object).map((key) => [key, object[key]]));

const mapValues = (object, change) =>
  Object.fromEntries(Object.entries(object).map(([key, value]) => [key, change(value, key)]));

export function readTable(text) {
  return mapValues(JSON.parse(text).kernels, ({ shared, on, ...kernel }) => ({
    ...kernel,
    on: mapValues(on, (row) => ({ shared, ...row })),
  }));
}

export function writeTable(table) {
  const written = (name) => {
    const { module, threads, ptx, on } = table[name];
    const shared = new Set(Object.values(on).map((row) => row.shared));
    const rows = sorted(on, kArchitectures);
    if (shared.size > 1) return { module, threads, ptx, on: rows };
    const without = mapValues(rows, ({ shared: _, ...row }) => row);
    return { module, threads, shared: [...shared][0], ptx, on: without };
  };
  const kernels = Object.fromEntries(
    Object.keys(table)
      .sort()
      .map((name) => [name, written(name)]),
  );
  // A row a line.
  const text = JSON.stringify({ kernels }, null, 1);
  return `${text.replace(/\{\s*"(?:shared|registers)"[^{}]*\}/g, (row) => row.replace(/\s+/g, ' '))}\n`;
}

/** Architecture -> kernel -> bytes, of the lines that cuda_plan_table prints. */
export function readPlans(text) {
  const plans = new Map();
  for (const line of text.split('\n').filter(Boolean)) {
    const { arch, kernel, shared_bytes: bytes } = JSON.parse(line);
    if (!kArchitectures.includes(arch) || !kernel || !Number.isInteger(bytes)) {
      throw new Error(`not a line of cuda_plan_table: ${line.slice(0, 200)}`);
    }
    if (!plans.has(arch)) plans.set(arch, new Map());
    plans.get(arch).set(kernel, Math.max(bytes, plans.get(arch).get(kernel) ?? 0));
  }
  return plans;
}

/** What a table says in the place of plans. */
export function plansOf(table) {
  const plans = new Map(kArchitectures.map((arch) => [arch, new Map()]));
  for (const [kernel, { on }] of Object.entries(table)) {
    for (const [arch, { shared }] of Object.entries(on)) plans.get(arch)?.set(kernel, shared);
  }
  return plans;
}

/**
 * What a run has to say is of the `archs` that it has code for, and of the `modules` that it has
 * compiled: name -> true, or false of one for an architecture that was not asked for. Others are gone.
 */
export function differences(is, was, { modules, archs }) {
  const found = [];
  const compare = (what, now, before) => {
    const [a, b] = [now, before].map((value) => JSON.stringify(value));
    if (a === b) return;
    if (before === undefined) found.push(`${what}: not in the table`);
    else if (now === undefined) found.push(`${what}: no longer built, or launched by no plan`);
    else found.push(`${what}: ${a}, not ${b}`);
  };
  for (const name of new Set([...Object.keys(is), ...Object.keys(was)])) {
    const [now, before] = [is[name], was[name]];
    if (now === undefined && modules.get(before.module) === false) continue;
    if (now === undefined || before === undefined) {
      compare(name, now, before);
      continue;
    }
    for (const key of ['module', 'threads', 'ptx']) {
      compare(`${name}: ${key}`, now[key], before[key]);
    }
    for (const arch of archs) compare(`${name} on ${arch}`, now.on[arch], before.on[arch]);
  }
  return found;
}

/** The table after a run: what it has nothing to say of stays as it was. */
export function updated(is, was, { modules, archs }) {
  const table = {};
  for (const [name, kernel] of Object.entries(was)) {
    if (modules.get(kernel.module) === false) table[name] = kernel;
  }
  for (const [name, kernel] of Object.entries(is)) {
    const kept = Object.entries(was[name]?.on ?? {}).filter(([arch]) => !archs.includes(arch));
    const on = { ...Object.fromEntries(kept), ...kernel.on };
    if (Object.keys(on).length > 0) table[name] = { ...kernel, on };
  }
  return table;
}
