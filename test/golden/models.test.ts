// Recorded decoder models, each from the config.json of both generations of transformers.
import { describe, it } from 'vitest';
import { configGenerations, ModelCase, modelIds } from './models/cases.js';
import { checkModel } from './models/check-model.js';
import { oracleRunner } from './models/oracle-runner.js';
import { type ModelRunner, withFolder } from './models/runner.js';

const runners: readonly ModelRunner[] = [oracleRunner];

describe.each(runners)('$name', (runner) => {
  describe.each(modelIds)('%s', (id) => {
    it.each(configGenerations)('config.json of transformers %s', async (generation) => {
      const golden = new ModelCase(id);
      await withFolder(golden, generation, async (folder) => {
        const model = await runner.open(golden, folder);
        try {
          await checkModel(golden, model, runner.precision);
        } finally {
          model.dispose();
        }
      });
    });
  });
});
