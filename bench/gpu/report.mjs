/** What was timed, as one JSON object and as a table in Markdown. */
import { bytesOf, caseText, cublasText, describe, flopsOf, isProduct } from './cases.mjs';

/** The card that the goals were set for. */
const isGoalCard = (card) => /H100/.test(card) && !/PCIe|NVL/.test(card);

/** Bytes a microsecond and FLOP a microsecond that this machine was seen to do. */
function measuredCeilings({ ceilings, ceilingFlops, copyBytes, timeOf, peerOf }) {
  const best = (candidates) =>
    candidates.filter(({ rate }) => Number.isFinite(rate)).sort((a, b) => b.rate - a.rate)[0];
  return {
    copy: best([
      { by: 'the driver', rate: copyBytes / timeOf(ceilings.copy) },
      { by: 'a kernel of ours', rate: copyBytes / timeOf(ceilings.copyKernel) },
    ]),
    matmul: best([
      { by: 'cuBLAS', rate: ceilingFlops / timeOf(ceilings.cublas) },
      { by: 'torch', rate: ceilingFlops / peerOf('ceiling', 'torch bf16') },
      { by: 'our dense kernel', rate: ceilingFlops / timeOf(ceilings.ownDense) },
    ]),
  };
}

const number = (value, digits = 2) =>
  value === undefined || !Number.isFinite(value) ? '' : value.toFixed(digits);
const percent = (value) => (Number.isFinite(value) ? `${(100 * value).toFixed(0)} %` : '');

/** @param {Record<string, any>} run everything that run.mjs found out */
export function reportOf(run) {
  const { rows, timings, peers, ceilings, card } = run;
  const byCase = new Map(timings.map((timing) => [timing.case, timing]));
  const timeOf = (text) => byCase.get(text)?.median_us;
  const peerOf = (text, peer) =>
    peers.find((row) => row.case === text && row.peer === peer)?.median_us;
  const copyBytes = 2 * Number(ceilings.copy.split(',')[1]);
  const { ceilingFlops } = run;
  const measured = measuredCeilings({ ceilings, ceilingFlops, copyBytes, timeOf, peerOf });
  const goals = isGoalCard(card);

  const results = rows.map((row) => {
    const text = caseText(row);
    const timing = byCase.get(text) ?? { error: 'not timed' };
    const { median_us } = timing;
    const [bytes, flops] = [bytesOf(row), flopsOf(row)];
    const floor_us = Math.max(bytes / measured.copy?.rate, flops / measured.matmul?.rate || 0);
    const beside = {
      ...(isProduct(row) ? { cuBLAS: timeOf(cublasText(row)) } : {}),
      torch: peerOf(text, 'torch bf16'),
      bitsandbytes: peerOf(text, 'bitsandbytes'),
    };
    return {
      id: row.id,
      operation: describe(row),
      case: text,
      ...(goals ? { floor_us: row.floor, goal_us: row.goal, stretch_us: row.stretch } : {}),
      measured_floor_us: floor_us,
      median_us,
      quartiles_us: timing.quartiles_us,
      samples: timing.samples,
      calls_a_sample: timing.calls_a_sample,
      graph: timing.graph,
      error: timing.error,
      to_goal: goals ? median_us / row.goal : undefined,
      to_floor: median_us / floor_us,
      of_copy: bytes / median_us / measured.copy?.rate,
      of_matmul: flops / median_us / measured.matmul?.rate,
      peers_us: beside,
    };
  });
  const json = {
    format: 'lowrank gpu:bench 1',
    card,
    meaningless: run.emulated,
    machine: run.machine,
    cublas: run.cublas,
    torch: run.torch,
    clocks: run.clocks,
    commit: run.commit,
    date: run.date,
    ceilings: {
      copy_tb_s: measured.copy?.rate / 1e6,
      copy_by: measured.copy?.by,
      matmul_tflop_s: measured.matmul?.rate / 1e6,
      matmul_by: measured.matmul?.by,
    },
    ceiling_timings: Object.fromEntries(
      Object.entries(ceilings).map(([name, text]) => [name, byCase.get(text)]),
    ),
    rows: results,
    peer_timings: peers,
  };
  return { json, markdown: markdownOf(json, goals) };
}

function markdownOf(json, goals) {
  const { ceilings, machine, clocks } = json;
  const head = [
    'id',
    'operation',
    ...(goals ? ['floor', 'goal', 'stretch'] : []),
    'measured floor',
    'median [quartiles]',
    ...(goals ? ['/ goal'] : []),
    '/ floor',
    'of copy',
    'of matmul',
    'cuBLAS bf16',
    'torch bf16',
    'bitsandbytes',
  ];
  const lines = json.rows.map((row) => [
    row.id,
    row.operation,
    ...(goals ? [row.floor_us, row.goal_us, row.stretch_us].map((value) => value ?? '') : []),
    number(row.measured_floor_us),
    row.median_us === undefined
      ? (row.error ?? '')
      : `**${number(row.median_us)}** [${row.quartiles_us.map((value) => number(value)).join(', ')}]${row.graph ? '' : ' (no graph)'}`,
    ...(goals ? [number(row.to_goal)] : []),
    number(row.to_floor),
    percent(row.of_copy),
    row.of_matmul > 0 ? percent(row.of_matmul) : '',
    ...['cuBLAS', 'torch', 'bitsandbytes'].map((peer) => number(row.peers_us[peer])),
  ]);
  const table = [head, head.map(() => '---'), ...lines].map((cells) => `| ${cells.join(' | ')} |`);
  const clockText =
    clocks === undefined
      ? 'Clocks: not known (no nvidia-smi).'
      : `Clocks while ours ran: ${Object.entries(clocks)
          .map(([name, { least, median, most }]) => `${name} ${median} (${least} to ${most})`)
          .join(', ')}.`;
  const peerText = [
    json.cublas?.missing ? `cuBLAS: ${json.cublas.missing}.` : `cuBLAS ${json.cublas?.cublas}.`,
    json.torch?.missing
      ? `torch: ${json.torch.missing}.`
      : `torch ${json.torch?.torch}, bitsandbytes ${json.torch?.bitsandbytes ?? 'absent'}.`,
  ].join(' ');
  return `${[
    `# Times on ${json.card}`,
    ...(json.meaningless ? ['', '**Emulated: these numbers say nothing.**'] : []),
    '',
    'Microseconds a call, median and quartiles; calls replayed from a graph, operands rotated so that',
    'L2 is cold, random data, bf16 activations. cuBLAS and torch have the weight dense in bf16; with an',
    'adapter, torch and bitsandbytes compute the unfused layer.',
    '',
    `Measured ceilings: copy ${number(ceilings.copy_tb_s, 3)} TB/s (${ceilings.copy_by}), matmul ` +
      `${number(ceilings.matmul_tflop_s, 1)} TFLOP/s (${ceilings.matmul_by}).`,
    `${clockText} ${peerText}`,
    `sm_${machine.sm}, ${machine.multiprocessors} multiprocessors, driver ${machine.driver}, kernels ` +
      `by ${machine.kernels || 'the host compiler'}, commit ${json.commit ?? 'unknown'}, ${json.date}.`,
    '',
    ...table,
  ].join('\n')}\n`;
}
