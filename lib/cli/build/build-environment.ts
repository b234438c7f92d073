import os from 'node:os';

/**
 * The environment of a build: one compiler job per processor, unless the user's environment says otherwise. By
 * default Make (under both CMake and node-gyp) runs one job, and Ninja more than there are processors.
 */
export function buildEnvironment(): NodeJS.ProcessEnv {
  const processors = String(os.availableParallelism());
  return { CMAKE_BUILD_PARALLEL_LEVEL: processors, JOBS: processors, ...process.env };
}
