// Packs fat binaries into one file; its format is told in native/cuda/driver/kernel_image.h.
//   node pack-kernels.mjs OUT NVCC NAME=FATBIN=TARGET,TARGET=PTX ...
// The names of a module's kernels, and the version of PTX, come from the PTX that its fat binary was made of.
import { execFileSync } from 'node:child_process';
import { readFileSync, renameSync, writeFileSync } from 'node:fs';

const kAlignment = 64;

const [out, nvcc, ...rows] = process.argv.slice(2);
const version =
  /V(\d[\d.]*)/.exec(execFileSync(nvcc, ['--version'], { encoding: 'utf8' }))?.[1] ?? 'unknown';

const ptxVersions = new Set();
const modules = rows.map((row) => {
  const [name, fatbin, targets, ptx] = row.split('=');
  const text = readFileSync(ptx, 'utf8');
  ptxVersions.add(/^\.version (\d+\.\d+)$/m.exec(text)?.[1]);
  const entries = text.matchAll(/\.entry\s+([\w$]+)/g);
  const kernels = [...new Set([...entries].map((match) => match[1]))].sort();
  return { name, targets, image: readFileSync(fatbin), kernels };
});

const [ptxVersion] = ptxVersions;
if (ptxVersions.size !== 1 || ptxVersion === undefined) {
  throw new Error(`one version of PTX is expected, got ${[...ptxVersions].join(', ')}`);
}

const aligned = (bytes) => Math.ceil(bytes / kAlignment) * kAlignment;
// Fixed width, so that the index is as long before its numbers are known as after.
const digits = (value) => String(value).padStart(12, '0');

function indexText(indexBytes) {
  let offset = aligned(indexBytes);
  const lines = [
    `lowrank-kernels 2 ${digits(indexBytes)}`,
    `compiler nvcc ${version}`,
    `ptx ${ptxVersion}`,
  ];
  for (const { name, targets, image, kernels } of modules) {
    lines.push(`module ${name} ${digits(offset)} ${digits(image.length)} ${targets}`);
    for (const kernel of kernels) lines.push(`kernel ${kernel}`);
    offset = aligned(offset + image.length);
  }
  return `${lines.join('\n')}\n`;
}
const index = indexText(indexText(0).length);

const parts = [Buffer.from(index, 'latin1')];
let length = index.length;
for (const { image } of modules) {
  parts.push(Buffer.alloc(aligned(length) - length), image);
  length = aligned(length) + image.length;
}
// Renamed into place: a process that has the old file open keeps it whole.
writeFileSync(`${out}.part`, Buffer.concat(parts));
renameSync(`${out}.part`, out);
const kernels = new Set(modules.flatMap((module) => module.kernels));
const names = new Set(modules.map((module) => module.name));
console.log(`${out}: ${kernels.size} kernels of ${names.size} files, ${length} bytes`);
