// clang-format over native/ and cuda/, clang-tidy over native/, with the newest version found.
//   node test/checks/native-lint.mjs format|tidy
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';

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
execFileSync(
  'cmake',
  ['--preset', 'release', '-DCMAKE_EXPORT_COMPILE_COMMANDS=ON', '-DLOWRANK_UNITY=OFF'],
  {
    stdio: 'ignore',
  },
);
const commands = JSON.parse(readFileSync('build/release/compile_commands.json', 'utf8'));
// One instruction set stands for all: they share one body.
// Ours, and the checks of the CPU kernels; those of the emulator take flags that clang does not know.
const linted = ['native/', 'test/native/kernel'].map((path) => `${process.cwd()}/${path}`);
const files = commands
  .map(({ file }) => file)
  .filter(
    (file) =>
      linted.some((path) => file.startsWith(path)) &&
      !/(kernels|isa\/model)_(?!portable|check)\w+\.cpp$/.test(file),
  );
const queue = [...files];
let failed = false;
async function worker() {
  for (let file = queue.shift(); file !== undefined; file = queue.shift()) {
    const code = await new Promise((resolve) => {
      const child = spawn(tidy, ['-p', 'build/release', '--quiet', file], {
        stdio: ['ignore', 'inherit', 'ignore'],
      });
      child.on('close', resolve);
    });
    if (code !== 0) failed = true;
  }
}
await Promise.all(Array.from({ length: availableParallelism() }, worker));
console.log(`clang-tidy: ${files.length} files${failed ? '' : ', clean'}`);
process.exit(failed ? 1 : 0);
