// The PTX that machine code is made of, from the front end's:
//   node machine-ptx.mjs [--lines] IN TARGET=OUT ...
// TARGET is IN's own (sm_80, sm_90a), or sm_90 of an IN for sm_80: that holds as comments what only
// the former has, and `// sm_90: griddepcontrol.wait;` (cuda/ptx.cuh) becomes the instruction.
// Without --lines nothing is left of where it came from: ptxas would put all of the PTX and its
// lines into the machine code, three quarters of the file, and take a tenth longer.
import { readFileSync, writeFileSync } from 'node:fs';

const rest = process.argv.slice(2);
const lines = rest[0] === '--lines';
const [input, ...outputs] = lines ? rest.slice(1) : rest;
const text = readFileSync(input, 'utf8');
const own = /^\.target (sm_\d+a?)$/m.exec(text)?.[1];

const kLines = /^\t\.(?:loc|file)\t.*\n/gm;
const kNames = /^\t\.section\t\.debug_\w+\n\t\{\n[^{}]*\}\n/gm;
const kept = lines ? text : text.replaceAll(kLines, '').replaceAll(kNames, '');
if (!lines && /^\s*\.(?:loc|file|section)\b/m.test(kept)) {
  throw new Error(`${input}: lines that are written in another way than this tool knows`);
}

for (const output of outputs) {
  const [target, file] = output.split('=');
  if (target !== own && (target !== 'sm_90' || own !== 'sm_80')) {
    throw new Error(`${input}: PTX for ${own}, which is not made into that for ${target}`);
  }
  writeFileSync(
    file,
    target === own
      ? kept
      : kept.replace(/^\.target sm_80$/m, '.target sm_90').replaceAll(/\/\/ sm_90: (.*;)$/gm, '$1'),
  );
}
