/**
 * One subject in its own process. The protocol, in JSON lines, is the same for a Node worker and for
 * a program in another language:
 *
 *   child  {"ready": {"version"?, "note"?, "weightBytes"?, "copies"?, "probe"?, "runner"?}}
 *   parent 12                    (so many calls)
 *   child  {"ms": 34.5, "clean"?} (what they took together; whether no thread of it waited for a core)
 *   ...until the parent closes stdin. {"error": "..."} in place of any answer ends it.
 *
 * Lines that are not JSON are a library's own output, and are skipped.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { endWithUs } from './children.js';
import type { Program } from './peer.js';
import { isClean, type ThreadTimes, threadTimes } from './thread-times.js';

/** What a subject reports once it can be timed. */
export interface Ready {
  readonly version?: string;
  readonly note?: string;
  readonly weightBytes?: number;
  readonly copies?: number;
  readonly probe?: readonly number[];
  readonly runner?: string;
}

/** One timed sample. */
export interface Sample {
  /** Milliseconds per call. */
  readonly ms: number;
  /** No computing thread had to wait for a core. Unknown off Linux, where it is taken as true. */
  readonly clean: boolean;
}

interface Answer {
  readonly ready?: Ready;
  readonly ms?: number;
  readonly clean?: boolean;
  readonly error?: string;
}

export type ThreadTimesOf = (pid: number | undefined) => ThreadTimes | undefined;

const kCanPause = process.platform !== 'win32';
// The system must place the dozen threads of a Node process when it continues.
const kSettle_ms = 2;
const kStart_ms = 180_000;
const kAnswer_ms = 300_000;

/**
 * A child that answers; end it with {@link close}. It is stopped between its turns, so that pool threads
 * that spin for more work (OpenMP's for milliseconds) take no core from the next child. It ends with this
 * process.
 */
export class SubjectProcess {
  private readonly child: ChildProcess;
  private readonly lines: Answer[] = [];
  private waiting: ((answer: Answer) => void) | undefined;
  private errors = '';
  private calls = 1;

  private constructor({ command, args, env }: Program) {
    this.child = spawn(command, [...args], {
      env: { ...process.env, ...env },
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    endWithUs(this.child);
    let rest = '';
    this.child.stdout?.setEncoding('utf8').on('data', (chunk: string) => {
      const found = (rest + chunk).split('\n');
      rest = found.pop() ?? '';
      for (const line of found) this.take(parseAnswer(line));
    });
    this.child.stderr?.setEncoding('utf8').on('data', (chunk: string) => {
      this.errors = (this.errors + chunk).slice(-2000);
    });
    this.child.stdin?.on('error', () => {}); // it ended: its exit is reported
    this.child.on('error', ({ message }) => this.take({ error: message }));
    this.child.on('close', (code, signal) => {
      const last = this.errors.trim().split('\n').pop() ?? '';
      this.take({ error: `ended (${signal ?? code})${last === '' ? '' : `: ${last}`}` });
    });
  }

  /** @throws Error, in words, if it does not start */
  static async start(program: Program): Promise<{ process: SubjectProcess; ready: Ready }> {
    const subject = new SubjectProcess(program);
    try {
      const { ready } = await subject.next(kStart_ms);
      if (ready === undefined) throw new Error('its first line is not {"ready": ...}');
      subject.pause();
      return { process: subject, ready };
    } catch (error) {
      await subject.close();
      throw error;
    }
  }

  /** Warms up, and finds how many calls make a sample of this length. */
  async calibrate(sample_ms: number): Promise<void> {
    // A slow call is warm after one run.
    if ((await this.time(1)) > 10 * sample_ms) return;
    let calls = 1;
    for (let round = 0; round < 4; round++) {
      const ms = await this.time(calls);
      if (ms >= 0.7 * sample_ms) break;
      calls = Math.min(1_000_000, Math.ceil(calls * Math.min(100, sample_ms / Math.max(ms, 1e-3))));
    }
    this.calls = calls;
  }

  /** @param timesOf what the threads of a process have done so far */
  async sample(timesOf: ThreadTimesOf = threadTimes): Promise<Sample> {
    // All its threads wake at once, and only then does the system spread them over the cores.
    this.resume();
    await sleep(kSettle_ms);
    if (this.calls > 1) await this.call(Math.ceil(this.calls / 2));
    const before = timesOf(this.child.pid);
    const { ms, clean } = await this.call(this.calls);
    const after = timesOf(this.child.pid);
    this.pause();
    return { ms: ms / this.calls, clean: clean ?? isClean(before, after, ms) };
  }

  /** Ends the child, by force if it does not end by itself. */
  close(): Promise<void> {
    return new Promise((resolve) => {
      if (this.child.exitCode !== null || this.child.signalCode !== null || !this.child.pid) {
        resolve();
        return;
      }
      const timer = setTimeout(() => this.child.kill('SIGKILL'), 3000);
      this.child.once('close', () => {
        clearTimeout(timer);
        resolve();
      });
      this.resume();
      this.child.stdin?.end();
    });
  }

  private async time(calls: number): Promise<number> {
    this.resume();
    const { ms } = await this.call(calls);
    this.pause();
    return ms;
  }

  private async call(calls: number): Promise<{ ms: number; clean: boolean | undefined }> {
    this.child.stdin?.write(`${calls}\n`);
    const { ms, clean } = await this.next(kAnswer_ms);
    if (typeof ms !== 'number' || !(ms >= 0)) throw new Error('it answered without a time');
    return { ms, clean };
  }

  private pause(): void {
    if (kCanPause) this.child.kill('SIGSTOP');
  }

  private resume(): void {
    if (kCanPause) this.child.kill('SIGCONT');
  }

  private take(answer: Answer | undefined): void {
    if (answer === undefined) return;
    const waiting = this.waiting;
    this.waiting = undefined;
    if (waiting === undefined) this.lines.push(answer);
    else waiting(answer);
  }

  private async next(limit_ms: number): Promise<Answer> {
    let timer: NodeJS.Timeout | undefined;
    const answer = await new Promise<Answer>((resolve) => {
      const line = this.lines.shift();
      if (line !== undefined) {
        resolve(line);
        return;
      }
      this.waiting = resolve;
      timer = setTimeout(() => {
        this.child.kill('SIGKILL');
        resolve({ error: `no answer in ${limit_ms / 1000} s` });
      }, limit_ms);
    });
    clearTimeout(timer);
    if (answer.error !== undefined) throw new Error(answer.error);
    return answer;
  }
}

function parseAnswer(line: string): Answer | undefined {
  if (!line.startsWith('{')) return undefined;
  try {
    return JSON.parse(line) as Answer;
  } catch {
    return undefined;
  }
}
