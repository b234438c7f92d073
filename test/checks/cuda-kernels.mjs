/**
 * What the compiled kernels cost, against the committed table cuda/resources.json: registers, stack,
 * shared memory and occupancy from the cubins that the build has kept, the width of global accesses
 * and the matrix instructions from its PTX. Nothing is compiled here: run it after a build with nvcc.
 *
 *   node test/checks/cuda-kernels.mjs [--build DIR] [--update] [--trace FILE] [--all]
 *
 * --update writes the table; rows of architectures that the build was not for stay as they are.
 * --trace takes what cuda_plan_table prints: which kernels are launched on which architecture, with
 * how much dynamic shared memory; without it the table's own is believed. --all assembles the build's
 * PTX for the architectures of a package that the build was not for (ptxas, on the PATH).
 *
 * Fails where a kernel has a stack frame, lacks a 16-byte access or matrix instruction that is meant, from
 * sm_90 on does not wait for the launches that it overlaps before it touches memory (an early one: before it
 * stores), mixes a product with a sum that the compiler may contract, cannot be launched on an architecture
 * where plans launch it, is launched by none, or differs from the table.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { parse } from '../../cuda/emulator/ptx/parse.mjs';
import { archOf, readCubin } from './cubin.mjs';
import {
  differences,
  kArchitectures,
  plansOf,
  readPlans,
  readTable,
  updated,
  writeTable,
} from './cuda-table.mjs';
import { storesBeforeWait } from './grid-wait.mjs';
import { kLimits, occupancy } from './occupancy.mjs';

const { values: args } = parseArgs({
  options: {
    build: { type: 'string', default: 'build' },
    update: { type: 'boolean', default: false },
    trace: { type: 'string' },
    all: { type: 'boolean', default: false },
  },
});
const root = path.join(import.meta.dirname, '..', '..');
const folder = path.resolve(root, args.build, 'kernels');
const tableFile = path.join(root, 'cuda', 'resources.json');

if (!existsSync(folder)) {
  console.log(
    `check:cuda: ${folder} is not there, so no kernels were built (no nvcc): nothing to do`,
  );
  process.exit(0);
}

/** What of an instruction is worth counting; undefined: nothing. */
function counted({ name, modifiers, operands, opcode }) {
  const vector = modifiers.find((modifier) => /^v[248]$/.test(modifier)) ?? '';
  if ((name === 'ld' || name === 'st') && modifiers.includes('global')) {
    const bits = Number(/\d+$/.exec(modifiers.at(-1))?.[0]) * Number(vector.slice(1) || 1);
    return `${name}.global ${bits / 8}`;
  }
  if (name === 'cp' && modifiers.includes('tensor')) return 'tensor copy';
  if (name === 'cp' && modifiers.includes('bulk')) return 'bulk copy';
  if (name === 'cp' && modifiers.includes('global')) return `cp.async ${operands[2]}`;
  if (name === 'mma') return opcode.replace('.sync.aligned', '').replace('.row.col', '');
  if (name === 'wgmma' && modifiers[0] === 'mma_async') return opcode.replace('.sync.aligned', '');
  if (name === 'ldmatrix' || name === 'stmatrix') return name;
  return undefined;
}

/** A product or sum of floats that ptxas may fuse, against the rule that all modes give equal bits. */
const mayContract = ({ name, modifiers }) =>
  ['add', 'sub', 'mul'].includes(name) &&
  /^b?f\d/.test(modifiers.at(-1)) &&
  !modifiers.some((modifier) => /^r[nzmp]$/.test(modifier));

function readPtx(functions, problems) {
  const kernels = new Map();
  for (const fn of functions) {
    if (fn.kind !== 'entry') continue;
    const counts = {};
    for (const statement of fn.body.filter(({ kind }) => kind === 'instruction')) {
      const key = counted(statement);
      if (key !== undefined) counts[key] = (counts[key] ?? 0) + 1;
      if (mayContract(statement)) problems.push(`${fn.name}: may be contracted: ${statement.text}`);
    }
    const threads = (fn.directives.get('maxntid') ?? [1024]).reduce((a, b) => a * b);
    for (const pattern of missing(fn.name, counts)) {
      problems.push(`${fn.name}: nothing in its PTX is ${pattern.source}`);
    }
    kernels.set(fn.name, { threads, counts });
  }
  return kernels;
}

/** What a kernel's PTX must hold, by its name; nearly every kernel has an access of 16 bytes besides. */
const kMeant = [
  [
    /_mma_(code4|code8|dense)_/,
    [/^cp\.async 16$/, /^ldmatrix$/, /^mma\.m16n8k16/, /^st\.global 16$/],
  ],
  [
    /^matmul_int8_\d/,
    [/^cp\.async 16$/, /^ldmatrix$/, /^mma\.m16n8k32\.s32\.s8\.u8/, /^st\.global 16$/],
  ],
  [/^grouped_(shrink|forward)_/, [/^ld\.global 16$/]],
  [/^grouped_forward_/, [/^cp\.async 16$/]],
  [
    /^matmul_int8_wgmma_/,
    [/^tensor copy$/, /^wgmma\.mma_async\.m64n256k32/, /^stmatrix$/, /^st\.global 16$/],
  ],
  [
    /^attention_(dq_|dkv_)?b?f16_/,
    [/^cp\.async 16$/, /^ldmatrix$/, /^mma\.m16n8k16/, /^st\.global 16$/],
  ],
  [/^attention_(dq_|dkv_)?f32_/, [/^cp\.async 16$/, /^st\.global 16$/]],
  [/_mma_general_/, [/^ldmatrix$/, /^mma\.m16n8k16/]],
  [
    /^matmul_small_m_(cluster_)?(4bit|8bit|dense)_/,
    [/^ld\.global 16$/, /^cp\.async 16$/, /^mma\.m16n8k16/],
  ],
  [/^matmul_small_m_wgmma_/, [/^ld\.global 16$/, /^wgmma\.mma_async\.m64n64k16/]],
  [/^matmul_wide_m_wgmma_/, [/^ld\.global 16$/, /^wgmma\.mma_async\.m64n128k16/]],
  [/^lora_(shrink|grad|dy)_/, [/^cp\.async 16$/, /^mma\.m16n8k16/]],
  [/^gemm_wgmma_128/, [/^tensor copy$/, /^wgmma\.mma_async\./, /^stmatrix$/, /^st\.global 16$/]],
  [/^gemm_f32_/, [/^cp\.async 16$/]],
  [/^quantize_(4bit|8bit|rows)_/, [/^ld\.global 16$/]],
  [/^dequantize_/, [/^st\.global 16$/]],
];
/** Kernels without a wide access of memory: scales are a 64th of the elements, four random numbers of 16
 * bits are 8 bytes, planes of sums are thin beside what was summed, features are gathered, choices of
 * experts are scattered, blocks of a few features are multiplied element by element, a lane has one row of
 * an adapter's norms, and in the rows of attention a warp reads neighbours of any type and a thread an
 * index. */
const kNarrow =
  /^(quantize_absmax_(sum|codes)|random_b?f16|sum_planes|norm_total|optimizer_advance|map_features|attention_(rows|documents)|factored_norm|block_gemm_(wide|narrow)|grouped_\w+|select_experts(_backward)?|route_(count|scan|place)|expert_table)_kernel$/;
/** LOWRANK_EARLY_KERNEL: those that begin with what no launch of their op before them wrote. */
const kEarly =
  /^(matmul_(small_m|wide_m)_(?!finish)|gemm_wgmma_128|(matmul|input_grad|experts|experts_grad)_mma_|matmul_int8_(?!parts)|lora_shrink_|grouped_forward_)/;
/** Waits first where it rounds loraA, and stores early only there: a path that skips the first and takes the
 * second is none that a launch can take. The emulator's cases of norms go both ways. */
const kWaitsWhereItStores = /^lora_shrink_f32_/;
const kWide = /^(?:(?:ld|st)\.global|cp\.async) 16$|^tensor copy$/;

/** What is meant and not there. */
function missing(name, counts) {
  const wanted = kMeant.filter(([names]) => names.test(name)).flatMap(([, patterns]) => patterns);
  return [...(kNarrow.test(name) ? [] : [kWide]), ...wanted].filter(
    (pattern) => !Object.keys(counts).some((key) => pattern.test(key)),
  );
}

const known = existsSync(tableFile) ? readTable(readFileSync(tableFile, 'utf8')) : {};
const plans =
  args.trace === undefined ? plansOf(known) : readPlans(readFileSync(args.trace, 'utf8'));

/** The PTX of a module that the build has kept, of the oldest architecture first. */
function ptxOf(module, files) {
  return files
    .filter((name) => name.endsWith('.ptx'))
    .map((name) => {
      const file = path.join(folder, module, name);
      return { file, ...parse(readFileSync(file, 'utf8')) };
    })
    .sort((a, b) => a.version - b.version);
}

/**
 * Architecture -> cubin of a module: those that the build has kept, and with --all the others, each made of the
 * newest PTX that it takes.
 */
function cubinsOf(module, files, ptx) {
  const cubins = new Map();
  for (const file of files.filter((name) => name.endsWith('.cubin'))) {
    const elf = readFileSync(path.join(folder, module, file));
    const arch = Object.keys(kLimits).find((name) => Number.parseInt(name, 10) === archOf(elf));
    if (arch !== undefined) cubins.set(arch, elf);
  }
  if (!args.all || /_sm\d+a$/.test(module)) return cubins; // for its own architecture alone
  const scratch = mkdtempSync(path.join(tmpdir(), 'lowrank-cubin-'));
  const out = path.join(scratch, 'cubin');
  for (const arch of Object.keys(kLimits).filter((name) => !cubins.has(name))) {
    const source = ptx.findLast(({ version }) => version <= Number.parseInt(arch, 10));
    if (source === undefined) continue;
    execFileSync('ptxas', [`-arch=sm_${arch}`, source.file, '-o', out]);
    cubins.set(arch, readFileSync(out));
  }
  rmSync(scratch, { recursive: true });
  return cubins;
}

const sources = JSON.parse(readFileSync(path.join(root, 'native', 'sources.json'), 'utf8'));
const problems = [];
const table = {};
const modules = new Map();
const archsSeen = new Set();
for (const module of sources.kernels.map((file) => path.basename(file, '.cu')).sort()) {
  const own = path.join(folder, module);
  const files = existsSync(own) ? readdirSync(own) : [];
  const sourcesOf = ptxOf(module, files);
  modules.set(module, sourcesOf.length > 0);
  if (!modules.get(module)) continue;
  const ptx = new Map();
  for (const { functions } of sourcesOf) {
    for (const [name, row] of readPtx(functions, problems)) {
      if (!ptx.has(name)) ptx.set(name, row); // the table's is of the oldest
    }
  }
  if (sourcesOf.at(-1).version >= 90) {
    for (const fn of sourcesOf.at(-1).functions.filter(({ kind }) => kind === 'entry')) {
      const [store] = storesBeforeWait(fn);
      if ((store !== undefined) === kWaitsWhereItStores.test(fn.name)) continue;
      problems.push(
        store === undefined
          ? `${fn.name}: stores nothing before it waits, and need not be excepted`
          : `${fn.name}: a path stores before it waits for the launches before it: ${store}`,
      );
    }
  }
  for (const [arch, elf] of cubinsOf(module, files, sourcesOf)) {
    const on = `sm_${arch}`;
    archsSeen.add(on);
    for (const [name, { registers, stack, staticShared, sass, touchesFirst }] of readCubin(elf)) {
      const { threads, counts } = ptx.get(name) ?? { threads: 1024, counts: {} };
      table[name] ??= { module, threads, ptx: counts, on: {} };
      if (registers === 0) problems.push(`${name} on ${on}: no register count in the cubin`);
      if (stack > 0) problems.push(`${name} on ${on}: ${stack} bytes of stack`);
      if (sass.ldl || sass.stl) problems.push(`${name} on ${on}: spills`);
      if (Number.parseInt(arch, 10) >= 90 && sourcesOf.at(-1).version >= 90) {
        if (!sass.waits) problems.push(`${name} on ${on}: waits for no launch before it`);
        if (!sass.launches) problems.push(`${name} on ${on}: lets no launch after it come`);
        if (touchesFirst && !kEarly.test(name)) {
          problems.push(
            `${name} on ${on}: touches memory before it waits for the launches before it`,
          );
        }
      }
      const shared = plans.get(on)?.get(name);
      if (shared === undefined) continue;
      const sharedBytes = shared + staticShared;
      const { blocks, percent, limit } = occupancy(arch, { threads, registers, sharedBytes });
      table[name].on[on] = { shared, registers, blocks, percent, limit };
      if (blocks === 0) {
        problems.push(`${name} on ${on}: cannot be launched (${limit}, ${sharedBytes} B shared)`);
      }
    }
  }
}
const names = Object.keys(table).sort();
const archs = kArchitectures.filter((arch) => archsSeen.has(arch));

/** Plans and code of an architecture without one another; a table has them of one run. */
for (const arch of args.trace === undefined ? [] : archs) {
  if (!plans.has(arch)) problems.push(`${arch}: no plans in ${args.trace}`);
  for (const name of plans.get(arch)?.keys() ?? []) {
    if (!table[name]?.on[arch]) problems.push(`${name} on ${arch}: launched, and not compiled`);
  }
}
for (const name of names.filter((kernel) => ![...plans.values()].some((own) => own.has(kernel)))) {
  problems.push(`${name}: launched by no plan (--trace, or test/native/cuda_plan_table.cpp)`);
}

/** Rows for the reader. */
for (const name of names) {
  const { threads, ptx, on } = table[name];
  const rows = Object.entries(on).map(
    ([arch, { shared, registers, blocks, percent }]) =>
      `${arch} ${registers}r ${shared}B ${blocks}b ${percent}%`,
  );
  const matrix = Object.entries(ptx)
    .filter(([key]) => /mma|matrix|16$|copy/.test(key))
    .map(([key, count]) => `${key}: ${count}`)
    .join(', ');
  console.log(`${name}  ${threads} threads  ${rows.join('  ')}\n    ${matrix}`);
}

if (args.update) writeFileSync(tableFile, writeTable(updated(table, known, { modules, archs })));
else problems.push(...differences(table, known, { modules, archs }));
for (const problem of problems) console.error(problem);
console.log(
  `check:cuda: ${names.length} kernels on ${archs.join(', ')}: ` +
    (problems.length === 0 ? 'as the table says' : `${problems.length} problems`),
);
process.exit(problems.length === 0 ? 0 : 1);
