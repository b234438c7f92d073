/**
 * Python pickles are rejected, by name and by content: reading one runs the code in it.
 */

import { LowrankError } from '../core/errors.js';
import { printable } from '../core/printable.js';

const kPickleNames = /\.(bin|pt|pth|ckpt|pkl|pickle)$/i;

/** Is it a file name that PyTorch gives to pickled checkpoints? */
export function hasPickleName(path: string): boolean {
  return kPickleNames.test(path);
}

/**
 * Does a file start like a pickle (protocol 0 to 5) or like a zip archive, which is what
 * `torch.save` writes today?
 *
 * Only the first bytes decide, so a `.safetensors` name does not hide a pickle. A safetensors file
 * is never mistaken for one: its bytes 2 to 7 are the upper bytes of a header length below about
 * 2^24, and the caller first looks for `{` at byte 8.
 *
 * @param head the first 64 bytes of the file, or fewer
 */
export function hasPickleContent(head: Uint8Array): boolean {
  const [b0 = 0, b1 = 0, b2 = 0, b3 = 0] = head;
  if (b0 === 0x50 && b1 === 0x4b && b2 >= 3 && b2 <= 7 && b3 === b2 + 1) return true; // PK..
  if (b0 === 0x80 && b1 >= 2 && b1 <= 5) return true; // PROTO n
  const text = String.fromCharCode(...head.subarray(0, 64));
  // Protocol 0 and 1: MARK, GLOBAL "module\nname\n", or an empty container that is memoised.
  return /^(\((dp|lp|d|l|c)|c[\w.]+\n[\w.]+\n|[\]})]q)/.test(text);
}

/** Builds the error for a file; `why` says how it was recognised. */
export function pickleRefused(op: string, path: string, why: string): LowrankError {
  return new LowrankError(
    'ERR_PICKLE_REFUSED',
    `${op}: ${printable(path)} must be a safetensors file, got a Python pickle (${why}). ` +
      'Loading a pickle can run any code, so it is never read. Convert it once, in an environment ' +
      'that you trust: python -c "import torch, safetensors.torch as s; ' +
      "s.save_file(torch.load('IN', weights_only=True), 'OUT.safetensors')\"",
    { op },
  );
}

/**
 * Throws if a path has a pickle's name.
 * @throws LowrankError `ERR_PICKLE_REFUSED`
 */
export function refusePickleName(op: string, path: string): void {
  if (hasPickleName(path)) throw pickleRefused(op, path, 'by its file name');
}
