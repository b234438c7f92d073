/**
 * What the commands print: progress on stderr, results on stdout.
 */

import { escapeUnsafe } from '../core/printable.js';

/** Makes text from files safe for a terminal: line breaks stay, everything else that could steer it is removed. */
export function visible(text: string): string {
  return text.replace(
    // biome-ignore lint/suspicious/noControlCharactersInRegex: finding them is the point
    /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g,
    (c) => (c === '\t' ? '  ' : '\ufffd'),
  );
}

/** JSON for stdout, which may be a terminal: its texts cannot steer one, and parse to the original. */
export function jsonText(value: unknown): string {
  return `${JSON.stringify(value, null, 2).split('\n').map(escapeUnsafe).join('\n')}\n`;
}

/** `1,234,567` */
export function grouped(value: number): string {
  return Math.round(value).toLocaleString('en-US');
}

/** `1:05` */
export function clock(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  const minutes = Math.floor(whole / 60);
  const rest = String(whole % 60).padStart(2, '0');
  return minutes < 60
    ? `${minutes}:${rest}`
    : `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, '0')}:${rest}`;
}

/** `12.3 MiB` */
export function mebibytes(bytes: number): string {
  const value = bytes / 2 ** 20;
  return value >= 1024
    ? `${(value / 1024).toFixed(2)} GiB`
    : `${value.toFixed(value < 10 ? 2 : 1)} MiB`;
}

/**
 * Columns padded to the same width.
 * @param right columns to align right
 */
export function table(
  rows: readonly (readonly string[])[],
  right: readonly number[] = [1],
): string {
  const widths: number[] = [];
  for (const row of rows) {
    row.forEach((cell, i) => {
      widths[i] = Math.max(widths[i] ?? 0, cell.length);
    });
  }
  const lines = rows.map((row) =>
    row
      .map((cell, i) => {
        const width = widths[i] as number;
        return right.includes(i) && /^[\d.,+-]/.test(cell)
          ? cell.padStart(width)
          : cell.padEnd(width);
      })
      .join('  ')
      .trimEnd(),
  );
  return `${lines.join('\n')}\n`;
}

/** Seconds between lines if stderr is not a terminal. */
const kLineInterval = 10;
/** Milliseconds between two drawings of the bar. */
const kDrawInterval = 80;

/**
 * A progress bar on stderr. A terminal redraws it in place; elsewhere a plain line appears now and
 * then, so that a log stays readable.
 */
export class Progress {
  private readonly tty = process.stderr.isTTY === true;
  private label = '';
  private started = 0;
  private drawn = 0;
  private lineAt = 0;
  private open = false;
  private startedAt = 0;

  constructor(private readonly quiet = false) {}

  /** Begins another phase of the work. */
  phase(label: string): void {
    this.close();
    this.label = label;
    this.started = performance.now();
    this.lineAt = this.started;
    this.drawn = 0;
    this.startedAt = 0;
  }

  /**
   * @param done of total
   * @param details further texts, such as a loss; if the line is too long for the terminal, the last ones go
   * first
   */
  update(done: number, total: number, ...details: readonly string[]): void {
    if (this.quiet) return;
    const now = performance.now();
    if (this.startedAt === 0 && done > 1) this.startedAt = done - 1;
    const last = done >= total;
    if (this.tty) {
      if (!last && now - this.drawn < kDrawInterval) return;
      this.drawn = now;
      this.open = true;
      const line = progressLine(this.state(done, total, details), process.stderr.columns);
      process.stderr.write(`\r\u001b[2K${line}`);
    } else if (now - this.lineAt > 1000 * kLineInterval) {
      this.lineAt = now;
      const { label, left, ...rest } = this.state(done, total, details);
      const parts = [`${label} ${done}/${total}`, ...rest.details, left ?? ''];
      process.stderr.write(`${parts.filter((part) => part !== '').join('  ')}\n`);
    }
  }

  /** A line of its own, above the bar. */
  line(text: string): void {
    this.close();
    if (!this.quiet) process.stderr.write(`${text}\n`);
  }

  /** Leaves the bar as it is and goes to the next line. */
  close(): void {
    if (this.open) process.stderr.write('\n');
    this.open = false;
  }

  private state(done: number, total: number, details: readonly string[]): ProgressState {
    const seconds = (performance.now() - this.started) / 1000;
    const worked = done - Math.max(0, this.startedAt);
    const timed = worked > 0 && done < total && seconds > 2;
    const left = timed ? `${clock((seconds / worked) * (total - done))} left` : undefined;
    return { label: this.label, done, total, left, details };
  }
}

/** The contents of a progress line. */
export interface ProgressState {
  readonly label: string;
  readonly done: number;
  readonly total: number;
  /** The time left, in words. */
  readonly left: string | undefined;
  /** Further texts, the most important first. */
  readonly details: readonly string[];
}

/** Width if the terminal does not report one (undefined or 0). */
const kDefaultColumns = 80;
/** Limits for the cells of a bar: fewer show nothing, more add nothing. */
const kBarCells = { min: 8, max: 20 };

/**
 * `training [###-----]  12/120  1:05 left  loss 3.123`, at most `columns` - 1 characters, because one in the last
 * column would break the line. If not everything fits, the count stays first, then the time left, the details in
 * order, the label and the bar. A part that does not fit is dropped with all that follow.
 */
export function progressLine(state: ProgressState, columns: number | undefined): string {
  const room = (columns || kDefaultColumns) - 1;
  const { label, done, total, left, details } = state;
  const count = `${done}/${total}`;
  let length = count.length;
  const fits = (part: string | undefined, gap: number): boolean => {
    if (part === undefined || part === '') return true;
    if (length + gap + part.length > room) return false;
    length += gap + part.length;
    return true;
  };
  const tail = [left, ...details].filter((part) => part !== undefined && part !== '');
  let kept = 0;
  while (kept < tail.length && fits(tail[kept], 2)) kept++;
  const head: string[] = [];
  if (label !== '' && fits(label, 1)) head.push(label);
  const cells = Math.min(kBarCells.max, room - length - 3);
  if (kept === tail.length && cells >= kBarCells.min) head.push(bar(done, total, cells));
  return [[...head, count].join(' ').slice(0, room), ...tail.slice(0, kept)].join('  ');
}

function bar(done: number, total: number, cells: number): string {
  const full = total > 0 ? Math.min(cells, Math.floor((cells * done) / total)) : cells;
  return `[${'#'.repeat(full)}${'-'.repeat(cells - full)}]`;
}
