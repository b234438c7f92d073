/**
 * `node native/build.mjs build [options of cmake-js]`: cmake-js with one compiler at a time for each processor. CMake
 * leaves their number to the build tool: Make then takes one, and Ninja one or two more than there are processors,
 * which took a quarter longer on two. CMAKE_BUILD_PARALLEL_LEVEL, where it is set, says another number.
 * `lowrank build` has the same from lib/cli/build-environment.ts, which is not built yet when this runs.
 */
import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import os from 'node:os';
import path from 'node:path';

const folder = path.dirname(createRequire(import.meta.url).resolve('cmake-js/package.json'));
const script = path.join(folder, 'bin', 'cmake-js');
const { status } = spawnSync(process.execPath, [script, ...process.argv.slice(2)], {
  stdio: 'inherit',
  env: { CMAKE_BUILD_PARALLEL_LEVEL: String(os.availableParallelism()), ...process.env },
});
process.exitCode = status ?? 1;
