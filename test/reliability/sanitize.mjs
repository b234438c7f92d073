// The test suite under a sanitizer, which must first report bugs planted for it. asan is that of addresses and
// that of undefined behaviour in one build. --smoke runs a few files, and instruments of the instruction sets
// only the one that those files run: with asan the one that this machine chooses. The others' kernels are the plain
// build's.
// What a file repeats it repeats less often: a sanitizer reports a bug the first time.
//   node test/reliability/sanitize.mjs asan|tsan [--smoke] [vitest arguments]
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

const root = resolve(import.meta.dirname, '..', '..');
const here = import.meta.dirname;
const EXIT = 99;

// timeScale: how much longer things may take; a run under a sanitizer is no measurement.
const TOOLS = {
  asan: {
    // In this order both write to the log: of an address its summary, the rest goes to stderr.
    runtime: ['libubsan.so', 'libasan.so'],
    timeScale: 20,
    planted: {
      overRead: 'heap-buffer-overflow',
      overReadArray: 'heap-buffer-overflow',
      useAfterFree: 'heap-use-after-free',
      leak: '4321 byte(s) leaked',
      floatCast: 'is outside the range of representable values',
      overflow: 'signed integer overflow',
      misaligned: 'misaligned address',
    },
    fork: 'overRead',
    options: (log) => ({
      ASAN_OPTIONS: `verify_asan_link_order=0:exitcode=${EXIT}:detect_leaks=0:allocator_may_return_null=1:log_path=${log}`,
      UBSAN_OPTIONS: `exitcode=${EXIT}:halt_on_error=1:print_stacktrace=1:log_path=${log}`,
      LSAN_OPTIONS: `suppressions=${join(here, 'lsan.supp')}:print_suppressions=0:exitcode=${EXIT}`,
    }),
  },
  tsan: {
    // Threads meet in the queue and between tasks, which are the same in every set: a smoke run takes the set
    // that compiles in a third of the time of the largest.
    smokeSet: 'avx2',
    runtime: ['libtsan.so'],
    timeScale: 60,
    planted: { race: 'data race' },
    // They start commands through a shell, and the preloaded runtime does not survive in one.
    leftOut: ['test/finetune/finetune-command.test.ts', 'test/finetune/other-commands.test.ts'],
    fork: 'race',
    // Without the option V8's own threads give false reports.
    options: (log) => ({
      TSAN_OPTIONS: `exitcode=${EXIT}:ignore_noninstrumented_modules=1:allocator_may_return_null=1:log_path=${log}`,
    }),
  },
};

// What a sanitizer run leaves out, and why.
const LEFT_OUT = [
  'test/checks/**', // no native code
  'test/package/**', // the packed library, which brings the plain addon
  // Resident memory, which the sanitizer's own drowns.
  'test/reliability/memory.test.ts',
  'test/reliability/resident-memory.test.ts',
  'test/reliability/malloc-failure.test.ts', // its shim and the sanitizer would both replace malloc
];

// A cut through every layer, for the continuous build.
const SMOKE = [
  'test/conformance/random.test.ts',
  'test/conformance/quantise.test.ts',
  'test/golden/quant.test.ts',
  'test/reliability/leaks.test.ts',
  'test/reliability/workers.test.ts',
];

const [name, ...rest] = process.argv.slice(2);
const tool = TOOLS[name];
if (tool === undefined) {
  console.error(`usage: sanitize.mjs ${Object.keys(TOOLS).join('|')} [--smoke] [vitest arguments]`);
  process.exit(2);
}
const smoke = rest.includes('--smoke');
const given = rest.filter((argument) => argument !== '--smoke');

const logs = mkdtempSync(join(tmpdir(), `lowrank-${name}-`));
const built = join(root, 'build', name);

// An allocation that the sanitizer refuses is an answer to a test of impossible sizes, no finding.
const REFUSED = /^==\d+==(WARNING: \w+ failed to allocate|HINT: )/;

/** Reports written since the last call. Every process writes its own file. */
function takeReports() {
  const texts = [];
  for (const file of readdirSync(logs)) {
    const text = readFileSync(join(logs, file), 'utf8');
    if (text.split('\n').some((line) => line !== '' && !REFUSED.test(line))) texts.push(text);
    rmSync(join(logs, file));
  }
  return texts;
}

function environment() {
  const preload = tool.runtime
    .map((name) => execFileSync('g++', [`-print-file-name=${name}`], { encoding: 'utf8' }).trim())
    .join(':');
  return {
    ...process.env,
    LD_PRELOAD: preload,
    ...tool.options(join(logs, 'report')),
    LOWRANK_BINDING: join(built, 'lowrank.node'),
    LOWRANK_PLANT: join(built, 'sanitizer_plant.node'),
    LOWRANK_TIME_SCALE: String(tool.timeScale),
    ...(smoke && { LOWRANK_RELIABILITY: 'few', LOWRANK_ISA: isa }),
  };
}

function node(args, env, quiet) {
  const stdio = quiet ? ['ignore', 'ignore', 'ignore'] : 'inherit';
  return spawnSync(process.execPath, args, { cwd: root, env, stdio }).status;
}

function vitest(args, env, quiet) {
  return node([join(root, 'node_modules', 'vitest', 'vitest.mjs'), 'run', ...args], env, quiet);
}

function fail(message) {
  console.error(`${name}: ${message}`);
  rmSync(logs, { recursive: true, force: true });
  process.exit(1);
}

function proveControls(env) {
  for (const [bug, report] of Object.entries(tool.planted)) {
    const code = `require(process.env.LOWRANK_PLANT).${bug}(new Uint8Array(65536))`;
    const leaks = name === 'asan' ? { ASAN_OPTIONS: `${env.ASAN_OPTIONS}:detect_leaks=1` } : {};
    const status = node(['-e', code], { ...env, ...leaks }, true);
    const seen = takeReports().some((text) => text.includes(report));
    if (status !== EXIT || !seen) fail(`the planted ${bug} was not reported (exit ${status})`);
    console.log(`${name}: planted ${bug} reported`);
  }
  const planted = join(here, 'planted');
  const args = ['--root', planted, '--config', join(planted, 'vitest.config.ts')];
  const status = vitest(args, { ...env, LOWRANK_PLANTED: tool.fork }, true);
  if (takeReports().length === 0) fail('a bug in a forked test file was not reported');
  console.log(`${name}: planted ${tool.fork} in a forked test file reported (exit ${status})`);
  // And an ordinary run is clean, so that a report means something.
  if (node(['-e', 'require(process.env.LOWRANK_BINDING)'], env, true) !== 0) {
    fail(`loading the addon alone is reported:\n${takeReports().join('\n')}`);
  }
}

/** The instruction set of a smoke run, of those that this machine runs. */
function smokeSet() {
  const index = pathToFileURL(join(root, 'dist', 'index.js'));
  const code = `import(${JSON.stringify(String(index))}).then((m) => console.log(m.devices().find((d) => d.device === 'cpu').isa))`;
  const chosen = (env) =>
    execFileSync(process.execPath, ['-e', code], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
      env: { ...process.env, ...env },
    }).trim();
  if (tool.smokeSet === undefined) return chosen();
  const wanted = chosen({ LOWRANK_ISA: tool.smokeSet });
  return wanted === tool.smokeSet ? wanted : chosen();
}

const isa = smoke ? smokeSet() : '';
const set = `-DLOWRANK_SANITIZE_SET=${isa.replaceAll('-', '_')}`;
// The other sets need not be compiled again: the plain build has them.
const plain = join(root, 'build', 'CMakeFiles', 'lowrank_core.dir');
const objects = `-DLOWRANK_PLAIN_OBJECTS=${smoke && existsSync(plain) ? plain : ''}`;
execFileSync('cmake', ['--preset', name, set, objects], {
  cwd: root,
  stdio: ['ignore', 'ignore', 'inherit'],
});
execFileSync('cmake', ['--build', '--preset', name, '--parallel', '2'], {
  cwd: root,
  stdio: ['ignore', 'ignore', 'inherit'],
});
const env = environment();
proveControls(env);

const scale = `${60_000 * tool.timeScale}`;
const status = vitest(
  [
    ...(smoke ? SMOKE : []),
    ...given,
    ...[...LEFT_OUT, ...(tool.leftOut ?? [])].flatMap((pattern) => ['--exclude', pattern]),
    '--testTimeout',
    scale,
    '--hookTimeout',
    scale,
  ],
  env,
  false,
);
const reports = takeReports();
for (const text of reports.slice(0, 5)) console.error(text);
if (reports.length > 0) fail(`${reports.length} processes were reported`);
if (status !== 0) fail(`the suite ended with ${status}`);
console.log(`${name}: no findings`);
rmSync(logs, { recursive: true, force: true });
