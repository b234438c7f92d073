/** The suite that llama.cpp judges. Its binary is not a dependency of the project: run.mjs installs it here. */
import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/llama-cpp/*.judge.ts'],
    pool: 'forks',
    testTimeout: 120_000,
    hookTimeout: 120_000,
  },
});
