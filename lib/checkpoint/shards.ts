/** The weights of a model folder: one safetensors file, or several with an index. */

import fs from 'node:fs';
import path from 'node:path';
import type { RawTensor } from './raw-tensor.js';
import { writeSafetensors } from './safetensors-write.js';

/** Memory of a shard: it is written once it has as many bytes. */
const kShardBytes = 2 ** 31;

/**
 * Writes tensors as they come, so that no more than a shard of them is in memory. The files get their names at the end.
 * @example
 * const shards = new ShardWriter(folder);
 * for (const [name, tensor] of tensors) shards.add(name, tensor);
 * shards.finish();
 */
export class ShardWriter {
  readonly #weightMap: [name: string, shard: number][] = [];
  #shard = new Map<string, RawTensor>();
  #bytes = 0;
  #total = 0;
  #count = 0;

  /** @param shard_bytes of tensors that a file has at least, but for the last one */
  constructor(
    private readonly folder: string,
    private readonly shard_bytes = kShardBytes,
  ) {}

  /** @throws LowrankError as {@link writeSafetensors} */
  add(name: string, tensor: RawTensor): void {
    this.#shard.set(name, tensor);
    this.#weightMap.push([name, this.#count]);
    this.#bytes += tensor.data.byteLength;
    this.#total += tensor.data.byteLength;
    if (this.#bytes >= this.shard_bytes) this.#flush();
  }

  /**
   * Writes what is left, and the index if there are several files.
   * @returns the number of tensors
   */
  finish(): number {
    if (this.#shard.size > 0) this.#flush();
    const pad = (n: number) => String(n).padStart(5, '0');
    const count = this.#count;
    const nameOf = (i: number) =>
      count === 1 ? 'model.safetensors' : `model-${pad(i + 1)}-of-${pad(count)}.safetensors`;
    for (let i = 0; i < count; i++) {
      fs.renameSync(this.#part(i), path.join(this.folder, nameOf(i)));
    }
    if (count > 1) {
      const weight_map = Object.fromEntries(this.#weightMap.map(([own, i]) => [own, nameOf(i)]));
      const index = { metadata: { total_size: this.#total }, weight_map };
      const file = path.join(this.folder, 'model.safetensors.index.json');
      fs.writeFileSync(file, `${JSON.stringify(index, null, 2)}\n`);
    }
    return this.#weightMap.length;
  }

  #part(i: number): string {
    return path.join(this.folder, `part-${i}`);
  }

  #flush(): void {
    writeSafetensors(this.#part(this.#count++), this.#shard, { format: 'pt' });
    this.#shard = new Map();
    this.#bytes = 0;
  }
}
