/**
 * `node native/build.mjs build [options of cmake-js]`: cmake-js with one compiler at a time for each processor. CMake
 * leaves their number to the build tool: Make then takes one, and Ninja one or two more than there are processors,
 * which took a quarter longer on two. CMAKE_BUILD_PARALLEL_LEVEL, where it is set, says another number. `lowrank build`
 * runs this file too.
 *
 * A build folder that was copied with its checkout still names the folder that it was made in: the build tool would go
 * on building there. It is configured anew.
 */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
forgetOtherCheckout(path.join(root, 'build'));
const folder = path.dirname(createRequire(import.meta.url).resolve('cmake-js/package.json'));
const script = path.join(folder, 'bin', 'cmake-js');
const { status } = spawnSync(process.execPath, [script, ...process.argv.slice(2)], {
  cwd: root,
  stdio: 'inherit',
  env: { CMAKE_BUILD_PARALLEL_LEVEL: String(os.availableParallelism()), ...process.env },
});
process.exitCode = status ?? 1;

/** Removes what CMake remembers of another source or build folder, as `cmake --fresh` does. */
function forgetOtherCheckout(build) {
  const cache = path.join(build, 'CMakeCache.txt');
  if (!fs.existsSync(cache)) return;
  const text = fs.readFileSync(cache, 'utf8');
  const named = (key) => new RegExp(`^${key}:INTERNAL=(.*)$`, 'm').exec(text)?.[1] ?? '';
  const source = named('CMAKE_HOME_DIRECTORY');
  if (isFolder(source, root) && isFolder(named('CMAKE_CACHEFILE_DIR'), build)) return;
  process.stderr.write(
    `build: ${build} was configured for ${source || 'an unknown folder'}, not for ${root}: ` +
      'it is configured anew, without the options that were given then\n',
  );
  fs.rmSync(cache);
  fs.rmSync(path.join(build, 'CMakeFiles'), { recursive: true, force: true });
}

/** Whether a path leads to a folder, by any of its names. */
function isFolder(named, folder) {
  const [a, b] = [named, folder].map((each) => fs.statSync(each || '/', { throwIfNoEntry: false }));
  return a !== undefined && a.dev === b.dev && a.ino === b.ino;
}
