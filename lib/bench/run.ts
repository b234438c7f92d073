/** A whole run: check for a quiet machine, roofline, peers, jobs. */

import { version } from '../environment/version.js';
import type { Progress } from '../report/terminal.js';
import { type Job, jobName } from './job.js';
import { busyCores, describeMachine, sourceCommit } from './machine.js';
import { type FoundPeer, measureCase, type Plan } from './measure.js';
import type { Found, Peer } from './peer.js';
import { type BenchResult, type CaseResult, kResultFormat } from './result.js';
import { measureRoofline } from './roofline.js';
import type { Group } from './sweep.js';

/** Peers to look for; a user's peer comes with its file. */
export interface AskedPeer {
  readonly peer: Peer;
  readonly file?: string;
}

/** @param limit_s jobs that have not started after so many seconds are left out */
export async function runBench(
  groups: readonly Group[],
  asked: readonly AskedPeer[],
  plan: Plan,
  command: string,
  limit_s: number,
  progress: Progress,
): Promise<BenchResult> {
  const started = performance.now();
  const date = new Date().toISOString();
  const jobs = groups.flatMap((group) => group.jobs);
  const machine = describeMachine(jobs.map(({ device }) => device));
  progress.phase('quiet?');
  const busy = await busyCores();
  progress.phase('roofline');
  progress.update(0, 1);
  const threads = [
    ...new Set(jobs.filter(({ device }) => device === 'cpu').map((job) => job.threads)),
  ];
  const roofline = !plan.roofline
    ? 'not asked for'
    : threads.length === 0
      ? 'only for the cpu device'
      : await measureRoofline(
          threads.sort((a, b) => a - b),
          machine.lastCache,
        );
  progress.update(1, 1);

  progress.phase('peers');
  const peers: BenchResult['peers'][number][] = [];
  const there: FoundPeer[] = [];
  for (const [at, { peer, file }] of asked.entries()) {
    progress.update(at, asked.length, peer.name);
    const found = await findOut(peer);
    peers.push({ name: peer.name, ...found });
    if ('version' in found) {
      there.push({ peer, version: found.version, ...(file === undefined ? {} : { file }) });
    }
  }
  progress.update(asked.length, asked.length);

  progress.phase('measuring');
  const cases: CaseResult[] = [];
  const leftOut: string[] = [];
  let runner = '';
  for (const { jobs: some, only } of groups) {
    for (const job of some) {
      if (performance.now() - started > 1000 * limit_s) {
        leftOut.push(jobName(job));
        continue;
      }
      const chosen = there.filter(
        ({ peer, file }) => file !== undefined || only === undefined || only.includes(peer.name),
      );
      const { runner: used, ...result } = await measureCase(job, chosen, plan, roofline, (text) =>
        progress.update(cases.length, jobs.length, `${shortName(job)}: ${text}`),
      );
      cases.push(result);
      runner = runner === '' ? used : runner;
    }
  }
  progress.update(jobs.length, jobs.length);
  progress.close();
  const commit = sourceCommit();
  return {
    format: kResultFormat,
    version: version(),
    ...(commit === undefined ? {} : { commit }),
    date,
    seconds: Math.round((performance.now() - started) / 100) / 10,
    command,
    machine,
    ...(busy === undefined ? {} : { busy_cores: Math.round(100 * busy) / 100 }),
    runner,
    calls: plan.latency ? 'awaited' : 'queued',
    repeats: plan.repeats,
    trials: plan.trials,
    roofline,
    peers: peers.map((peer) => ({ ...peer, ...versionSeen(cases, peer.name) })),
    ...(leftOut.length === 0 ? {} : { left_out: { limit_s, jobs: leftOut } }),
    cases: inOrder(cases),
  };
}

/** Is a peer installed? If a user's `find` fails, its case is left out, but the run goes on. */
async function findOut(peer: Peer): Promise<Found> {
  try {
    const found = await peer.find();
    if ('version' in found) return { version: String(found.version) };
    return { missing: String(found.missing) };
  } catch (error) {
    return { missing: `its find failed: ${(error as Error).message}` };
  }
}

/** Some peers know their version only once they run. */
function versionSeen(cases: readonly CaseResult[], name: string): { version?: string } {
  const row = cases.flatMap(({ rows }) => rows).find(({ subject }) => subject === name);
  return row === undefined ? {} : { version: row.version };
}

/** Puts cases that differ only in M and r next to each other, whatever the order of measurement. */
export function inOrder(cases: readonly CaseResult[]): CaseResult[] {
  const groups = new Map<string, CaseResult[]>();
  for (const one of cases) {
    const key = JSON.stringify({ ...one.job, M: 0, r: 0, coldBytes: 0 });
    groups.set(key, [...(groups.get(key) ?? []), one]);
  }
  return [...groups.values()].flatMap((group) =>
    group.sort((a, b) => a.job.r - b.job.r || a.job.M - b.job.M),
  );
}

function shortName({ op, M, r, threads }: Job): string {
  return `${op} M=${M} r=${r} t=${threads}`;
}
