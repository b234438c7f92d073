/**
 * Which kernel cases a smoke run takes: of each kind of shape one for each set of kernels that it launches, every
 * kernel on each compute capability that launches it, and the rows that a tile handles apart. The whole matrix
 * (npm run test:emulator) takes every case.
 */

/** f16 runs the lines of bf16: where a kernel of each has a case, they are one. */
const alike = (text) => text.replaceAll(/bf16|f16/g, 'half');

/** A case's name without its shape; of the base weights' formats, without which. */
function kindOf(full) {
  const name = alike(full);
  if (name.startsWith('large')) return name.replace(/\[.*/, '');
  return name.replace(/\[\d+, \d+, \d+\]/, '').replace(/ (nf4|fp4|int8)\b/, ' quantised');
}

/** Kernels that differ in how many bits a code has are one here. */
const familyOf = (kernel) => alike(kernel).replace(/4bit|8bit|code4|code8/, 'code');

/** Shapes of so few rows are taken whatever else has their kind. */
const isOfFewRows = (name) => /\[(1|5|3), /.test(name);

/** The elements that a case's shape multiplies; small ones are asked for first. */
export function sizeOf([, name]) {
  const shape = /\[([\d, ]+)\]/.exec(name)?.[1] ?? '';
  return shape.split(', ').reduce((product, size) => product * Math.max(1, Number(size)), 1);
}

export class SmokeSample {
  #devices;
  #byKernels;
  #seen = new Set();
  #kernels = new Set();
  #sweeps = [];

  /**
   * `byKernels`: a kind counts once for each set of kernels. Else it counts once for each compute capability, and
   * of the sweeps over many adapters and of large shapes only what launches a kernel for the first time.
   */
  constructor(devices, { byKernels }) {
    this.#devices = devices;
    this.#byKernels = byKernels;
  }

  /** Whether to take the case of this line, [outcome, name, ms, launches, places, kernels]; ask once for each. */
  takes([outcome, name, , , , launched = ''], device) {
    const kernels = launched.split(' ').filter(Boolean);
    const fresh = this.#addKernels(kernels, device);
    // The checks see of what takes longest the smallest case of each kernel.
    if (!this.#byKernels && /^(large|loss|grouped|family)/.test(name)) return fresh;
    if (/^(grouped|family)/.test(name)) return this.#isOfDevice(name, device) || fresh;
    const few = isOfFewRows(name) && this.#add(alike(name));
    // A case that stopped for want of results may launch more than is known.
    const isKnown =
      this.#byKernels &&
      !name.startsWith('large') &&
      !outcome.startsWith('error') &&
      !this.#isOfFewMultiprocessors(device);
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
    for (const kernel of kernels) {
      this.#kernels.add(`${sm} ${this.#byKernels ? kernel : alike(kernel)}`);
    }
    return this.#kernels.size > before;
  }

  /** A second device of its compute capability repeats kinds of shapes, on which its plans may be others. */
  #isOfFewMultiprocessors(device) {
    return this.#devices.find(({ sm }) => sm === device.sm) !== device;
  }

  /** Of the sweeps over many adapters and over families of plans, which take longest, every second is of one device, in turns. */
  #isOfDevice(name, device) {
    if (!this.#sweeps.includes(name)) this.#sweeps.push(name);
    const turn = this.#sweeps.indexOf(name) % (2 * this.#devices.length);
    return turn === this.#devices.indexOf(device);
  }
}
