// The copied golden data are whole: every file is the one that the manifest describes, and no case
// of a group that the library implements has been lost.
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { dirname, join, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { caseIds, goldenFiles, loadCase } from './case-file.js';
import { modelFiles, modelIds, modelsFolder } from './models/cases.js';

const FOLDER = dirname(fileURLToPath(import.meta.url));
const GROUPS = {
  quant: 60,
  matmul: 15,
  matmul_cpu_bf16: 2,
  lora: 26,
  qlora: 16,
  mixed_batch: 5,
  tuners: 59,
  routing: 6,
  rng: 1,
  optim: 30,
  trajectory: 5,
  merging: 23,
  inits: 20,
  linalg: 7,
  privacy: 4,
  adalora: 2,
  'formats/fp8': 10,
  'formats/mx': 11,
  'formats/nvfp4': 5,
  'formats/gguf': 16,
  'formats/gptq': 11,
  'formats/awq': 5,
  'formats/hqq': 7,
  'formats/compressed_tensors': 6,
  'formats/lora': 11,
  'formats/folder': 10,
} as const;

describe('golden data', () => {
  it('has the digest that the manifest lists, file by file', () => {
    for (const { path, sha256 } of goldenFiles) {
      const digest = createHash('sha256')
        .update(readFileSync(join(FOLDER, path)))
        .digest('hex');
      expect(digest, path).toBe(sha256);
    }
  });

  it('has no file beside those listed', () => {
    const listed = new Set(goldenFiles.map(({ path }) => path));
    for (const group of Object.keys(GROUPS)) {
      for (const name of readdirSync(join(FOLDER, group), { recursive: true }) as string[]) {
        if (statSync(join(FOLDER, group, name)).isDirectory()) continue;
        const path = join(group, name).split(sep).join('/');
        expect(listed.has(path), path).toBe(true);
      }
    }
  });

  it.each(Object.entries(GROUPS))(
    '%s: %i cases, each with rules or with a file of expectations',
    (group, count) => {
      const ids = caseIds(group);
      expect(ids.length).toBe(count);
      for (const id of ids) {
        // Or it is what has to be written back, byte for byte.
        const own = ids.includes(`${id}.expected`) || id === 'quant/state_dict_int8';
        expect(own ? 1 : loadCase(id).rules.length, id).toBeGreaterThan(0);
      }
    },
  );
});

describe('recorded models', () => {
  it('have the digests that their manifest lists', () => {
    for (const { path, sha256 } of modelFiles) {
      const digest = createHash('sha256')
        .update(readFileSync(join(modelsFolder, path)))
        .digest('hex');
      expect(digest, path).toBe(sha256);
    }
  });

  it('are all there, and nothing beside them', () => {
    expect(modelIds).toHaveLength(15);
    const listed = new Set(modelFiles.map(({ path }) => path));
    const names = readdirSync(modelsFolder, { recursive: true }) as string[];
    const data = names
      .map((name) => name.split(sep).join('/'))
      .filter((name) => statSync(join(modelsFolder, name)).isFile())
      .filter((name) => !name.endsWith('.ts') && name !== 'manifest.json');
    expect(data.filter((name) => !listed.has(name))).toEqual([]);
  });
});
