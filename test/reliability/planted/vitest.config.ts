/** The suite of one planted bug: sanitize.mjs runs it to see that a finding in a fork fails a run. */
import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: { include: ['**/*.plant.ts'], pool: 'forks' },
});
