/**
 * Where an instruction stands: the source line that .loc names. A wrapper of one instruction
 * (ptx.cuh) and the toolkit's own headers say nothing to a reader, so where nvcc has inlined them
 * the place is that of their caller, as it is in source mode.
 */
import path from 'node:path';

const kWrappers = /^cuda\/(gpu|ptx|ptx_sm90)\.cuh$/;

export class Locations {
  /** @param files PTX's file table, @param root the repository */
  constructor(files, root) {
    this.names = new Map(); // number -> path in the repository, or null outside
    for (const [number, file] of files) {
      const relative = path.relative(root, path.resolve(file));
      this.names.set(number, relative.startsWith('..') ? null : relative.split(path.sep).join('/'));
    }
    this.files = files;
    this.callers = new Map(); // place -> where it was inlined
    this.used = new Map(); // file name -> its constant in C++
  }

  /** Takes in a .loc; returns { file, line } for what follows it. */
  read(location) {
    const key = ({ file, line, column }) => `${file}:${line}:${column}`;
    if (location.inlinedAt) this.callers.set(key(location.place), location.inlinedAt);
    let place = location.place;
    let caller = location.inlinedAt;
    const seen = new Set();
    while (caller && this.isHidden(place.file) && !seen.has(key(place))) {
      seen.add(key(place));
      place = caller;
      caller = this.callers.get(key(place));
    }
    const name = this.names.get(place.file) ?? path.basename(this.files.get(place.file) ?? '?');
    return { file: name, line: place.line };
  }

  isHidden(file) {
    const name = this.names.get(file);
    return name === null || name === undefined || kWrappers.test(name);
  }

  /** The C++ expression of a place. */
  site({ file, line }) {
    let constant = this.used.get(file);
    if (constant === undefined) {
      constant = `kFile${this.used.size}`;
      this.used.set(file, constant);
    }
    return `Site::Line(${constant}, ${Math.min(line, 65535)})`;
  }
}
