/** ggml, as node-llama-cpp ships it: the block types of GGUF, activations quantised to int8. */

import { readdirSync } from 'node:fs';
import path from 'node:path';
import { GGUF_TYPES } from '../../checkpoint/gguf/block-types.js';
import type { GgufBlockType } from '../../checkpoint/gguf/blocks/parts.js';
import { resolvePackage } from '../find-package.js';
import { compileProgram } from '../foreign.js';
import { ggufTypeOf, type WeightFormat } from '../job.js';
import type { Peer } from '../peer.js';
import { compiledProgram } from './compiled.js';

const kInstall = 'npm install node-llama-cpp, and a C++ compiler';

/** The folder of its libraries for this processor, on Linux. */
function libraries(): { folder: string; version: string } | undefined {
  const found = resolvePackage(`@node-llama-cpp/linux-${process.arch}`);
  if (found === undefined) return undefined;
  const bins = path.join(found.folder, 'bins');
  try {
    const folder = readdirSync(bins)
      .map((name) => path.join(bins, name))
      .find((entry) => readdirSync(entry).includes('libggml-base.so'));
    return folder === undefined ? undefined : { folder, version: found.version };
  } catch {
    return undefined;
  }
}

/** The type of the weight: what the format names, else what ggml has for as many bits. */
const typeFor = (format: WeightFormat): GgufBlockType =>
  ggufTypeOf(format) ?? (format.startsWith('int8') ? 'Q8_0' : 'Q4_0');

const compiled = () => compileProgram('ggml_peer.cpp', ['-ldl']);

export const ggmlPeer: Peer = {
  name: 'ggml',
  find: () => {
    const found = libraries();
    if (found === undefined) return { missing: kInstall };
    const program = compiled();
    return 'program' in program
      ? { version: `of node-llama-cpp ${found.version}` }
      : { missing: `${kInstall} (${program.missing})` };
  },
  refuses: ({ op, format, dtype, K, device }) => {
    if (op !== 'matmul') return 'only matmul';
    if (format === 'none') return 'only quantised weights';
    if (dtype !== 'f32') return 'only f32';
    const { elements } = GGUF_TYPES[typeFor(format)];
    if (K % elements !== 0) return `only K of a multiple of ${elements}`;
    return device === 'cpu' || device === 'reference' ? undefined : 'measured on the CPU only';
  },
  computes: 'int8',
  program: (job) => {
    const program = compiled();
    const command = 'program' in program ? program.program : 'false';
    const { args, ...rest } = compiledProgram(command, job);
    const type = typeFor(job.format);
    return {
      ...rest,
      args: [...args, libraries()?.folder ?? '', type, String(GGUF_TYPES[type].id)],
    };
  },
};
