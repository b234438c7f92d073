// Options of statistics: a misspelt one is named, before anything runs.

import { describe, expect, it } from 'vitest';
import * as lowrank from '../../lib/index.js';

const calls: Record<string, () => unknown> = {
  noiseForPrivacy: () => lowrank.noiseForPrivacy({ epsilonn: 1 } as never),
  privacyAccountant: () => lowrank.privacyAccountant({ noize: 1 } as never),
  Sensitivities: () => new lowrank.Sensitivities({ betaa: 1 } as never),
};

describe('options of statistics', () => {
  it.each(Object.entries(calls))('%s names an unknown option', (_name, call) => {
    expect(call).toThrow(expect.objectContaining({ code: 'ERR_VALUE' }));
    expect(call).toThrow(/epsilonn|noize|betaa/);
  });
});
