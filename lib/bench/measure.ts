/**
 * Measures one job. Every subject runs in its own process, all at the same time, and they are
 * sampled in turns whose order rotates. Drift (clocks, neighbours) thus affects all of them, and
 * ratios come from adjacent samples.
 */

import path from 'node:path';
import { packageFolder } from '../environment/package-folder.js';
import { expectedProbe, kProbeLimit, probeError } from './data.js';
import { bytesOf, flopsOf, type Job, jobName, weightBytesOf } from './job.js';
import type { ComputeType, Peer, Program } from './peer.js';
import type { CaseResult, Row } from './result.js';
import { intensity, type Roofline, roofOf } from './roofline.js';
import { startFastest } from './start-subject.js';
import { kFewestClean, median, medianInterval, summarize } from './statistics.js';
import type { Ready, Sample, SubjectProcess, ThreadTimesOf } from './subject-process.js';

/** How much to measure. */
export interface Plan {
  /** Number of processes of each subject. */
  readonly trials: number;
  /** Number of clean samples of each subject, over all trials. */
  readonly repeats: number;
  /** A subject that has taken this long keeps the samples it has, at least three. */
  readonly seconds: number;
  /** Samples that are not clean are not repeated, because the whole run has a limit and other jobs wait. */
  readonly once?: boolean;
  /** Length of a sample. Several short calls make one sample. */
  readonly sample_ms: number;
  /** Is each call awaited, even if calls could be queued? */
  readonly latency?: boolean;
  /** Are the ceilings measured? */
  readonly roofline: boolean;
  /** For tests: replaces what the kernel reports about the threads of a process. */
  readonly timesOf?: ThreadTimesOf;
}

/** A peer that is installed. */
export interface FoundPeer {
  readonly peer: Peer;
  readonly version: string;
  /** The file it comes from, if it is a user's. */
  readonly file?: string;
}

/** The state of one subject after some trials. */
interface Record {
  readonly found: FoundPeer;
  /** How to run its process: of several ways, the fastest once they have been tried. */
  programs: readonly Program[];
  ready: Ready;
  error?: number;
  readonly trials: { readonly at: number; readonly sample: Sample }[][];
}

/** Up to this many rounds instead of one, if samples are not clean. */
const kMoreRounds = 2;

/** The process of a peer for a job, in every way that should be tried. */
function programsOf({ peer, file }: FoundPeer, job: Job, latency = false): readonly Program[] {
  if (peer.program !== undefined) {
    const programs = peer.program(job);
    return Array.isArray(programs) ? programs : [programs as Program];
  }
  const worker = path.join(packageFolder(), 'dist', 'cli', 'bench-worker.js');
  return [
    {
      command: process.execPath,
      args: [worker, JSON.stringify({ job, peer: peer.name, file, latency })],
      env: { LOWRANK_NUM_THREADS: String(job.threads), OMP_NUM_THREADS: String(job.threads) },
    },
  ];
}

/**
 * @param peers the others are compared with the first
 * @param onProgress is told what is being done
 */
export async function measureCase(
  job: Job,
  peers: readonly FoundPeer[],
  plan: Plan,
  roofline: Roofline | string,
  onProgress: (text: string) => void,
): Promise<CaseResult & { readonly runner: string }> {
  const skipped: { subject: string; reason: string }[] = [];
  const records: Record[] = [];
  for (const found of peers) {
    const reason = refusalOf(found.peer, job);
    if (reason !== undefined) skipped.push({ subject: found.peer.name, reason });
    else records.push({ found, programs: [], ready: {}, trials: [] });
  }
  const expected = expectedProbe(job);
  for (let trial = 0; trial < plan.trials; trial++) {
    const failed = await runTrial(job, records, plan, trial, expected, onProgress);
    for (const { record, reason } of failed) {
      skipped.push({ subject: record.found.peer.name, reason });
      records.splice(records.indexOf(record), 1);
    }
  }
  const first = records.find(({ found }) => found.peer === peers[0]?.peer) ?? records[0];
  return {
    name: jobName(job),
    job,
    rows: first === undefined ? [] : records.map((record) => rowOf(job, record, first, roofline)),
    skipped,
    runner: records.map(({ ready }) => ready.runner).find((name) => name !== undefined) ?? '',
  };
}

/** If a user's function fails, its case is left out, but the run goes on. */
function refusalOf(peer: Peer, job: Job): string | undefined {
  try {
    return peer.refuses?.(job);
  } catch (error) {
    return `its refuses failed: ${(error as Error).message}`;
  }
}

async function runTrial(
  job: Job,
  records: readonly Record[],
  plan: Plan,
  trial: number,
  expected: readonly number[],
  onProgress: (text: string) => void,
): Promise<{ record: Record; reason: string }[]> {
  const failed: { record: Record; reason: string }[] = [];
  const running: { record: Record; process: SubjectProcess; spent_ms: number; clean: number }[] =
    [];
  const name = ({ found }: Record) => found.peer.name;
  try {
    for (const record of records) {
      onProgress(`${name(record)} starts`);
      record.trials[trial] = [];
      try {
        if (trial === 0) record.programs = programsOf(record.found, job, plan.latency);
        const { process, ready, program } = await startFastest(
          record.programs,
          plan.sample_ms,
          plan.timesOf,
        );
        record.programs = [program];
        running.push({ record, process, spent_ms: 0, clean: 0 });
        record.ready = ready;
        if (ready.probe !== undefined) {
          record.error = probeError(ready.probe, expected);
          if (!(record.error <= kProbeLimit)) {
            throw new Error(`it computes something else: error ${record.error.toFixed(2)}`);
          }
        }
      } catch (error) {
        failed.push({ record, reason: (error as Error).message });
        const at = running.findIndex((row) => row.record === record);
        if (at >= 0) await running.splice(at, 1)[0]?.process.close();
      }
    }
    const wanted = Math.max(1, Math.ceil(plan.repeats / plan.trials));
    const fewest = Math.min(wanted, Math.ceil(kFewestClean / plan.trials));
    const limit_ms = (1000 * plan.seconds) / plan.trials;
    const rounds = plan.once ? wanted : kMoreRounds * wanted;
    for (let round = 0; round < rounds; round++) {
      const due = running.filter(({ record, spent_ms, clean }) => {
        const taken = record.trials[trial]?.length ?? 0;
        if (taken < fewest) return true;
        // On a machine that is never quiet, more rounds would not help.
        if (round >= wanted && clean < taken / 3) return false;
        return clean < wanted && spent_ms < limit_ms;
      });
      if (due.length === 0) break;
      // The reference subject goes on as long as any other, because a pair needs both.
      const turns = due.includes(running[0] as (typeof due)[0])
        ? due
        : [running[0] as (typeof due)[0], ...due];
      for (let i = 0; i < turns.length; i++) {
        const turn = turns[(i + round) % turns.length] as (typeof due)[0];
        onProgress(`${name(turn.record)} sample ${round + 1}`);
        const started = performance.now();
        try {
          const sample = await turn.process.sample(plan.timesOf);
          turn.record.trials[trial]?.push({ at: round, sample });
          if (sample.clean) turn.clean++;
        } catch (error) {
          failed.push({ record: turn.record, reason: (error as Error).message });
          running.splice(running.indexOf(turn), 1);
          break;
        }
        turn.spent_ms += performance.now() - started;
      }
      if (running.length === 0) break;
    }
  } finally {
    for (const { process } of running) await process.close();
  }
  return failed;
}

interface Placed {
  readonly trial: number;
  readonly at: number;
  readonly ms: number;
  readonly clean: boolean;
}

function placed(record: Record): Placed[] {
  return record.trials.flatMap((samples, trial) =>
    samples.map(({ at, sample }) => ({ trial, at, ms: sample.ms, clean: sample.clean })),
  );
}

/** The clean values, or all values if too few are clean. */
function cleanOrAll(values: readonly Placed[]): readonly Placed[] {
  const clean = values.filter((value) => value.clean);
  return clean.length >= kFewestClean ? clean : values;
}

/** Ratios of the times of adjacent clean samples. */
function ratiosOf(record: Record, first: Record): number[] {
  const others = new Map(placed(first).map((sample) => [`${sample.trial} ${sample.at}`, sample]));
  return placed(record).flatMap(({ trial, at, ms, clean }) => {
    const other = others.get(`${trial} ${at}`);
    return other?.clean && clean ? [ms / other.ms] : [];
  });
}

function rowOf(job: Job, record: Record, first: Record, roofline: Roofline | string): Row {
  const { found, ready } = record;
  const samples = cleanOrAll(placed(record));
  const summary = summarize(samples.map(({ ms }) => ms));
  const ratios = ratiosOf(record, first);
  const ratioInterval = medianInterval(ratios);
  const weightBytes = ready.weightBytes ?? weightBytesOf(job);
  const computes: ComputeType = found.peer.computes ?? (job.dtype === 'bf16' ? 'bf16' : 'f32');
  const done = found.peer.adapter === false ? { ...job, r: 0 } : job;
  const gflops = flopsOf(done) / summary.median / 1e6;
  const ceilings = typeof roofline === 'string' ? undefined : roofline[String(job.threads)];
  const roof =
    ceilings === undefined || job.device !== 'cpu'
      ? undefined
      : roofOf(done, ceilings, weightBytes, computes);
  const all = record.trials.flat();
  return {
    op: job.op,
    shape: `${job.M}x${job.K}x${job.N}`,
    subject: found.peer.name,
    version: ready.version || found.version,
    ...(ready.note === undefined ? {} : { note: ready.note }),
    computes,
    median_ms: summary.median,
    p10_ms: summary.p10,
    p90_ms: summary.p90,
    interval_ms: [summary.interval.low, summary.interval.high],
    confidence: summary.interval.confidence,
    clean: all.filter(({ sample }) => sample.clean).length,
    samples: all.length,
    outliers: summary.outliers,
    trial_medians_ms: record.trials.flatMap((_, trial) => {
      const own = samples.filter((sample) => sample.trial === trial).map(({ ms }) => ms);
      return own.length > 0 ? [median(own)] : [];
    }),
    samples_ms: record.trials.map((trial) =>
      trial.map(({ sample }) => Number((sample.clean ? sample.ms : -sample.ms).toPrecision(6))),
    ),
    gflops,
    gbytes_s: bytesOf(done, weightBytes) / summary.median / 1e6,
    intensity: intensity(done, weightBytes),
    weight_bytes: weightBytes,
    copies: ready.copies ?? 1,
    ...(roof === undefined
      ? {}
      : { roof_gflops: roof.gflops, bound: roof.bound, share: gflops / roof.gflops }),
    ...(ratios.length < kFewestClean
      ? {}
      : {
          ratio: median(ratios),
          ratio_interval: [ratioInterval.low, ratioInterval.high] as const,
        }),
    pairs: ratios.length,
    ...(record.error === undefined ? {} : { error: record.error }),
  };
}
