/**
 * Which kernel cases a smoke run takes: of each kind of shape one for each set of kernels that it launches, every
 * kernel on each compute capability that launches it, and the rows that a tile handles apart. The whole matrix
 * (npm run test:emulator) takes every case.
 */

/** A case's name without its shape; of the base weights' formats, without which. */
function kindOf(name) {
  if (name.startsWith('large')) return name.replace(/\[.*/, '');
  return name.replace(/\[\d+, \d+, \d+\]/, '').replace(/ (nf4|fp4|int8)\b/, ' quantised');
}

/** Kernels that differ in how many bits a code has are one here. */
const familyOf = (kernel) => kernel.replace(/4bit|8bit|code4|code8/, 'code');

/** Shapes of so few rows are taken whatever else has their kind. */
const isOfFewRows = (name) => /\[(1|5|3), /.test(name);

export class SmokeSample {
  #devices;
  #byKernels;
  #seen = new Set();
  #kernels = new Set();
  #sweeps = [];

  /**
   * `byKernels`: a kind counts once for each set of kernels. Else it counts once for each compute capability, and
   * of the sweeps over many adapters, which were chosen before, all count.
   */
  constructor(devices, { byKernels }) {
    this.#devices = devices;
    this.#byKernels = byKernels;
  }

  /** Whether to take the case of this line, [outcome, name, ms, launches, places, kernels]; ask once for each. */
  takes([outcome, name, , , , launched = ''], device) {
    const kernels = launched.split(' ').filter(Boolean);
    const fresh = this.#addKernels(kernels, device);
    if (name.startsWith('grouped')) {
      return !this.#byKernels || this.#isOfDevice(name, device) || fresh;
    }
    const few = isOfFewRows(name) && this.#add(name);
    // A case that stopped for want of results may launch more than is known.
    const isKnown = this.#byKernels && !name.startsWith('large') && !outcome.startsWith('error');
    const how = isKnown ? [...new Set(kernels.map(familyOf))].sort().join(' ') : device.sm;
    const own = this.#add(`${kindOf(name)}|${how}`);
    return own || few || fresh;
  }

  #add(key) {
    if (this.#seen.has(key)) return false;
    this.#seen.add(key);
    return true;
  }

  /** Is one of the kernels new on this compute capability? */
  #addKernels(kernels, { sm }) {
    const before = this.#kernels.size;
    for (const kernel of kernels) this.#kernels.add(`${sm} ${kernel}`);
    return this.#kernels.size > before;
  }

  /** Sweeps over many adapters, which take longest, are of one device each, in turns. */
  #isOfDevice(name, device) {
    if (!this.#sweeps.includes(name)) this.#sweeps.push(name);
    return this.#sweeps.indexOf(name) % this.#devices.length === this.#devices.indexOf(device);
  }
}
