/**
 * The counters of every kernel (shared-memory wavefronts and global sectors by source line, products,
 * copies, bytes) on the emulator's check library, against the committed table counters.json. Fails on
 * every difference, and on an access above 1.10 of the ideal that counter-reasons.json does not
 * explain. Needs no nvcc.
 *
 *   node test/emulator/counters.mjs [--update] [--binding FILE]
 */
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { build } from 'esbuild';

const { values: args } = parseArgs({
  options: {
    update: { type: 'boolean', default: false },
    binding: { type: 'string', default: process.env.LOWRANK_BINDING ?? '' },
  },
});
const root = join(import.meta.dirname, '..', '..');
const binding = args.binding || join(root, 'build', 'Release', 'lowrank.node');
const library = join(dirname(binding), 'lowrank-emulator-check.so');
const goldenFile = join(import.meta.dirname, 'counters.json');
if (!existsSync(library)) {
  console.error(`${library} is missing: npm run build:emulator`);
  process.exit(2);
}

const folder = mkdtempSync(join(tmpdir(), 'lowrank-counters-'));
const bundle = async (name, file) => {
  const outfile = join(folder, name);
  const options = {
    bundle: true,
    platform: 'node',
    format: 'esm',
    target: 'node20',
    logLevel: 'warning',
  };
  await build({ ...options, entryPoints: [join(import.meta.dirname, file)], outfile });
  return outfile;
};

/** Runs a part of the cases; gives back its trace. */
async function countPart(program, index, { sm, multiprocessors }) {
  const trace = join(folder, `trace-${index}`);
  const child = spawn(process.execPath, [program, String(index)], {
    env: {
      ...process.env,
      LOWRANK_BINDING: binding,
      LOWRANK_EMULATOR: 'check',
      LOWRANK_EMULATOR_CHECK: '0',
      LOWRANK_EMULATOR_COUNTERS: '1',
      LOWRANK_EMULATOR_SM: String(sm),
      ...(multiprocessors && { LOWRANK_EMULATOR_MULTIPROCESSORS: String(multiprocessors) }),
      LOWRANK_EMULATOR_TRACE: trace,
    },
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  const status = await new Promise((resolve) => child.on('close', resolve));
  if (status !== 0) throw new Error(`part ${index} ended with ${status}`);
  return readFileSync(trace, 'utf8');
}

let problems = [];
let kernels = 0;
try {
  const program = await bundle('count-cases.mjs', 'programs/count-cases.ts');
  const { COUNTED_PARTS } = await import(await bundle('counted-cases.mjs', 'counted-cases.ts'));
  const { differences, fromJson, tableOf, toJson, unexplained } = await import(
    await bundle('counter-table.mjs', 'counter-table.ts')
  );
  const waiting = [...COUNTED_PARTS.entries()];
  const traces = [];
  const worker = async () => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      traces.push(await countPart(program, ...next));
    }
  };
  await Promise.all([worker(), worker()]);
  const table = tableOf(traces, root);
  kernels = table.size;
  if (args.update) writeFileSync(goldenFile, toJson(table));
  const reasons = JSON.parse(
    readFileSync(join(import.meta.dirname, 'counter-reasons.json'), 'utf8'),
  );
  problems = [
    ...differences(table, fromJson(readFileSync(goldenFile, 'utf8'))),
    ...unexplained(table, reasons),
  ];
} finally {
  rmSync(folder, { recursive: true });
}
for (const problem of problems) console.error(problem);
console.log(
  `counters: ${kernels} kernels: ${problems.length === 0 ? 'as the table says' : `${problems.length} problems`}`,
);
process.exit(problems.length === 0 ? 0 : 1);
