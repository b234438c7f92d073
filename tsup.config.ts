import { defineConfig } from 'tsup';

/** One build for ES modules, CommonJS and types; the command line is an ES module only. */
export default defineConfig([
  {
    entry: { index: 'lib/index.ts', tfjs: 'lib/tfjs/index.ts' },
    format: ['esm', 'cjs'],
    dts: true,
    shims: true,
    target: 'node20',
    platform: 'node',
    outDir: 'dist',
    clean: true,
    splitting: true,
    external: ['@tensorflow/tfjs', '@tensorflow/tfjs-core', '@tensorflow/tfjs-backend-wasm'],
  },
  {
    entry: { 'cli/main': 'lib/cli/main.ts', 'cli/bench-worker': 'lib/bench/worker.ts' },
    format: ['esm'],
    target: 'node20',
    platform: 'node',
    outDir: 'dist',
    external: ['@tensorflow/tfjs', '@tensorflow/tfjs-core', '@tensorflow/tfjs-backend-wasm'],
  },
]);
