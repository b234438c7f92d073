// The PTX of compute_90 from that of compute_80, which holds as comments what only the former has:
// `// sm_90: griddepcontrol.wait;` (cuda/ptx.cuh) becomes the instruction.
//   node ptx-for-sm90.mjs IN OUT
import { readFileSync, writeFileSync } from 'node:fs';

const [input, output] = process.argv.slice(2);
const text = readFileSync(input, 'utf8');
if (!/^\.target sm_80$/m.test(text)) throw new Error(`${input}: not the PTX of compute_80`);
writeFileSync(
  output,
  text.replace(/^\.target sm_80$/m, '.target sm_90').replaceAll(/\/\/ sm_90: (.*;)$/gm, '$1'),
);
