import { rawToFloat32 } from '../../checkpoint/raw-tensor.js';
import { checkShape, checkTensor } from '../../core/check-tensor.js';
import { type Device, resolveDevice } from '../../core/device.js';
import { checkDType, type DType } from '../../core/dtype.js';
import { fail, wrongType } from '../../core/errors.js';
import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import {
  checkInteger,
  checkSameDevice,
  readNumbers,
  readOptions,
  showShape,
} from '../../core/validate.js';
import { type BaseWeight, checkWeight } from '../../ops/base-weight.js';
import { gatherRows } from '../../ops/gather-rows.js';
import { weightGrad } from '../../ops/weight-grad.js';
import { QuantizedWeight } from '../../quant/quantized-weight.js';
import type { Adapter } from '../definition/adapter.js';
import type { PeftFolder } from '../peft/peft-tensors.js';
import { addTokenRows, readTokenRows, writeTokenRows } from '../peft/token-rows-peft.js';

/** Parts of {@link TokenRows}. */
export interface TokenRowsParts {
  /** [tokens, D] */
  rows: Tensor;
  /** The distinct ids of these rows. */
  tokens: readonly number[];
}

/**
 * Trains some rows of an embedding and keeps the others (PEFT's trainable tokens): like the method `trainable-tokens`,
 * but by ids. A token costs its row of the table rather than V values of a one-hot row, so this suits tables of any size.
 * @example
 * const tokens = TokenRows.fromPeft(readAdapterFolder('./adapter'), 'model.embed_tokens');
 * const y = tokens.forward(ids, table); // [ids, D]
 * const { dRows } = tokens.backward(dy, ids);
 */
export class TokenRows implements Disposable {
  /** [tokens, D] */
  readonly rows: Tensor;
  readonly tokens: readonly number[];
  readonly #places: ReadonlyMap<number, number>;

  /** @throws ERR_TYPE, ERR_SHAPE, ERR_VALUE, ERR_DISPOSED */
  constructor(parts: TokenRowsParts) {
    const op = 'TokenRows';
    if (parts === null || typeof parts !== 'object')
      throw wrongType(op, 'parts', 'an object', parts);
    const { rows, tokens } = readOptions(op, parts, { rows: true, tokens: true });
    if (!Array.isArray(tokens)) throw wrongType(op, 'tokens', 'an array of ids', tokens);
    this.tokens = Object.freeze(
      readNumbers(op, 'tokens', tokens, (name, id) => checkInteger(op, name, id, 0, 2 ** 31 - 1)),
    );
    this.#places = new Map(this.tokens.map((id, i) => [id, i]));
    if (this.tokens.length === 0 || this.#places.size < this.tokens.length) {
      fail('ERR_VALUE', op, 'tokens', 'distinct ids, at least one', `[${this.tokens}]`);
    }
    this.rows = checkTensor(op, 'rows', rows);
    checkShape(op, 'rows', this.rows, [this.tokens.length, this.rows.shape[1] ?? 0]);
  }

  #checkTable(op: string, table: BaseWeight): { weight: BaseWeight; V: number; D: number } {
    const { weight, N: V, K: D } = checkWeight(op, table);
    checkTensor(op, 'rows', this.rows);
    checkSameDevice(op, 'the rows', this.rows, weight);
    if (D !== this.rows.shape[1]) {
      const expected = `of shape [V, D = ${this.rows.shape[1]}]`;
      fail('ERR_SHAPE', op, 'table', expected, showShape(weight.shape));
    }
    const beyond = this.tokens.find((id) => id >= V);
    if (beyond !== undefined) {
      fail('ERR_SHAPE', op, 'table', `of more than ${beyond} rows`, showShape(weight.shape));
    }
    return { weight, V, D };
  }

  /**
   * The rows for ids: trained ones, and others from the table.
   * @param ids token ids
   * @param table [V, D] dense or quantised; only the rows of the ids are decoded, in runs of
   * neighbours
   * @returns y [ids, D], in the dtype of the table, or of the tensor from which it was quantised
   * @throws ERR_TYPE, ERR_VALUE, ERR_SHAPE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
   */
  forward(ids: ArrayLike<number>, table: BaseWeight): Tensor {
    const op = 'TokenRows.forward';
    const { weight, V, D } = this.#checkTable(op, table);
    const all = readIds(op, ids, V);
    const dtype = weight instanceof QuantizedWeight ? weight.sourceDType : weight.dtype;
    return scope(() => {
      const y = Tensor.zeros([all.length, D], { dtype, device: weight.device });
      const places = all.map((id, at) => {
        const row = this.#places.get(id);
        return row === undefined ? { from: weight, row: id, at } : { from: this.rows, row, at };
      });
      gatherRows(y, places);
      return y;
    });
  }

  /**
   * The gradient of `Σ y ⊙ dy`: that of a trained row is the sum over its occurrences, in f32 until it is
   * stored.
   * @param dy [ids, D]
   * @param ids the ids of the forward pass
   * @returns dRows [tokens, D], in the dtype of the rows
   * @throws ERR_TYPE, ERR_VALUE, ERR_SHAPE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
   */
  backward(dy: Tensor, ids: ArrayLike<number>): { dRows: Tensor } {
    const op = 'TokenRows.backward';
    const all = readIds(op, ids, 2 ** 31);
    const { rows } = this;
    checkTensor(op, 'dy', dy);
    checkShape(op, 'dy', dy, [all.length, rows.shape[1] ?? 0]);
    checkSameDevice(op, 'dy', dy, rows);
    const count = this.tokens.length;
    return scope(() => {
      // Marks which of the few trained rows each id is.
      const own = new Float32Array(all.length * count);
      all.forEach((id, i) => {
        const place = this.#places.get(id);
        if (place !== undefined) own[i * count + place] = 1;
      });
      const { device } = rows;
      const chosen = Tensor.from(own, [all.length, count], { device });
      return { dRows: weightGrad(chosen, dy.to({ dtype: 'f32' })).to({ dtype: rows.dtype }) };
    });
  }

  /**
   * The table with the trained rows inserted.
   * @param table [V, D], dense; unchanged
   * @returns [V, D], in the dtype of the table
   * @throws ERR_TYPE, ERR_SHAPE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
   */
  merge(table: Tensor): Tensor {
    const op = 'TokenRows.merge';
    checkTensor(op, 'table', table);
    this.#checkTable(op, table);
    return scope(() => {
      const merged = table.to({ dtype: table.dtype });
      gatherRows(
        merged,
        this.tokens.map((at, row) => ({ from: this.rows, row, at })),
      );
      return merged;
    });
  }

  /**
   * The trained rows of one embedding of a PEFT folder: of type TRAINABLE_TOKENS, or of a LoRA folder whose config has
   * `trainable_token_indices`. That is a list, for the input embedding, or lists by names, of which the last one that
   * the module's name ends in applies (PEFT's rule).
   * @returns rows [tokens, D] in the order of the ids in the config
   * @throws ERR_UNSUPPORTED for another type without that field · ERR_FILE if there is no such module, or the config
   * does not name it · ERR_TYPE, ERR_SHAPE, ERR_VALUE
   * @example
   * const tokens = TokenRows.fromPeft(readAdapterFolder('./adapter'), 'model.embed_tokens');
   */
  static fromPeft(
    folder: PeftFolder,
    module: string,
    options?: { device?: Device; dtype?: DType },
  ): TokenRows {
    const op = 'TokenRows.fromPeft';
    const { device, dtype } = readOptions(op, options, { device: true, dtype: true });
    const { raw, tokens } = readTokenRows(op, folder, module);
    const place = {
      device: resolveDevice(op, device),
      dtype: checkDType(op, 'dtype', dtype ?? 'f32'),
    };
    return scope(() => {
      const rows = Tensor.from(rawToFloat32(raw), raw.shape, place);
      return new TokenRows({ rows, tokens });
    });
  }

  /**
   * Converts rows by module to PEFT's layout; {@link writeAdapterFolder} writes the folder.
   * @param beside LoRA of other modules of the same folder, or their folder: the config then has `trainable_token_indices` by
   * module. Rows of a module that the folder already has are replaced, those of others stay.
   * @throws ERR_VALUE if there are none, or without `beside` if modules have different tokens (that config has one
   * list) · ERR_UNSUPPORTED for adapters of a type other than LORA and ADALORA · ERR_TYPE, ERR_FILE, ERR_DISPOSED
   * @example
   * const folder = await TokenRows.toPeft(new Map([['model.embed_tokens', tokens]]), adaptersByModule);
   * await writeAdapterFolder('./adapter', folder);
   */
  static async toPeft(
    embeddings: ReadonlyMap<string, TokenRows>,
    beside?: ReadonlyMap<string, Adapter> | PeftFolder,
  ): Promise<PeftFolder> {
    const op = 'TokenRows.toPeft';
    return beside === undefined
      ? writeTokenRows(op, embeddings)
      : addTokenRows(op, embeddings, beside);
  }

  get disposed(): boolean {
    return this.rows.disposed;
  }

  /** Frees the rows. A second call does nothing. */
  dispose(): void {
    this.rows.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Checks for token ids below V. @throws ERR_TYPE, ERR_VALUE */
function readIds(op: string, ids: unknown, V: number): number[] {
  return readNumbers(op, 'ids', ids, (name, id) => checkInteger(op, name, id, 0, V - 1));
}
