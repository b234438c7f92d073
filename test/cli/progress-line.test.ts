/** One line of progress on terminals of every width. */

import { describe, expect, it } from 'vitest';
import { progressLine } from '../../lib/report/terminal.js';

const training = {
  label: 'training',
  done: 120,
  total: 1000,
  left: '2:05 left',
  details: ['loss 3.123', 'held-out 3.456', '12,345 tokens/s'],
};
const bar = `[##${'-'.repeat(18)}]`;

describe('a progress line', () => {
  const numbers = '120/1000  2:05 left  loss 3.123  held-out 3.456  12,345 tokens/s';
  it.each([
    [200, `training ${bar} ${numbers}`],
    [80, `training ${numbers}`],
    [40, '120/1000  2:05 left  loss 3.123'],
    [20, '120/1000  2:05 left'],
    [19, 'training 120/1000'],
    [10, '120/1000'],
    [5, '120/'],
    [1, ''],
  ])('on %i columns', (columns, line) => {
    expect(progressLine(training, columns)).toBe(line);
  });

  it('takes a terminal without a width, or with a width of 0, for one of 80 columns', () => {
    expect(progressLine(training, 0)).toBe(progressLine(training, 80));
    expect(progressLine(training, undefined)).toBe(progressLine(training, 80));
  });

  it('has a bar of what is left over, and its last character', () => {
    const short = { ...training, details: ['loss 3.123'] };
    expect(progressLine(short, 80)).toBe(`training ${bar} 120/1000  2:05 left  loss 3.123`);
    expect(progressLine(short, 52)).toBe('training [--------] 120/1000  2:05 left  loss 3.123');
    expect(progressLine(short, 51)).toBe('training 120/1000  2:05 left  loss 3.123');
  });

  it('leaves the last column free on every width, and the time left goes last of all but the count', () => {
    for (let columns = 1; columns <= 200; columns++) {
      const line = progressLine(training, columns);
      expect(line.length).toBeLessThan(columns);
      if (line.includes('loss')) expect(line).toContain('left');
      if (columns >= 20) expect(line).toContain('120/1000  2:05 left');
    }
  });

  it('does without what is not known yet', () => {
    const early = { label: 'quantising', done: 0, total: 0, left: undefined, details: [''] };
    expect(progressLine(early, 80)).toBe(`quantising [${'#'.repeat(20)}] 0/0`);
  });
});
