import type { RawTensor } from '../../checkpoint/raw-tensor.js';
import { fail } from '../../core/errors.js';
import { showShape } from '../../core/validate.js';
import { leadingPlaces } from '../definition/leading-part.js';

interface Whole {
  readonly raw: RawTensor;
  /** 1 where a layer has stored a value. */
  readonly known: Uint8Array;
}

/**
 * Tensors that layers share, assembled from the leading part that each layer has. PEFT allocates them for the largest N
 * and the largest K among the layers, which may belong to different layers. Values that no layer has stay 0, and no
 * layer reads them.
 */
export class SharedParts {
  readonly #op: string;
  readonly #wholes = new Map<string, Whole>();

  constructor(op: string) {
    this.#op = op;
  }

  /**
   * @param key its name in the file
   * @param name its name in the method, for the error
   * @param shape of the whole tensor
   * @returns the whole tensor with this part stored
   * @throws ERR_VALUE if another layer has stored something else there
   */
  put(
    key: string,
    name: string,
    part: RawTensor,
    shape: readonly number[],
    module: string,
  ): RawTensor {
    const whole = this.#wholes.get(key) ?? this.#allocate(key, part, shape);
    const { raw, known } = whole;
    if (String(raw.shape) !== String(shape)) {
      const expected = `of shape ${showShape(raw.shape)}, as in another layer that shares ${key}`;
      fail('ERR_VALUE', this.#op, `${name} of ${module}`, expected, showShape(shape));
    }
    const differs = (at: number, i: number) => known[at] === 1 && raw.data[at] !== part.data[i];
    const places = leadingPlaces(shape, part.shape);
    if (raw.dtype !== part.dtype || places.some(differs)) {
      fail('ERR_VALUE', this.#op, name, 'the same in all layers', `a different one in ${module}`);
    }
    places.forEach((at, i) => {
      raw.data[at] = part.data[i] as never;
      known[at] = 1;
    });
    return raw;
  }

  #allocate(key: string, { dtype, data }: RawTensor, shape: readonly number[]): Whole {
    const size = shape.reduce((product, dim) => product * dim, 1);
    const Values = data.constructor as new (length: number) => typeof data;
    const whole = { raw: { dtype, shape, data: new Values(size) }, known: new Uint8Array(size) };
    this.#wholes.set(key, whole);
    return whole;
  }
}
