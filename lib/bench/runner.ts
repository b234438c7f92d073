/**
 * Times a number of calls. The `benchmark` package does it where it is installed; its mean and its
 * margin are not used, only the time of the one sample that was asked for.
 */

/** What is used of the `benchmark` package. */
interface BenchmarkRun {
  readonly stats: { readonly sample: readonly number[] };
  readonly error?: unknown;
  run(options: { async: boolean }): void;
}
interface BenchmarkClass {
  new (
    name: string,
    body: () => void,
    options: { minSamples: number; maxTime: number; minTime: number; initCount: number },
  ): BenchmarkRun;
  readonly version: string;
}

/** What a number of calls took together. */
export interface Timing {
  readonly ms: number;
  /** Of it, what it took to queue them, before the wait for what they queued began. */
  readonly queued_ms: number;
}

export interface Runner {
  readonly name: string;
  time(calls: number): Promise<Timing>;
}

/**
 * @param asynchronous whether calls, or the wait for them, return promises
 * @param finish waits for what calls have queued: timed, once a sample
 */
export async function makeRunner(
  run: () => void | Promise<void>,
  asynchronous: boolean,
  finish?: () => void | Promise<void>,
): Promise<Runner> {
  const Benchmark = await installed();
  // An asynchronous call is awaited here: the package would time its own turns of the event loop.
  if (Benchmark === undefined || asynchronous) return plainRunner(run, finish);
  let armed = false;
  let left = 0;
  let started = 0;
  let queued_ms = 0;
  let failure: { error: unknown } | undefined;
  const body = () => {
    // Each sample begins with one call that is not timed, to see that the body works.
    if (!armed) armed = true;
    else if (failure === undefined) {
      try {
        if (started === 0) started = performance.now();
        run();
        if (--left > 0 || finish === undefined) return;
        queued_ms = performance.now() - started;
        finish();
      } catch (error) {
        failure = { error };
      }
    }
  };
  return {
    name: `benchmark ${Benchmark.version}`,
    async time(calls) {
      armed = false;
      left = calls;
      started = 0;
      // One of its own each time: once made, it does not take another count.
      const once = { minSamples: 1, maxTime: 0, minTime: 1e-9, initCount: calls };
      const bench = new Benchmark('', body, once);
      bench.run({ async: false });
      if (failure !== undefined) throw failure.error;
      const [period] = bench.stats.sample;
      if (period === undefined) throw new Error(`no sample: ${String(bench.error)}`);
      return { ms: 1000 * period * calls, queued_ms };
    },
  };
}

function plainRunner(run: () => void | Promise<void>, finish?: () => void | Promise<void>): Runner {
  return {
    name: 'a loop',
    async time(calls) {
      const started = performance.now();
      let awaited = finish === undefined;
      for (let i = 0; i < calls; i++) {
        const pending = run();
        if (pending === undefined) continue;
        awaited = true;
        await pending;
      }
      const queued_ms = awaited ? 0 : performance.now() - started;
      await finish?.();
      return { ms: performance.now() - started, queued_ms };
    },
  };
}

async function installed(): Promise<BenchmarkClass | undefined> {
  try {
    const name = 'benchmark';
    return ((await import(name)) as { default: BenchmarkClass }).default;
  } catch {
    return undefined;
  }
}
