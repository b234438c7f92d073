// clang-format over native/ and cuda/, clang-tidy over native/, with the newest version found.
//   node test/checks/native-lint.mjs format|tidy [--deep]
// LOWRANK_LINT_CACHE=FOLDER keeps the names of clean files there, by a hash of all that clang-tidy reads.
import { execFile, execFileSync, spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';

function find(tool) {
  for (const name of [`${tool}-19`, tool]) {
    if (spawnSync(name, ['--version']).status === 0) return name;
  }
  console.error(`${tool} is not installed: on Debian, apt-get install ${tool}-19`);
  process.exit(2);
}

const mode = process.argv[2];
const tracked = execFileSync('git', ['ls-files', 'native', 'cuda'], { encoding: 'utf8' })
  .split('\n')
  .filter((file) => /\.(cpp|h|cu|cuh)$/.test(file));

if (mode === 'format') {
  const run = spawnSync(find('clang-format'), ['--dry-run', '-Werror', ...tracked], {
    stdio: 'inherit',
  });
  process.exit(run.status ?? 1);
}

const tidy = find('clang-tidy');
const build = path.resolve('build', 'release');
execFileSync(
  'cmake',
  ['--preset', 'release', '-DCMAKE_EXPORT_COMPILE_COMMANDS=ON', '-DLOWRANK_UNITY=ON'],
  { stdio: 'ignore' },
);
const commands = JSON.parse(readFileSync(path.join(build, 'compile_commands.json'), 'utf8'));
// One instruction set stands for all: they share one body.
// Ours, and the checks of the CPU kernels; those of the emulator take flags that clang does not know.
const linted = ['native/', 'test/native/kernel'].map((name) => `${process.cwd()}/${name}`);
const isLinted = (file) =>
  linted.some((name) => file.startsWith(name)) &&
  !/(kernels|isa\/model)_(?!portable|check)\w+\.cpp$/.test(file);

/**
 * Most of a small file's time goes to the headers that it includes, so the files that are compiled together are
 * looked at together: one after the other in one file. Not by #include: the analyzer follows no paths through
 * functions of included files.
 */
const folder = path.join(build, 'lint');
rmSync(folder, { recursive: true, force: true });
mkdirSync(folder, { recursive: true });
/** What is looked at: the file itself, or the parts of a joined one, [{part, from: its first line}]. */
const origins = new Map();
const units = commands.flatMap(({ directory, command, file }) => {
  if (!/\/Unity\/\w+\.cxx$/.test(file)) return isLinted(file) ? [{ directory, command, file }] : [];
  const included = readFileSync(file, 'utf8').matchAll(/#include "(.*)"/g);
  const parts = [...included].map(([, part]) => part).filter(isLinted);
  if (parts.length === 0) return [];
  const joined = path.join(folder, `${origins.size}.cpp`);
  let text = '';
  const starts = parts.map((part) => {
    const from = text.split('\n').length;
    text += `${readFileSync(part, 'utf8')}\n`;
    return { part, from };
  });
  writeFileSync(joined, text);
  origins.set(joined, starts);
  return [{ directory, command: command.replaceAll(file, joined), file: joined }];
});
writeFileSync(path.join(folder, 'compile_commands.json'), JSON.stringify(units));

/** A report with the names and lines of the files that were joined. */
function named(report, file) {
  const starts = origins.get(file);
  if (starts === undefined) return report;
  return report.replaceAll(new RegExp(`${file}:(\\d+)`, 'g'), (_, line) => {
    const { part, from } = starts.findLast((start) => start.from <= Number(line));
    return `${path.relative(process.cwd(), part)}:${Number(line) - from + 1}`;
  });
}

/**
 * How many states of a function the analyzer visits. Clang's own 225,000 (--deep) take four times as long for
 * kernels, whose states are those of loops that repeat.
 */
const NODES = process.argv.includes('--deep') ? 225_000 : 40_000;
const budget = ['-analyzer-config', `max-nodes=${NODES}`].flatMap((word) => [
  '--extra-arg=-Xclang',
  `--extra-arg=${word}`,
]);

const cache = process.env.LOWRANK_LINT_CACHE;
const rules = `${NODES}${execFileSync(tidy, ['--version'])}${readFileSync('.clang-tidy')}`;

/** The file in the cache that says that this unit is clean, or undefined without a cache. */
async function cleanMark({ directory, command }) {
  if (cache === undefined) return undefined;
  const list = command.replace(/ -o \S+/, '').replace(/ -c /, ' -M ');
  const { stdout } = await promisify(execFile)('sh', ['-c', list], { cwd: directory });
  const files = stdout.replaceAll('\\\n', ' ').trim().split(/\s+/).slice(1);
  const hash = createHash('sha256').update(`${rules}${command}`.replaceAll(process.cwd(), '.'));
  for (const file of files)
    hash.update(`\n// ${path.relative('', file)}\n`).update(readFileSync(file));
  return path.join(cache, hash.digest('hex'));
}

// The longest first.
const sizeOf = ({ file }) => readFileSync(file).length;
const queue = units.sort((a, b) => sizeOf(b) - sizeOf(a));
const count = units.length - origins.size + [...origins.values()].flat().length;
let failed = false;
if (cache !== undefined) mkdirSync(cache, { recursive: true });
async function worker() {
  for (let unit = queue.shift(); unit !== undefined; unit = queue.shift()) {
    const { file } = unit;
    const mark = await cleanMark(unit);
    if (mark !== undefined && existsSync(mark)) continue;
    const child = spawn(tidy, ['-p', folder, '--quiet', ...budget, file], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    let report = '';
    child.stdout.setEncoding('utf8').on('data', (text) => {
      report += text;
    });
    const code = await new Promise((resolve) => child.on('close', resolve));
    process.stdout.write(named(report, file));
    if (code !== 0) failed = true;
    else if (mark !== undefined) writeFileSync(mark, '');
  }
}
await Promise.all(Array.from({ length: availableParallelism() }, worker));
console.log(`clang-tidy: ${count} files${failed ? '' : ', clean'}`);
process.exit(failed ? 1 : 0);
