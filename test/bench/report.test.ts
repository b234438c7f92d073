/** The HTML report and the figure: complete, self-contained, and without labels on one another. */

import { describe, expect, it } from 'vitest';
import { benchFigure } from '../../lib/bench/report/figure.js';
import {
  overheadPlots,
  rooflinePlot,
  speedupPlots,
  threadPlots,
} from '../../lib/bench/report/figures.js';
import { benchHtml } from '../../lib/bench/report/report-html.js';
import { rate, resultText } from '../../lib/bench/report/table.js';
import type { Row } from '../../lib/bench/result.js';
import { linearTicks, logTicks, plotSvg } from '../../lib/report/plot.js';
import { sampleResult } from './sample-result.js';

const result = sampleResult();
const html = benchHtml(result);
const figure = benchFigure(result) ?? '';

/** Every element is closed, as an SVG in a file of its own needs. */
function balanced(svg: string): boolean {
  const open: string[] = [];
  for (const [, close, name, inside] of svg.matchAll(/<(\/?)([a-z]+)([^>]*)>/g)) {
    if (close === '/') {
      if (open.pop() !== name) return false;
    } else if (!inside?.endsWith('/')) open.push(name as string);
  }
  return open.length === 0;
}

/** Places of the names beside a plot. */
const nameRows = (svg: string) =>
  [...svg.matchAll(/<text class="name" x="[\d.]+" y="(-?[\d.]+)"/g)].map(([, y]) => Number(y));

describe('the report', () => {
  it('has every plot that the default selection is for', () => {
    for (const title of ['Speed-up against M', 'Cost of the adapter', 'Scaling by', 'Roofline']) {
      expect(html).toContain(`<text class="title" x="62" y="16">${title}`);
    }
    expect(html.match(/<svg/g)).toHaveLength(4);
    expect(html.match(/<h3>/g)).toHaveLength(result.cases.length);
    for (const unit of ['GFLOP/s', 'flop/byte', 'GB/s', ' ms', 'time added by the adapter, %']) {
      expect(html).toContain(unit);
    }
  });

  it('loads nothing, runs nothing, and has no hole', () => {
    expect(html).not.toMatch(/<script|<link|<img|@import|url\(|\bsrc=|\bhref=/);
    expect(html).not.toMatch(/NaN|undefined|Infinity|\[object/);
    expect(html).toContain('Some &lt;Processor&gt; &amp; Co');
    expect(html).not.toContain('<Processor>');
    const hostile = { ...result, command: 'lowrank bench --case "<script>alert(1)</script>"' };
    expect(benchHtml(hostile)).not.toContain('<script>');
  });

  it('draws where the numbers are', () => {
    const [plot] = speedupPlots(result);
    expect(plot?.series.map(({ name }) => name)).toEqual([
      'unfused',
      'torch 2.6.0',
      'onednn 3.7.0',
      'tfjs 4.22.0 wasm',
    ]);
    const first = result.cases[0]?.rows.find(({ subject }) => subject === 'torch');
    expect(plot?.series[1]?.points[0]).toMatchObject({ x: 1, y: first?.ratio });
    const [overhead] = overheadPlots(result);
    const forward = overhead?.series[0]?.points ?? [];
    // 2·M·r·(K + N) over 2·M·N·K is r / 1024 at 2048 x 2048; ours is at 216 of the base's 222.
    expect(forward.map(({ x }) => x)).toEqual([8, 32, 128]);
    forward.forEach(({ x, y }) => {
      expect(y).toBeCloseTo(100 * (((1 + x / 1024) * 222) / 216 - 1), 9);
    });
    expect(overhead?.series[1]?.points[2]?.y).toBeCloseTo(12.5, 9);
    const [threads] = threadPlots(result);
    expect(threads?.series.map(({ points }) => points.length)).toEqual([2, 2, 2, 2]);
    const roof = rooflinePlot(result)?.series[0];
    // A slope of 35 GB/s up to 234 GFLOP/s.
    expect(roof?.points[1]?.x).toBeCloseTo(234 / 35, 9);
    expect(roof?.points.map(({ y }) => y).slice(1)).toEqual([234, 234]);
  });

  it('names subjects as far as there is room', () => {
    const named = (subject: string, version: string) => {
      const rename = (row: Row) => (row.subject === 'torch' ? { ...row, subject, version } : row);
      const cases = result.cases.map((one) => ({ ...one, rows: one.rows.map(rename) }));
      return speedupPlots({ ...result, cases })[0]?.series[1]?.name;
    };
    expect(named('openblas', '0.3.29 Cooperlake')).toBe('openblas 0.3.29');
    expect(named('onnxruntime-4', '1.30.0')).toBe('onnxruntime-4');
    expect(named('my own kernel of many words', '1')).toBe('my own kernel of m');
  });

  it('keeps names apart and inside', () => {
    const plots = [speedupPlots, overheadPlots, threadPlots].flatMap((make) => make(result));
    const crowded = plots[0] as (typeof plots)[0];
    // Twelve lines that end in one point, at the bottom and at the top.
    const dense = [crowded.series[0], crowded.series[3]].map((one) => ({
      ...crowded,
      series: Array.from({ length: 12 }, () => one as (typeof crowded.series)[0]),
    }));
    for (const plot of [...plots, ...dense]) {
      const rows = nameRows(plotSvg(plot));
      expect(rows.length).toBeGreaterThan(1);
      rows.slice(1).forEach((y, i) => {
        expect(y - (rows[i] as number)).toBeGreaterThan(13);
      });
      expect(Math.min(...rows)).toBeGreaterThan(10);
      expect(Math.max(...rows)).toBeLessThan(372);
    }
  });

  it('makes a figure that stands alone', () => {
    expect(figure).toMatch(/^<svg xmlns="http:\/\/www.w3.org\/2000\/svg"/);
    expect(balanced(figure)).toBe(true);
    expect(balanced(figure.replace('</g>', ''))).toBe(false);
    expect(figure).toContain('lowrank 0.1.0 at 0123456789ab, 2030-01-02');
    const none = { ...result, roofline: 'no C++ compiler', cases: result.cases.slice(0, 1) };
    expect(benchFigure(none)).toBeUndefined();
    expect(benchHtml(none)).toContain('No roofline: no C++ compiler.');
  });

  it('has the same numbers as text', () => {
    const text = resultText(result);
    expect(text).toContain(
      'lora Llama-3.2-1B q M=1 K=2048 N=2048 r=16 nf4 f32 cpu, 2 threads; cold',
    );
    expect(text).toContain('roofline, 2 threads: f32 234 GFLOP/s, bf16 463 GFLOP/s');
    expect(text).toContain('1305 of 1395 samples clean');
    expect(text.split('\n').every((line) => line.length <= 150)).toBe(true);
  });

  it('says what the intervals of few samples hold', () => {
    const note = 'with 3 it contains the median at 75 % confidence';
    const few = (pairs: number) => ({
      ...result,
      cases: result.cases.map((one, at) => ({
        ...one,
        rows: one.rows.map((row) => ({ ...row, pairs: at === 1 ? pairs : 30 })),
      })),
    });
    for (const made of [resultText, benchHtml]) {
      expect(made(few(3))).toContain(note);
      expect(made(few(6))).not.toContain('from the smallest to the largest');
    }
  });
});

describe('rates', () => {
  it('have three digits and a unit for them', () => {
    expect(rate(0.1234)).toBe('0.123 GFLOP/s');
    expect(rate(999.4)).toBe('999 GFLOP/s');
    expect(rate(999.6)).toBe('1.00 TFLOP/s');
    expect(rate(1326)).toBe('1.33 TFLOP/s');
  });
});

describe('axes', () => {
  it('enclose their values in round numbers', () => {
    expect(linearTicks(0, 28, 5)).toEqual([0, 10, 20, 30]);
    expect(linearTicks(-0.4, 0.9, 5)).toEqual([-0.5, 0, 0.5, 1]);
    expect(linearTicks(5, 5, 5).length).toBeGreaterThan(1);
    expect(logTicks(1, 9)).toEqual([1, 2, 5, 10]);
    expect(logTicks(0.9, 51)).toEqual([0.3, 1, 3, 10, 30, 100]);
    expect(logTicks(2, 90_000)).toEqual([1, 10, 100, 1000, 10_000, 100_000]);
  });
});
