// Translates nvcc's PTX to C++ over the emulator's runtime: the emulator's PTX mode.
//   node translate.mjs --root REPOSITORY FILE.ptx OUT.cpp [OUT.cpp ...]
// Kernels are spread over the files by size. What is not understood ends it with the line.
import { readFileSync, writeFileSync } from 'node:fs';
import { emit } from './emit.mjs';
import { PtxError, parse } from './parse.mjs';

const [flag, root, input, ...outputs] = process.argv.slice(2);
if (flag !== '--root' || outputs.length === 0) {
  console.error('usage: translate.mjs --root REPOSITORY FILE.ptx OUT.cpp [OUT.cpp ...]');
  process.exit(2);
}
try {
  const { texts } = emit(parse(readFileSync(input, 'utf8')), root, outputs.length);
  outputs.forEach((output, n) => {
    writeFileSync(output, texts[n]);
  });
} catch (error) {
  if (!(error instanceof PtxError)) throw error;
  console.error(`${input}:${error.line}: ${error.message}`);
  process.exit(1);
}
