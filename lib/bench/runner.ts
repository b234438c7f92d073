/**
 * Times a number of calls, with the `benchmark` package if it is installed. Only the time of its
 * single sample is used, not its mean or margin.
 */

/** The part of the `benchmark` package that is used. */
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

/** The total time of a number of calls. */
export interface Timing {
  readonly ms: number;
  /** The part of it that queuing took, before the wait started. */
  readonly queued_ms: number;
}

export interface Runner {
  readonly name: string;
  time(calls: number): Promise<Timing>;
}

/**
 * @param asynchronous do the calls, or the wait for them, return promises?
 * @param finish waits for queued calls: timed, once per sample
 */
export async function makeRunner(
  run: () => void | Promise<void>,
  asynchronous: boolean,
  finish?: () => void | Promise<void>,
): Promise<Runner> {
  const Benchmark = await installed();
  // An asynchronous call is awaited here, because the package would include its own turns of the
  // event loop.
  if (Benchmark === undefined || asynchronous) return plainRunner(run, finish);
  let armed = false;
  let left = 0;
  let started = 0;
  let queued_ms = 0;
  let failure: { error: unknown } | undefined;
  const body = () => {
    // Each sample starts with one untimed call, which checks that the function works.
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
      // A new object each time: once made, it does not accept another count.
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
