/**
 * `npm run gpu:bench` over the emulator, at tiny sizes: its program runs, and its table says what it
 * should of a card's times. Numbers only a GPU can give.
 */
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { buildTargets, emulatorRuns, root, run } from '../emulator/build-folder.js';

const load = (file: string) =>
  import(pathToFileURL(path.join(root, 'bench', 'gpu', file)).href) as Promise<
    Record<string, never>
  >;
interface Row {
  readonly id: string;
  readonly op: string;
  readonly floor?: number;
  readonly goal?: number;
}
const cases = (await load('cases.mjs')) as unknown as {
  kRows: readonly Row[];
  bytesOf(row: Row): number;
  flopsOf(row: Row): number;
  caseText(row: Row): string;
  cublasText(row: Row): string;
};
const { reportOf } = (await load('report.mjs')) as unknown as {
  reportOf(run: object): { json: { rows: Array<Record<string, number>> }; markdown: string };
};

/** Of the H100 that the goals are for: bytes and FLOP a microsecond. */
const kCopy = 3.0e6;
const kMatmul = 798e6;

describe('the table of gpu:bench', () => {
  it.each(cases.kRows.filter(({ floor }) => floor !== undefined).map((row) => [row.id, row]))(
    '%s: what an op moves and computes gives the floor that its goal was set by',
    (_, row) => {
      const floor = Math.max(cases.bytesOf(row) / kCopy, cases.flopsOf(row) / kMatmul);
      expect(Math.abs(floor / (row.floor as number) - 1)).toBeLessThan(0.01);
    },
  );

  it('ratios, shares and peers of a card', () => {
    const row = cases.kRows[0] as Row;
    const timing = (text: string, median_us: number) => ({
      case: text,
      median_us,
      quartiles_us: [median_us, median_us],
      graph: true,
    });
    const ceilings = { copy: 'copy,3000000', copyKernel: 'k', cublas: 'c', ownDense: 'o' };
    const { json, markdown } = reportOf({
      card: 'NVIDIA H100 80GB HBM3',
      machine: {},
      rows: [row],
      ceilings,
      ceilingFlops: kMatmul * 10,
      // 3,000,000 bytes are read and as many written in 2 microseconds.
      timings: [
        timing('copy,3000000', 2),
        timing('c', 10),
        timing(cases.caseText(row), 10),
        timing(cases.cublasText(row), 20),
      ],
      peers: [{ case: cases.caseText(row), peer: 'bitsandbytes', median_us: 40 }],
    });
    const [line] = json.rows as [Record<string, number>];
    expect(line.to_goal).toBeCloseTo(10 / 5);
    expect(line.measured_floor_us).toBeCloseTo(2.89, 2);
    expect(line.of_copy).toBeCloseTo(0.289, 3);
    expect(line.peers_us).toMatchObject({ cuBLAS: 20, bitsandbytes: 40 });
    expect(markdown).toContain('| G1 | matmul nf4-dq M=1, 4096×4096 | 2.89 | 5 | 4.2 | 2.89 |');
  });

  it('a card without goals has floors only', () => {
    const row = cases.kRows[0] as Row;
    const { json, markdown } = reportOf({
      card: 'NVIDIA A100-SXM4-80GB',
      machine: {},
      rows: [row],
      ceilings: { copy: 'copy,1000' },
      ceilingFlops: 1,
      timings: [],
      peers: [],
    });
    expect(json.rows[0]).not.toHaveProperty('goal_us');
    expect(markdown).toContain('not timed');
    expect(markdown).not.toContain('goal');
  });
});

describe.runIf(emulatorRuns)('gpu:bench over the emulator', { timeout: 300_000 }, () => {
  beforeAll(() => buildTargets('gpu_self_proof'), 900_000);

  it('times every row, and says that the numbers mean nothing', async () => {
    const program = path.join(root, 'bench', 'gpu', 'run.mjs');
    const options = ['--emulated', '--no-build', '--no-torch'];
    const { stdout } = await run(process.execPath, [program, ...options]);
    expect(stdout).toContain('these numbers say nothing');
    const lines = stdout.split('\n').filter((line) => /^\| (G\d+)? \|/.test(line));
    expect(lines.length).toBe(cases.kRows.length);
    for (const line of lines) expect(line).toMatch(/\*\*\d+\.\d+\*\* \[/);
  });
});
