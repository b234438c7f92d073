/**
 * What the command prints: progress on stderr, results on stdout.
 */

/** Text of files, made safe for a terminal: line breaks stay, everything else that could steer it goes. */
export function visible(text: string): string {
  return text.replace(
    // biome-ignore lint/suspicious/noControlCharactersInRegex: finding them is the point
    /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g,
    (c) => (c === '\t' ? '  ' : '\ufffd'),
  );
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
 * @param right columns whose numbers go to the right
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

/** Seconds between lines where stderr is no terminal. */
const kLineInterval = 10;
/** Milliseconds between two drawings of the bar. */
const kDrawInterval = 80;

/**
 * A progress bar on stderr. On a terminal it is redrawn in place; elsewhere a plain line comes now
 * and then, so that a log stays readable.
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

  /** Begins another piece of work. */
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
   * @param detail further text, such as a loss
   */
  update(done: number, total: number, detail = ''): void {
    if (this.quiet) return;
    const now = performance.now();
    if (this.startedAt === 0 && done > 1) this.startedAt = done - 1;
    const last = done >= total;
    if (this.tty) {
      if (!last && now - this.drawn < kDrawInterval) return;
      this.drawn = now;
      this.open = true;
      const columns = process.stderr.columns ?? 80;
      const line = `${this.label} ${bar(done, total)} ${this.text(done, total, detail)}`;
      process.stderr.write(`\r\u001b[2K${line.slice(0, columns - 1)}`);
    } else if (now - this.lineAt > 1000 * kLineInterval) {
      this.lineAt = now;
      process.stderr.write(`${this.label} ${this.text(done, total, detail)}\n`);
    }
  }

  /** A line of its own, above the bar. */
  line(text: string): void {
    this.close();
    if (!this.quiet) process.stderr.write(`${text}\n`);
  }

  /** Leaves the bar as it stands and goes to the next line. */
  close(): void {
    if (this.open) process.stderr.write('\n');
    this.open = false;
  }

  private text(done: number, total: number, detail: string): string {
    const seconds = (performance.now() - this.started) / 1000;
    const worked = done - Math.max(0, this.startedAt);
    const left = worked > 0 && done < total ? (seconds / worked) * (total - done) : undefined;
    const parts = [`${done}/${total}`, detail];
    if (left !== undefined && seconds > 2) parts.push(`${clock(left)} left`);
    return parts.filter((part) => part !== '').join('  ');
  }
}

function bar(done: number, total: number): string {
  const width = 20;
  const full = total > 0 ? Math.min(width, Math.floor((width * done) / total)) : width;
  return `[${'#'.repeat(full)}${'-'.repeat(width - full)}]`;
}
