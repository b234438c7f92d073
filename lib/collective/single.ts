/** A process alone. */

import type { Tensor } from '../core/tensor.js';
import { type Collective, CollectiveError } from './collective.js';

/** The world of one process: each call gives back what it got. */
export class SingleWorld implements Collective {
  readonly rank = 0;
  readonly size = 1;
  #closed = false;

  async sum(_values: Float32Array): Promise<void> {
    this.#requireOpen();
  }

  async sumTensor(_values: Tensor): Promise<void> {
    this.#requireOpen();
  }

  async gather(bytes: Uint8Array): Promise<Uint8Array[]> {
    this.#requireOpen();
    return [bytes.slice()];
  }

  async broadcast(bytes: Uint8Array | undefined): Promise<Uint8Array> {
    this.#requireOpen();
    return (bytes ?? new Uint8Array()).slice();
  }

  async barrier(): Promise<void> {
    this.#requireOpen();
  }

  async close(): Promise<void> {
    this.#closed = true;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #requireOpen(): void {
    if (this.#closed) throw new CollectiveError('lost', 0, 'collective: this rank has left');
  }
}
