/** By how much a conversion changed weights. */

/** What a layer lost. */
export interface LayerError {
  readonly layer: string;
  readonly type: string;
  /** ‖w' − w‖ / ‖w‖ */
  readonly error: number;
}

/** Adds up the errors of layers. */
export class WeightErrors {
  readonly layers: LayerError[] = [];
  #difference = 0;
  #size = 0;

  /** @param values before, and after */
  add(layer: string, type: string, before: Float32Array, after: Float32Array): void {
    let [difference, size] = [0, 0];
    for (let i = 0; i < before.length; i++) {
      const value = before[i] as number;
      difference += ((after[i] as number) - value) ** 2;
      size += value ** 2;
    }
    this.#difference += difference;
    this.#size += size;
    this.layers.push({ layer, type, error: size === 0 ? 0 : Math.sqrt(difference / size) });
  }

  /** Of all layers together; undefined if none changed its type. */
  get total(): number | undefined {
    if (this.layers.length === 0) return undefined;
    return this.#size === 0 ? 0 : Math.sqrt(this.#difference / this.#size);
  }
}
