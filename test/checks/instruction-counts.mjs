// Instructions of the hot CPU kernels, counted by callgrind, against test/checks/instruction-counts.json:
// the one guard of their speed that other work on the machine cannot move.
//   node test/checks/instruction-counts.mjs [--update]
// A count is the difference of two runs, one call apart, so that what happens once is not in it. AVX2 is
// the widest set that valgrind runs. Another compiler makes other counts: each major version has its own.
import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const kTolerance = 0.02;
const root = join(import.meta.dirname, '..', '..');
const file = join(import.meta.dirname, 'instruction-counts.json');
const update = process.argv.includes('--update');

function run(command, args) {
  const done = spawnSync(command, args, { cwd: root, encoding: 'utf8' });
  if (done.error?.code === 'ENOENT') {
    console.error(`${command} is not installed: on Debian, apt-get install ${command}`);
    process.exit(2);
  }
  if (done.status !== 0) {
    console.error(`${command} ${args.join(' ')}\n${done.stdout}${done.stderr}`);
    process.exit(1);
  }
  return done;
}

run(process.execPath, ['native/build.mjs', 'build', '--silent', '--target', 'kernel_counts']);

/** Which compiler the build folder uses, e.g. `GNU 12 x86_64`. */
function compiler() {
  const { stdout } = run('cmake', ['-LA', '-N', 'build']);
  const path = /^CMAKE_CXX_COMPILER:\w+=(.*)$/m.exec(stdout)?.[1] ?? 'c++';
  const version = run(path, ['-dumpversion']).stdout.split('.')[0].trim();
  const name = /clang/i.test(run(path, ['--version']).stdout) ? 'Clang' : 'GNU';
  return `${name} ${version} ${process.arch}`;
}

function instructions(kernel, repeats) {
  const program = join(root, 'build', 'kernel_counts');
  const { stderr } = run('valgrind', [
    '--tool=callgrind',
    '--callgrind-out-file=/dev/null',
    program,
    'avx2',
    kernel,
    String(repeats),
  ]);
  return Number(/Collected : (\d+)/.exec(stderr)?.[1]);
}

const golden = JSON.parse(readFileSync(file, 'utf8'));
const key = compiler();
const expected = golden[key];
if (expected === undefined && !update) {
  const known = Object.keys(golden).join(', ');
  console.log(
    `no counts for ${key}, only for ${known}: nothing compared. Record them: npm run check:instructions -- --update`,
  );
  process.exit(0);
}
let failures = 0;
const counted = {};
for (const kernel of ['generate', 'forward', 'backward', 'quantize']) {
  const count = instructions(kernel, 3) - instructions(kernel, 2);
  counted[kernel] = count;
  const before = expected?.[kernel];
  const change = before === undefined ? Number.NaN : count / before - 1;
  const bad = !update && !(Math.abs(change) <= kTolerance);
  if (bad) failures += 1;
  const percent = Number.isNaN(change) ? 'new' : `${(100 * change).toFixed(2)} %`;
  console.log(
    `${bad ? 'FAIL' : 'ok  '} ${kernel.padEnd(10)} ${String(count).padStart(12)}  ${percent}`,
  );
}
if (update) {
  golden[key] = counted;
  writeFileSync(file, `${JSON.stringify(golden, null, 2)}\n`);
}
if (failures > 0) {
  console.error(
    'Instruction counts moved by more than 2 %. Find out why; if it is intended, run with -- --update and note it in docs/performance/',
  );
}
process.exit(failures > 0 ? 1 : 0);
