/**
 * `npm run gpu:test`: what only a GPU can tell, in one command (docs/gpu-testing.md).
 *
 *   node test/gpu/run.mjs [--device cuda|cuda-emulated] [--only PART,PART] [--out FILE]
 *                         [--no-build] [--plant]
 *
 * --device cuda-emulated runs the same programs over the emulator at small sizes, to prove them.
 * --plant puts one mistake into each part that takes one; every such part must then fail.
 * Status: 0, 1 where anything failed, 2 where nothing could be run.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import os from 'node:os';
import { join, relative } from 'node:path';
import { parseArgs } from 'node:util';
import { build } from 'esbuild';
import {
  beside,
  buildPrograms,
  commit,
  jsonLines,
  requireDevice,
  root,
  slug,
  writeText,
} from './machine.mjs';

const kPartTimeout_ms = 300_000;

const { values: args } = parseArgs({
  options: {
    device: { type: 'string', default: 'cuda' },
    only: { type: 'string', default: 'instructions,ops,bits,conformance' },
    out: { type: 'string' },
    'no-build': { type: 'boolean', default: false },
    plant: { type: 'boolean', default: false },
  },
});
const emulated = args.device === 'cuda-emulated';
if (!args['no-build']) buildPrograms(emulated ? 'gpu_self_proof' : 'gpu_programs');
const device = requireDevice(args.device);
const folder = mkdtempSync(join(os.tmpdir(), 'lowrank-gpu-test-'));
const plant = args.plant ? ['--plant'] : [];

/** What the programs say of the device, for the emulator to be like it. */
let machine = { card: device.name };
const likeTheDevice = () => ({
  ...(machine.sm ? { LOWRANK_EMULATOR_SM: String(machine.sm) } : {}),
  ...(machine.multiprocessors
    ? { LOWRANK_EMULATOR_MULTIPROCESSORS: String(machine.multiprocessors) }
    : {}),
});
function note(row) {
  if (row.card !== undefined) machine = { ...row, card: device.name || row.card };
}

/** A part's rows, as counts and failures. */
function summary(name, { rows, err, status, seconds }) {
  const judged = rows.filter((row) => row.passed !== undefined);
  const failures = judged.filter((row) => !row.passed);
  const skipped = rows.filter((row) => row.skipped !== undefined);
  // A program that died, or judged nothing, has not passed.
  const ended = status === (failures.length > 0 ? 1 : 0) && judged.length > 0;
  return {
    part: name,
    passed: ended && failures.length === 0,
    checks: judged.length,
    failed: failures.length,
    skipped: skipped.map((row) => `${row.instruction ?? row.check}: ${row.skipped}`),
    seconds: Math.round(seconds * 10) / 10,
    failures,
    ...(ended ? {} : { error: `ended with ${status}: ${err}` }),
    rows: judged.filter((row) => row.largest !== undefined || row.worst !== undefined),
  };
}

const kParts = {
  async instructions() {
    const emulator = beside('lowrank-emulator-instructions.so');
    const other = `lowrank-emulator-instructions${args.plant ? '-planted' : ''}.so`;
    const to = emulated ? ['--device', beside(other), '--trials', '8'] : [];
    return jsonLines(beside('gpu_instructions_check'), [emulator, ...to], {
      onRow: note,
      timeout: kPartTimeout_ms,
    });
  },
  async ops() {
    const to = emulated ? ['--device', beside('lowrank-emulator.so'), '--tiny'] : [];
    return jsonLines(beside('gpu_ops_check'), [...to, ...plant], {
      onRow: note,
      timeout: kPartTimeout_ms,
    });
  },
  async bits() {
    const program = join(folder, 'bits.mjs');
    await build({
      entryPoints: [join(import.meta.dirname, 'programs', 'bits.ts')],
      bundle: true,
      platform: 'node',
      format: 'esm',
      target: 'node20',
      logLevel: 'warning',
      outfile: program,
    });
    const against = emulated ? ['--against', 'cpu', '--quick'] : [];
    return jsonLines(process.execPath, [program, '--device', args.device, ...against, ...plant], {
      env: likeTheDevice(),
      timeout: kPartTimeout_ms,
    });
  },
  /** The suite as it stands: of its tests those that name this device, or compare devices. */
  async conformance() {
    const report = join(folder, 'conformance.json');
    const files = emulated ? ['integers', 'random'] : [''];
    // The whole name of the device, and not the beginning of another's.
    const names = `\\b${args.device}(?![-\\w:])${emulated ? '' : '|across devices|margins|the guard'}`;
    const ended = await jsonLines(
      process.execPath,
      [
        join(root, 'node_modules', 'vitest', 'vitest.mjs'),
        'run',
        ...files.map((file) => `test/conformance/${file}`),
        '--testNamePattern',
        names,
        '--reporter=json',
        `--outputFile=${report}`,
      ],
      { env: likeTheDevice(), timeout: kPartTimeout_ms },
    );
    return { ...ended, rows: conformanceRows(report) };
  },
};

/** One row a test; a file in which none ran is a failure too. */
function conformanceRows(report) {
  let results = [];
  try {
    results = JSON.parse(readFileSync(report, 'utf8')).testResults;
  } catch {
    return []; // what vitest said instead is told with its status
  }
  return results.flatMap(({ name, assertionResults, message }) => {
    const file = relative(root, name);
    const ran = assertionResults.filter(({ status }) => ['passed', 'failed'].includes(status));
    if (ran.length === 0) {
      return [{ test: file, passed: false, error: message || 'none of its tests ran' }];
    }
    return ran.map(({ fullName, status, failureMessages }) => ({
      test: `${file} ${fullName}`,
      passed: status === 'passed',
      ...(status === 'passed' ? {} : { error: failureMessages.join('\n').slice(0, 2000) }),
    }));
  });
}

const parts = [];
try {
  for (const name of args.only.split(',')) {
    if (kParts[name] === undefined) {
      console.error(`there is no part ${name}: ${Object.keys(kParts).join(', ')}`);
      process.exit(2);
    }
    const part = summary(name, await kParts[name]());
    parts.push(part);
    const counts = `${part.checks} checks, ${part.failed} failed, ${part.skipped.length} skipped`;
    console.log(`${part.passed ? 'ok  ' : 'FAIL'} ${name}: ${counts}, ${part.seconds} s`);
    for (const reason of part.skipped) console.log(`       skipped ${reason}`);
    for (const failure of part.failures.slice(0, 20))
      console.log(`       ${JSON.stringify(failure)}`);
    if (part.error) console.log(`       ${part.error}`);
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}

const passed = parts.every((part) => part.passed);
const result = {
  format: 'lowrank gpu:test 1',
  passed,
  device: args.device,
  machine,
  commit: commit(),
  node: process.version,
  date: new Date().toISOString(),
  planted: args.plant,
  parts,
};
// A run over the emulator is no result of a card.
const out =
  args.out ??
  (emulated ? undefined : join(root, 'bench', 'results', `gpu-test-${slug(machine.card)}.json`));
if (out !== undefined) writeText(out, `${JSON.stringify(result, null, 2)}\n`);
console.log(`${machine.card}: ${passed ? 'all parts pass' : 'FAILED'}`);
process.exit(passed ? 0 : 1);
