/**
 * The process of one subject: prepares a peer for a job, then reads a number of calls per line from
 * stdin and answers with their time, until stdin ends. See subject-process.ts.
 */

import * as lowrank from '../../index.js';
import { elements, probeIndices } from '../data.js';
import { copiesFor, type Job, kScaling } from '../job.js';
import type { Peer, Subject } from '../peer.js';
import { makeRunner, type Runner } from '../runner.js';
import { isClean, threadTimes } from '../thread-times.js';
import { findPeer } from './index.js';
import { loadCase } from './user.js';

/** The task on the worker's command line. */
export interface WorkerTask {
  readonly job: Job;
  readonly peer: string;
  /** A user's file instead of a built-in peer. */
  readonly file?: string;
  /** Each call is awaited, even if calls could be queued. */
  readonly latency?: boolean;
}

const answer = (value: unknown) => process.stdout.write(`${JSON.stringify(value)}\n`);

async function main({ job, peer: name, file, latency }: WorkerTask): Promise<void> {
  const peer: Peer | undefined = file === undefined ? findPeer(name) : await loadCase(file);
  if (peer?.prepare === undefined) throw new Error(`${name} cannot be prepared`);
  if (job.device === 'cpu') lowrank.setThreads(job.threads);
  const subject = await peer.prepare(job, {
    lowrank,
    elements: (operand) => elements(operand, lengthOf(job, operand)),
    copies: (weightBytes) => copiesFor(job, weightBytes),
    scaling: kScaling,
  });
  if (typeof subject?.run !== 'function') {
    throw new Error('prepare must return an object with run, a function');
  }
  const run = latency ? () => oneCall(subject) : () => subject.run();
  // With latency each call has its own wait.
  const finish = latency ? undefined : () => subject.finish?.();
  const first = run();
  await first;
  const wait = finish?.();
  await wait;
  const asynchronous = first !== undefined || wait !== undefined;
  const output = await subject.output?.();
  if (output !== undefined) requireElements(output, job);
  const runner = await makeRunner(run, asynchronous, finish);
  answer({
    ready: {
      note: subject.note,
      weightBytes: subject.weightBytes,
      copies: subject.copies,
      runner: runner.name,
      ...(output === undefined ? {} : { probe: probeIndices(job).map((i) => output[i]) }),
    },
  });
  process.stdin.setEncoding('utf8');
  let rest = '';
  for await (const chunk of process.stdin) {
    const lines = (rest + String(chunk)).split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines) answer(await timed(runner, Number(line)));
  }
  await subject.dispose?.();
}

/**
 * Judged here, as close to the calls as possible: when they are done, threads of the pool spin for a
 * while, and a pool thread that loses its core to this thread then had nothing to do.
 */
async function timed(runner: Runner, calls: number): Promise<{ ms: number; clean: boolean }> {
  const before = threadTimes(process.pid);
  const { ms, queued_ms } = await runner.time(calls);
  return { ms, clean: isClean(before, threadTimes(process.pid), ms, queued_ms) };
}

/** A call and the wait for it; a promise only if one of them is. */
function oneCall(subject: Subject): void | Promise<void> {
  const call = subject.run();
  return call === undefined ? subject.finish?.() : call.then(() => subject.finish?.());
}

/** y [M, N], or dx [M, K] if the op has a backward pass. */
function requireElements(output: ArrayLike<number>, { op, M, K, N }: Job): void {
  const backward = op === 'loraBackward' || op === 'lora';
  const [shape, count] = backward ? ['M * K', M * K] : ['M * N', M * N];
  if (output?.length >= count) return;
  throw new Error(`output must give ${shape} = ${count} numbers, got ${output?.length}`);
}

function lengthOf({ M, K, N, r }: Job, operand: Parameters<typeof elements>[0]): number {
  return { x: M * K, dy: M * N, w: N * K, loraA: r * K, loraB: N * r }[operand];
}

main(JSON.parse(process.argv[2] ?? '{}') as WorkerTask).then(
  () => process.exit(0),
  (error: unknown) => {
    answer({ error: error instanceof Error ? error.message : String(error) });
    process.exit(1);
  },
);
