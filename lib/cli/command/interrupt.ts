/**
 * Ctrl-C and SIGTERM: the first asks the work to stop at a point where nothing is lost, the second
 * ends the process at once. (Files appear by renaming, so nothing is left half-written either way.)
 */

import { exitCodes } from './exit-codes.js';

/** Signals as an AbortSignal. */
export class Interrupts {
  private readonly controller = new AbortController();
  private received: NodeJS.Signals | undefined;
  private readonly handler = (signal: NodeJS.Signals): void => {
    if (this.received !== undefined) process.exit(codeOf(signal));
    this.received = signal;
    this.onFirst?.();
    this.controller.abort();
  };

  /** @param onFirst called at the first signal */
  constructor(private readonly onFirst?: () => void) {
    process.on('SIGINT', this.handler);
    process.on('SIGTERM', this.handler);
  }

  get signal(): AbortSignal {
    return this.controller.signal;
  }

  /** The exit code for the signal. */
  get exitCode(): number {
    return this.received === undefined ? exitCodes.interrupted : codeOf(this.received);
  }

  dispose(): void {
    process.off('SIGINT', this.handler);
    process.off('SIGTERM', this.handler);
  }
}

function codeOf(signal: NodeJS.Signals): number {
  return signal === 'SIGTERM' ? exitCodes.terminated : exitCodes.interrupted;
}
