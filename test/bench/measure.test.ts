/** Taking turns, pairs, and peers that fail, with subjects whose times are known. */

import { describe, expect, it } from 'vitest';
import { expectedProbe } from '../../lib/bench/data.js';
import type { Job } from '../../lib/bench/job.js';
import { type FoundPeer, measureCase, type Plan } from '../../lib/bench/measure.js';
import type { Program } from '../../lib/bench/peer.js';
import { bar, duration, ratioText } from '../../lib/bench/report/table.js';

const job: Job = {
  op: 'matmul',
  M: 1,
  K: 8,
  N: 8,
  r: 1,
  format: 'none',
  dtype: 'f32',
  threads: 1,
  device: 'cpu',
  coldBytes: 0,
};
const plan: Plan = {
  trials: 2,
  repeats: 8,
  seconds: 30,
  sample_ms: 0,
  roofline: false,
  timesOf: () => new Map(),
};

/** A child that says it is ready, then answers with the times that `body` gives for turn i. */
function fake(name: string, body: string, ready: object = {}): FoundPeer {
  const script = `
    console.log('noise of a library');
    console.log(JSON.stringify({ ready: ${JSON.stringify(ready)} }));
    let i = -1; // one call to warm up
    require('readline').createInterface({ input: process.stdin }).on('line', (line) => {
      const calls = Number(line);
      ${body}
      i++;
    }).on('close', () => process.exit(0));`;
  return {
    version: '1',
    peer: {
      name,
      find: () => ({ version: '1' }),
      program: () => ({ command: process.execPath, args: ['-e', script] }),
    },
  };
}
const times = (expression: string) =>
  `console.log(JSON.stringify({ ms: calls * (${expression}) }));`;

const measure = (peers: readonly FoundPeer[], more: Partial<Plan> = {}, one = job) =>
  measureCase(one, peers, { ...plan, ...more }, 'none', () => {});

describe('a job', () => {
  it('takes ratios from samples side by side', async () => {
    // Both drift together by a factor of eight: only the ratio of neighbours is steady.
    const drift = '2 ** Math.max(0, i)';
    const result = await measure([fake('a', times(drift)), fake('b', times(`3 * ${drift}`))]);
    expect(result.rows.map(({ subject }) => subject)).toEqual(['a', 'b']);
    const [a, b] = result.rows;
    expect(a?.samples).toBe(8);
    expect(a?.samples_ms.map((trial) => trial.map(Math.abs))).toEqual([
      [1, 2, 4, 8],
      [1, 2, 4, 8],
    ]);
    expect(a?.median_ms).toBe(3);
    expect(b?.median_ms).toBe(9);
    expect(b?.ratio).toBeCloseTo(3, 9);
    expect(b?.ratio_interval?.map((value) => Number(value.toFixed(9)))).toEqual([3, 3]);
    expect(b?.pairs).toBe(8);
    expect(a?.trial_medians_ms).toEqual([3, 3]);
    expect(a?.gflops).toBeCloseTo((2 * 8 * 8) / 3 / 1e6, 12);
  });

  it('leaves out samples that had to wait for a core, while enough are left', async () => {
    let calls = 0;
    const [busy, idle] = [
      { ran_ms: 0, waited_ms: 0 },
      { ran_ms: 0, waited_ms: 0 },
    ];
    // Asked before and after each sample: in every other one the thread that computes has waited for 2.1 %
    // of its 100 ms; one that hardly runs waits always, and does not count.
    const timesOf = () => {
      busy.ran_ms += 10;
      idle.waited_ms += 50;
      if (calls++ % 4 === 1) busy.waited_ms += 2.1;
      return new Map([
        ['1', { ...busy }],
        ['2', { ...idle }],
      ]);
    };
    const result = await measure([fake('a', times('10 + (i % 2 === 0 ? 90 : 0)'))], { timesOf });
    const [row] = result.rows;
    expect(row?.samples_ms[0]).toEqual([-100, 10, -100, 10, -100, 10, -100, 10]);
    expect([row?.samples, row?.clean, row?.median_ms]).toEqual([16, 8, 10]);
    // A run that has a limit takes none again.
    const once = await measure([fake('a', times('10'))], { timesOf, once: true });
    expect(once.rows[0]).toMatchObject({ samples: 8, clean: 4 });
    // Never clean: the times are of all, and the count says so; more rounds would be no better.
    let waited = 0;
    const waits = () => new Map([['1', { ran_ms: 100 * ++waited, waited_ms: waited }]]);
    const never = await measure([fake('a', times('10')), fake('b', times('20'))], {
      timesOf: waits,
    });
    expect(never.rows[0]).toMatchObject({ samples: 8, clean: 0, median_ms: 10 });
    // A ratio of such samples is none.
    for (const row of never.rows) {
      expect([row.ratio, row.ratio_interval, row.pairs]).toEqual([undefined, undefined, 0]);
      expect(ratioText(row)).toBe('not measured');
    }
  });

  it('gives no ratio where one side of the pairs is not clean', async () => {
    const half = (clean: boolean) =>
      `console.log(JSON.stringify({ ms: calls * 10, clean: ${clean} || i < 2 }));`;
    const { rows } = await measure([fake('a', half(true)), fake('b', half(false))], { trials: 1 });
    expect(rows[0]).toMatchObject({ ratio: 1, median_ms: 10 });
    // Two clean samples, and so two pairs: a third would make a ratio.
    expect(rows[1]).toMatchObject({ pairs: 2, clean: 2 });
    expect(rows[1]?.ratio).toBeUndefined();
  });

  it('tries each way of running a peer, and measures the fastest', async () => {
    const ways = ['30', '10', '20'].map((ms) => ({
      ...(fake('a', times(ms), { note: 'dense' }).peer.program?.(job) as Program),
      settings: `policy ${ms}`,
    }));
    const peer = { ...fake('b', '').peer, program: () => ways };
    const { rows } = await measure([fake('a', times('10')), { version: '1', peer }]);
    expect(rows[1]).toMatchObject({ median_ms: 10, note: 'dense; policy 10', samples: 8 });
  });

  it('believes a child that says whether its sample was clean', async () => {
    const timesOf = () => new Map([['1', { ran_ms: 1, waited_ms: 0 }]]);
    const body = 'console.log(JSON.stringify({ ms: calls * 10, clean: i % 2 === 0 }));';
    const result = await measure([fake('a', body)], { timesOf });
    expect(result.rows[0]?.samples_ms[0]).toEqual([10, -10, 10, -10, 10, -10, 10]);
  });

  it('puts short calls together', async () => {
    const result = await measure([fake('a', times('0.5'))], { sample_ms: 20 });
    expect(result.rows[0]?.median_ms).toBe(0.5);
  });

  it('leaves a slow subject with fewer samples', async () => {
    const slow = `setTimeout(() => console.log(JSON.stringify({ ms: calls * 60 })), 60);`;
    const result = await measure([fake('a', times('1')), fake('slow', slow)], {
      trials: 1,
      repeats: 30,
      seconds: 0.2,
    });
    expect(result.rows[1]?.samples).toBeGreaterThanOrEqual(3);
    expect(result.rows[1]?.samples).toBeLessThan(6);
    expect(result.rows[0]?.samples).toBeGreaterThanOrEqual(result.rows[1]?.samples as number);
  });

  it('goes on without a peer that fails, and says why', async () => {
    const wrong = expectedProbe(job).map((value) => -value);
    const right = expectedProbe(job);
    const refusing = fake('refusing', times('1'));
    const result = await measure([
      fake('good', times('1'), { probe: right, version: '2' }),
      fake('wrong', times('1'), { probe: wrong }),
      fake('dies', `if (i > 0) process.exit(3); ${times('1')}`),
      fake('mute', times('undefined')),
      fake('complains', `console.log(JSON.stringify({ error: 'no memory' }));`),
      { ...refusing, peer: { ...refusing.peer, refuses: () => 'f32 only' } },
    ]);
    expect(result.rows.map(({ subject, version }) => `${subject} ${version}`)).toEqual(['good 2']);
    expect(result.rows[0]?.error).toBe(0);
    const reasons = Object.fromEntries(
      result.skipped.map(({ subject, reason }) => [subject, reason]),
    );
    expect(reasons).toMatchObject({
      wrong: 'it computes something else: error 2.00',
      mute: 'it answered without a time',
      complains: 'no memory',
      refusing: 'f32 only',
    });
    expect(reasons.dies).toContain('ended (3)');
  });

  it('says so where nothing can be measured', async () => {
    const none = {
      ...fake('absent', ''),
      peer: {
        name: 'absent',
        find: () => ({ version: '1' }),
        program: () => ({ command: '/nonexistent/program', args: [] }),
      },
    };
    const result = await measure([none]);
    expect(result.rows).toEqual([]);
    expect(result.skipped[0]?.reason).toContain('ENOENT');
  });
});

describe('the table', () => {
  it('has three digits, and bars in eighths', () => {
    expect(duration(1234)).toBe('1.23 s');
    expect(duration(12.345)).toBe('12.3 ms');
    expect(duration(0.0123)).toBe('12.3 us');
    expect(bar(1, 4)).toBe('████');
    expect(bar(0.53125, 4)).toBe('██▏'); // 17 eighths
    expect(bar(0, 4)).toBe('▏');
  });
});
