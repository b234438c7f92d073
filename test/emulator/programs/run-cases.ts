/**
 * Runs the kernel cases and prints one line each, `hash name`; a case that throws prints `error: ...`
 * in place of the hash. run-cases [--device D] [--filter REGEX] [--names FILE] [--list]
 *
 * With --names FILE, a name a line, those cases in that order. With --expect FILE, lines of an
 * earlier run, it stops with status 1 at the first case that gives another hash. With --measure a
 * line goes on with the case's milliseconds, a hash of its launches (of the trace that
 * LOWRANK_EMULATOR_TRACE asks for), the places that it came past (bytes that the code under test
 * sets in the file LOWRANK_MUTANTS_REACHED) and the kernels that it launched. With --oracle REGEX the tensors
 * of these cases are compared with those of the device `reference`, and what is beyond the allowed error is
 * `error: ...` too.
 * --smoke leaves out what is not for a smoke run.
 */
import { createHash } from 'node:crypto';
import { existsSync, openSync, readFileSync, readSync, writeSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { type Device, memoryUsage, scope, synchronize } from '../../../lib/index.js';
import { compareRecorded, recorded } from '../case-oracle.js';
import type { KernelCase } from '../case-parts.js';
import { kernelCases } from '../cases.js';

const { values } = parseArgs({
  options: {
    device: { type: 'string', default: 'cuda-emulated' },
    filter: { type: 'string', default: '' },
    names: { type: 'string' },
    list: { type: 'boolean', default: false },
    expect: { type: 'string' },
    measure: { type: 'boolean', default: false },
    oracle: { type: 'string' },
    smoke: { type: 'boolean', default: false },
  },
});
const device = values.device as Device;
const linesOf = (file: string) => readFileSync(file, 'utf8').split('\n').filter(Boolean);
const expected = new Set(values.expect === undefined ? [] : linesOf(values.expect));

function chosen(): KernelCase[] {
  const wanted = new RegExp(values.filter);
  const own = process.env.LOWRANK_EMULATOR_SM ?? '80';
  const count = process.env.LOWRANK_EMULATOR_MULTIPROCESSORS ?? '';
  const cases = kernelCases().filter(
    ({ name, sm = own, multiprocessors = count, smoke = true }) =>
      wanted.test(name) && sm === own && multiprocessors === count && (smoke || !values.smoke),
  );
  if (values.names === undefined) return cases;
  const byName = new Map(cases.map((one) => [one.name, one]));
  return linesOf(values.names).flatMap((name) => byName.get(name) ?? []);
}

const tracePath = process.env.LOWRANK_EMULATOR_TRACE;
let traced = 0;
let launched: string[] = [];
/** What was launched since the last call: kernels and shapes. */
function launches(): string {
  launched = [];
  if (tracePath === undefined || !existsSync(tracePath)) return '';
  const text = readFileSync(tracePath, 'utf8').slice(traced);
  traced += text.length;
  const hash = createHash('sha256');
  for (const line of text.split('\n').filter(Boolean)) {
    const { kernel, grid, block, cluster, shared_bytes, overlaps_previous } = JSON.parse(line);
    hash.update(JSON.stringify([kernel, grid, block, cluster, shared_bytes, overlaps_previous]));
    launched.push(kernel);
  }
  return hash.digest('hex').slice(0, 16);
}

const marksPath = process.env.LOWRANK_MUTANTS_REACHED;
const marks = marksPath === undefined ? undefined : openSync(marksPath, 'r+');
function reached(): string {
  if (marks === undefined) return '';
  const bytes = Buffer.alloc(1 << 16);
  const length = readSync(marks, bytes, 0, bytes.length, 0);
  writeSync(marks, Buffer.alloc(length), 0, length, 0);
  return [...bytes.subarray(0, length).keys()].filter((i) => bytes[i] !== 0).join(' ');
}

/** The case's outcome, once its values are right. */
async function checked({ run, allowed = 1 }: KernelCase): Promise<string> {
  const [outcome, actual] = await recorded(() => run(device));
  const [, expected] = await recorded(() => scope(() => run('reference')));
  const { worst, where } = compareRecorded(actual, expected);
  if (!(worst <= allowed))
    throw new Error(`wrong by ${worst.toFixed(1)} of what is allowed: ${where}`);
  return outcome;
}

/** What a case that does not launch what it is for has in place of its hash. */
function missed({ launches: wanted = [], without, once }: KernelCase): string | undefined {
  if (tracePath === undefined) return undefined;
  const count = (kernels: RegExp) => launched.filter((kernel) => kernels.test(kernel)).length;
  const wrong = [
    ...wanted.filter((kernels) => count(kernels) === 0),
    ...(without !== undefined && count(without) > 0 ? [`none of ${without}`] : []),
    ...(once !== undefined && count(once) !== 1 ? [`one of ${once}`] : []),
  ];
  if (wrong.length === 0) return undefined;
  return `error: it launches ${launched.join(', ') || 'nothing'}; wanted ${wrong.join(', ')}`;
}

const withOracle = values.oracle === undefined ? undefined : new RegExp(values.oracle);
for (const one of chosen()) {
  const { name, run } = one;
  if (values.list) {
    console.log(name);
    continue;
  }
  const start = performance.now();
  const outcome = await scope(() => (withOracle?.test(name) ? checked(one) : run(device))).catch(
    (error: Error) => `error: ${error.message.replaceAll('\n', ' | ')}`,
  );
  const ms = Math.round(performance.now() - start);
  const hash = launches();
  const wrong = outcome.startsWith('error') ? undefined : missed(one);
  const line = `${wrong ?? outcome}\t${name}`;
  const kernels = [...new Set(launched)].join(' ');
  console.log(values.measure ? `${line}\t${ms}\t${hash}\t${reached()}\t${kernels}` : line);
  if (values.expect !== undefined && !expected.has(line)) process.exit(1);
}
if (!values.list) {
  await synchronize(device).catch(() => undefined);
  const { liveBytes, liveTensors } = memoryUsage(device);
  console.log(`${liveBytes} bytes in ${liveTensors} tensors are left\t(memory)`);
}
