import { fail } from '../core/errors.js';
import { permutation } from '../core/random.js';

/** A part of the training sequences, and where a step is in it. */
export interface SequencePart {
  /** Sequence i is in the part if i mod `parts` is from `part` to `part + width − 1`. */
  readonly part: number;
  readonly parts: number;
  /** Default 1. */
  readonly width?: number;
  /** How many steps the part has served; default the number of the step. */
  readonly index?: number;
}

/** All sequences. */
const kWhole: SequencePart = { part: 0, parts: 1 };

/**
 * Which sequences a pass sees: each epoch is a permutation, determined by the seed and its number. A part of the sequences has
 * epochs of its own.
 */
export class SequenceOrder {
  #epoch = '';
  #order: Uint32Array = new Uint32Array();

  constructor(
    /** Number of sequences. */
    readonly count: number,
    readonly options: {
      readonly batch: number;
      readonly accumulate: number;
      readonly seed: number;
    },
  ) {}

  /** Indices of the sequences of a pass. */
  indices(step: number, pass: number, wanted: SequencePart = kWhole): number[] {
    const { batch, seed, accumulate } = this.options;
    const { part, parts, width = 1, index = step } = wanted;
    const whole = [part, parts, width, index].every((own) => Number.isInteger(own) && own >= 0);
    if (!(whole && width >= 1 && part + width <= parts)) {
      const got = `part ${part}, width ${width} of ${parts}, index ${index}`;
      fail('ERR_VALUE', 'finetune', 'a part of the sequences', 'within its parts', got);
    }
    let count = 0;
    for (let i = part; i < part + width; i++) {
      count += Math.max(0, Math.ceil((this.count - i) / parts));
    }
    if (count === 0) {
      const expected = `some of the ${this.count} sequences (give a longer text, or a shorter --seq-len)`;
      fail('ERR_VALUE', 'finetune', `part ${part} of ${parts}`, expected, 'none');
    }
    const names = parts === 1 ? [] : ['part', part, width, parts];
    return Array.from({ length: batch }, (_, i) => {
      const at = (index * accumulate + pass) * batch + i;
      const epoch = Math.floor(at / count);
      const key = [epoch, ...names].join(' ');
      if (key !== this.#epoch) {
        this.#epoch = key;
        this.#order = permutation(count, seed, 'epoch', epoch, ...names);
      }
      const chosen = this.#order[at % count] as number;
      return part + parts * Math.floor(chosen / width) + (chosen % width);
    });
  }
}
