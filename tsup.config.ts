import { defineConfig, type Options } from 'tsup';

const library = {
  index: 'lib/index.ts',
  adapters: 'lib/entries/adapters.ts',
  checkpoint: 'lib/entries/checkpoint.ts',
  tfjs: 'lib/tfjs/index.ts',
  jax: 'lib/jax/index.ts',
};
const common: Options = {
  target: 'node20',
  platform: 'node',
  outDir: 'dist',
  splitting: true,
  external: [
    '@jax-js/jax',
    '@tensorflow/tfjs',
    '@tensorflow/tfjs-core',
    '@tensorflow/tfjs-backend-wasm',
  ],
};

/**
 * ES modules, and the command line among them: what a user's file imports from `lowrank` is then the copy
 * that the command runs. CommonJS beside them. The types of both come from one pass over the sources,
 * which takes most of the time; it does not check them, `npm run types` does.
 */
export default defineConfig([
  {
    ...common,
    entry: {
      ...library,
      'cli/main': 'lib/cli/main.ts',
      'cli/bench-worker': 'lib/bench/peers/worker.ts',
      'cli/tokenize-worker': 'lib/text/tokenize-worker.ts',
    },
    format: ['esm'],
    clean: true,
  },
  { ...common, entry: library, format: ['cjs'], shims: true },
  {
    ...common,
    entry: library,
    format: ['esm', 'cjs'],
    dts: { only: true, compilerOptions: { noCheck: true } },
  },
]);
