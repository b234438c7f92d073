/** Builders of safetensors files, valid and not, from the text of their header. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { expect, onTestFinished } from 'vitest';

/** A file with exactly this header and this many zero bytes of data. */
export function rawFile(header: string | Uint8Array, data_bytes = 0, length?: bigint): Uint8Array {
  const json = typeof header === 'string' ? new TextEncoder().encode(header) : header;
  const file = new Uint8Array(8 + json.length + data_bytes);
  new DataView(file.buffer).setBigUint64(0, length ?? BigInt(json.length), true);
  file.set(json, 8);
  return file;
}

/** A header entry. */
export function entry(name: string, dtype: string, shape: string, offsets: string): string {
  return `${JSON.stringify(name)}:{"dtype":"${dtype}","shape":${shape},"data_offsets":${offsets}}`;
}

/** A folder that goes away with the test. */
export function tempFolder(): string {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lowrank-checkpoint-'));
  onTestFinished(() => fs.rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** The stable code of what a call throws; a call that returns gives `'no error'`. */
export function codeOf(call: () => unknown): string {
  try {
    call();
  } catch (error) {
    const { code, message } = error as { code?: string; message: string };
    // Whatever a file holds, its error must be safe to print and of a readable length.
    // biome-ignore lint/suspicious/noControlCharactersInRegex: finding them is the point
    expect(message).not.toMatch(/[\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/);
    expect(message.length).toBeLessThan(1200);
    return code ?? `untyped: ${String(error)}`;
  }
  return 'no error';
}
