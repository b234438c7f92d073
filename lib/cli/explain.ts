/**
 * `lowrank info --explain`: which kernels a call of this size runs, and why.
 */

import type { CpuExplanation, CudaExplanation, PlannedLaunch } from '../core/explanation.js';
import { formatNames, type StoredFormat, storedNames } from '../core/formats.js';
import { devices } from '../index.js';
import { type ExplainedCall, type ExplainTarget, explainCall } from '../ops/explain.js';
import { grouped, jsonText, mebibytes, table } from '../report/terminal.js';
import type { Arguments } from './command/arguments.js';
import { readDevice } from './command/device-option.js';

const kFormats: readonly (StoredFormat | 'dense')[] = [...storedNames, 'dense'];

export const explainHelp = `  --explain MxKxN    which kernels a call of this size runs, tokens x input x output features
    --format F       of the weight: ${kFormats.join(', ')}    [nf4]
    --blocksize N    elements that share a scale                                   [of the format]
    --dtype T        of the activations, and of a dense weight: f32, bf16 or f16   [f32]
    --r N            also with an adapter of this rank: loraForward, loraBackward
    --compute C      exact, or int8 for products of codes                          [exact]
    --isa S          for this instruction set of the CPU                           [the best here]
    --device D       cpu, cuda, cuda-emulated, or an architecture: sm_80, sm_90    [cpu, and cuda if here]
`;

export const explainOptions = {
  explain: { type: 'string' },
  format: { type: 'string' },
  blocksize: { type: 'string' },
  dtype: { type: 'string' },
  r: { type: 'string' },
  compute: { type: 'string' },
  isa: { type: 'string' },
  device: { type: 'string' },
} as const;

const kMostSize = 2 ** 24;
const kDocs = { cpu: 'docs/cpu-design.md#routes', cuda: 'docs/gpu-design.md#which-product-runs' };

type Explanation = (CpuExplanation | CudaExplanation) & { readonly target: string };

/** Prints it, for `info` with `--explain`. @throws UsageError · LowrankError */
export function explain(parsed: Arguments): void {
  const call = readCall(parsed);
  const explanations = readTargets(parsed).map((target) => ({
    target: target.name,
    ...explainCall(target, call),
  }));
  process.stdout.write(
    parsed.flag('json') ? jsonOf(call, explanations) : explanationText(call, explanations),
  );
}

/** What only --explain reads. */
export function refuseStrayOptions(parsed: Arguments): void {
  const stray = parsed.firstGiven(Object.keys(explainOptions));
  if (stray !== undefined) throw parsed.wrong(`--${stray} is for --explain, which was not given`);
}

function readCall(parsed: Arguments): ExplainedCall {
  const text = parsed.text('explain') as string;
  const sizes = (/^(\d{1,8})x(\d{1,8})x(\d{1,8})$/.exec(text) ?? []).slice(1).map(Number);
  const [M = 0, K = 0, N = 0] = sizes;
  if (Math.min(M, K, N) < 1 || Math.max(M, K, N) > kMostSize) {
    const expected = `MxKxN, each from 1 to ${grouped(kMostSize)}, e.g. 16x4096x4096`;
    throw parsed.refuse('explain', expected, text);
  }
  const format = parsed.choice('format', 'nf4', kFormats);
  const blocksize = parsed.powerOfTwo('blocksize', 32, 4096);
  if (blocksize !== undefined && (format === 'dense' || format === 'int8-rowwise')) {
    throw parsed.refuse('format', `one of ${formatNames.join(', ')} beside --blocksize`, format);
  }
  return {
    M,
    K,
    N,
    r: parsed.text('r') === undefined ? 0 : parsed.integer('r', 0, 1, 65_536),
    format,
    blocksize,
    dtype: parsed.choice('dtype', 'f32', ['f32', 'bf16', 'f16']),
    compute: parsed.choice('compute', 'exact', ['exact', 'int8']),
  };
}

function readTargets(parsed: Arguments): ExplainTarget[] {
  const isa = parsed.text('isa');
  const name = parsed.text('device');
  if (isa !== undefined) {
    if (name !== undefined && name !== 'cpu') {
      throw parsed.wrong(`--isa is for the CPU, got --device ${name}`);
    }
    return [{ kind: 'isa', name: isa }];
  }
  if (name === undefined) {
    const gpu = devices().filter(({ device, available }) => available && /^cuda(:|$)/.test(device));
    return ['cpu', ...gpu.map(({ device }) => device)].map((device) => ({
      kind: 'device',
      name: device,
    }));
  }
  if (/^sm_/.test(name)) return [{ kind: 'architecture', name }];
  return [{ kind: 'device', name: readDevice(parsed) as string }];
}

function jsonOf(call: ExplainedCall, explanations: readonly Explanation[]): string {
  const { blocksize, ...rest } = call;
  return jsonText({
    call: { ...rest, ...(blocksize && { blocksize }) },
    explanations,
    docs: kDocs,
  });
}

/** @internal The tables for people. */
export function explanationText(
  { M, K, N, r, dtype, format, compute }: ExplainedCall,
  explanations: readonly Explanation[],
): string {
  const adapter = r === 0 ? '' : `, adapter of rank ${r}`;
  const int8 = compute === 'int8' ? ", forward with compute: 'int8'" : '';
  const weight = format === 'dense' ? `dense ${dtype}` : format;
  const head = `x [${M}, ${K}] ${dtype}, w [${N}, ${K}] ${weight}${adapter}${int8}\n`;
  const parts = explanations.map((explanation) =>
    'routes' in explanation ? cpuText(explanation) : cudaText(explanation),
  );
  return [head, ...parts].join('\n');
}

function cpuText({ isa, threads, routes }: CpuExplanation): string {
  const rows = routes.map(({ op, firstRow, rows: count, route, isa: set, file }) => [
    op,
    count === 1 ? `${firstRow + 1}` : `${firstRow + 1} to ${firstRow + count}`,
    route,
    set,
    file,
  ]);
  const reasons = new Map(routes.map((row) => [row.route, row]));
  const lines = [...reasons.values()].map(
    ({ route, takesWeight, takesRows, reason }) =>
      `${route}: ${reason}.\n    Weight: ${takesWeight}. Rows at once: ${takesRows}.`,
  );
  const left = routes.some((row) => row.isa !== isa)
    ? [`${isa} leaves a product to the set in the table where both multiply it in the same way.`]
    : [];
  return section(
    `CPU, ${isa}, ${threads} thread${threads === 1 ? '' : 's'}`,
    table([['op', 'rows', 'route', 'set', 'file'], ...rows], []),
    [...lines, ...left, `The table of routes, with the reason for each: ${kDocs.cpu}`],
  );
}

function cudaText(explanation: CudaExplanation & { target: string }): string {
  const { target, sm, card, multiprocessors, plans } = explanation;
  const rows = plans.flatMap(({ op, workspaceBytes, launches }) =>
    launches.map((launch, i) => [
      i === 0 ? op : '',
      ...launchCells(launch),
      i === 0 ? size(workspaceBytes) : '',
    ]),
  );
  const heads = ['op', 'kernel', 'tile', 'grid', 'threads', 'cluster', 'shared', 'workspace'];
  const name = target.startsWith('sm_') ? target : `${target}, sm_${sm}`;
  return section(
    `CUDA, ${name}, ${card}, ${multiprocessors} multiprocessors`,
    table([heads, ...rows], []),
    [
      'Launches of an op run in this order. tile: the rows and columns of the result that a block makes at once.',
      'The file in cuda/ that defines a kernel has its formula, layout and budget at the top.',
      `Which family of kernels takes a product: ${kDocs.cuda}`,
    ],
  );
}

function launchCells({
  kernel,
  grid,
  threads,
  cluster,
  sharedBytes,
  tile,
}: PlannedLaunch): string[] {
  return [
    kernel.replace(/_kernel$/, ''),
    tile === undefined ? '-' : tile.join(' x '),
    grid.join(' x '),
    String(threads),
    String(cluster),
    size(sharedBytes),
  ];
}

function size(bytes: number): string {
  if (bytes < 1024) return `${bytes} B`;
  return bytes < 2 ** 20 ? `${(bytes / 1024).toFixed(1)} KiB` : mebibytes(bytes);
}

function section(title: string, body: string, notes: readonly string[]): string {
  const text = `${body}\n${notes.join('\n')}\n`;
  return `${title}\n${text.replace(/^(?=.)/gm, '  ')}`;
}
