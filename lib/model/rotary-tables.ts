import type { Device } from '../core/device.js';
import { outsideScopes } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import type { RotaryConfig } from './config/decoder-config.js';
import { rotaryTable } from './rotary.js';

/** Tables that stay from call to call: local and global layers in training, evaluation and generation. */
const kMostTables = 8;

/** The tables of rotary angles of a decoder's last calls, on its device. */
export class RotaryTables {
  /** The oldest first. */
  readonly #tables = new Map<string, Tensor>();

  constructor(readonly device: Device) {}

  /**
   * A table of positions 0 to rows - 1, [rows, dims]. It lives until {@link trim} finds newer ones.
   * @param length of the longest document: it decides which factors of `longrope` apply
   */
  get(rotary: RotaryConfig, rows: number, length: number): Tensor {
    const { scaling } = rotary;
    const original =
      scaling.type === 'longrope' ? scaling.originalMaxPositionEmbeddings : Number.MAX_SAFE_INTEGER;
    // Positions beyond the original length are not read where no document reaches it.
    const reach = length <= original ? Math.min(rows, original) : rows;
    const key = `${rows} ${reach} ${JSON.stringify(rotary)}`;
    const known = this.#tables.get(key);
    if (known !== undefined) return known;
    const positions = Int32Array.from({ length: rows }, (_, i) => Math.min(i, reach - 1));
    const { device } = this;
    const table = outsideScopes(() =>
      Tensor.from(rotaryTable(rotary, positions), [rows, rotary.dims], { device }),
    );
    this.#tables.set(key, table);
    return table;
  }

  /** Frees the oldest tables. Queued ops and views hold their memory. */
  trim(most = kMostTables): void {
    for (const [key, table] of this.#tables) {
      if (this.#tables.size <= most) return;
      table.dispose();
      this.#tables.delete(key);
    }
  }
}
