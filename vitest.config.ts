import { availableParallelism } from 'node:os';
import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** Files that take longest. Where vitest has no times of an earlier run, as in a fresh clone, one could begin last. */
const LONG = [
  'test/emulator/kernels.test.ts',
  'test/emulator/counters.test.ts',
  'test/emulator/hopper.test.ts',
  'test/conformance/attention.test.ts',
  'test/conformance/accumulation.test.ts',
  'test/adapters/methods.test.ts',
  'test/reliability/cuda-faults.test.ts',
  'test/reliability/cuda-batch-invariant.test.ts',
  'test/reliability/cuda-workers.test.ts',
  'test/conformance/grouped-lora.test.ts',
  'test/conformance/cross-entropy.test.ts',
  'test/conformance/lora-hopper.test.ts',
  'test/package/packed.test.ts',
  'test/conformance/determinism.test.ts',
  'test/emulator/emulate.test.ts',
  'test/finetune/finetune-command.test.ts',
];

class LongFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const place = ({ moduleId }: TestSpecification): number => {
      const at = LONG.findIndex((file) => moduleId.endsWith(file));
      return at < 0 ? LONG.length : at;
    };
    const sorted = await super.sort(files);
    return sorted.sort((a, b) => place(a) - place(b));
  }
}

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // A native addon and its threads belong to one process per test file.
    pool: 'forks',
    sequence: { sequencer: LongFirst },
    // Vitest leaves a core free; of two, that would be one file at a time.
    maxWorkers: Math.max(2, availableParallelism() - 1),
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
