// Installs llama.cpp into this folder and runs the suite that it judges. It needs the npm registry the first time, and Linux on x64.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';

const here = import.meta.dirname ?? new URL('.', import.meta.url).pathname;
const root = join(here, '..', '..');

function give(why) {
  process.stderr.write(`test:llama-cpp did not run: ${why}\n`);
  process.exit(1);
}

function run(command, args, cwd) {
  const { status, error } = spawnSync(command, args, { cwd, stdio: 'inherit' });
  return error === undefined ? status : String(error);
}

if (process.platform !== 'linux' || process.arch !== 'x64') {
  give(`its llama.cpp is built for Linux on x64, this is ${process.platform} on ${process.arch}`);
}
if (!existsSync(join(here, 'node_modules', '@node-llama-cpp', 'linux-x64'))) {
  // Optional dependencies are the builds for GPUs and other systems. `npm ci` would want all of them in the lock file.
  const options = ['--omit=optional', '--ignore-scripts', '--no-save', '--no-audit', '--no-fund'];
  const status = run('npm', ['install', ...options], here);
  if (status !== 0)
    give(`npm could not install node-llama-cpp (${status}); is the registry reachable?`);
}
const vitest = join(root, 'node_modules', 'vitest', 'vitest.mjs');
const status = run(
  process.execPath,
  [vitest, 'run', '--config', join(here, 'vitest.config.ts')],
  root,
);
process.exit(status === 0 ? 0 : 1);
