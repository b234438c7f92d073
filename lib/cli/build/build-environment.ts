import os from 'node:os';

/**
 * The environment of a build: a compiler at a time for each processor, unless the user's own environment says
 * otherwise. By themselves Make, under CMake and under node-gyp alike, takes one, and Ninja more than there are.
 */
export function buildEnvironment(): NodeJS.ProcessEnv {
  const processors = String(os.availableParallelism());
  return { CMAKE_BUILD_PARALLEL_LEVEL: processors, JOBS: processors, ...process.env };
}
