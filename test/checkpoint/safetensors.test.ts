/** Round trips, layout and fault injection; safetensors-differential.py compares with the reference. */

import fs from 'node:fs';
import path from 'node:path';
import { describe, expect, it, vi } from 'vitest';
import {
  bytesOf,
  type RawTensor,
  rawByteLength,
  rawDTypes,
  rawToFloat32,
} from '../../lib/checkpoint/raw-tensor.js';
import {
  encodeSafetensors,
  openSafetensors,
  readSafetensors,
  writeSafetensors,
} from '../../lib/checkpoint/safetensors.js';
import { codeOf, tempFolder } from './raw-file.js';

/** One tensor of each dtype with distinct bytes, as raw bytes. */
function oneOfEach(): Map<string, RawTensor> {
  const tensors = new Map<string, RawTensor>();
  for (const [index, dtype] of [...rawDTypes].reverse().entries()) {
    const length = rawByteLength(dtype, [3, 4]) as number;
    const data = Uint8Array.from({ length }, (_, i) => (i * 7 + index * 31) & 0xff);
    tensors.set(`t.${dtype}`, { dtype, shape: [3, 4], data });
  }
  return tensors;
}

describe('safetensors round trip', () => {
  it('gives every dtype back, from bytes, from a file and one by one', () => {
    const tensors = oneOfEach();
    const file = path.join(tempFolder(), 'x.safetensors');
    writeSafetensors(file, tensors, { format: 'pt', author: 'ä"\n\u{1f600}' });
    const encoded = encodeSafetensors(tensors, { format: 'pt', author: 'ä"\n\u{1f600}' });
    expect(new Uint8Array(fs.readFileSync(file))).toEqual(encoded);
    const opened = openSafetensors(file);
    for (const content of [readSafetensors(file), readSafetensors(encoded)]) {
      expect(content.metadata).toEqual(
        new Map([
          ['format', 'pt'],
          ['author', 'ä"\n\u{1f600}'],
        ]),
      );
      expect(content.tensors.size).toBe(tensors.size);
      for (const [name, tensor] of tensors) {
        for (const got of [content.tensors.get(name) as RawTensor, opened.read(name)]) {
          expect(got.dtype).toBe(tensor.dtype);
          expect(got.shape).toEqual([3, 4]);
          expect(bytesOf(got.data)).toEqual(tensor.data);
          expect(got.data.byteOffset).toBe(0);
          expect(got.data.buffer.byteLength).toBe(got.data.byteLength);
        }
        expect(opened.info(name)).toEqual({
          dtype: tensor.dtype,
          shape: [3, 4],
          byteLength: tensor.data.byteLength,
        });
      }
    }
  });

  it('gives natural typed arrays', () => {
    const { tensors } = readSafetensors(encodeSafetensors(oneOfEach()));
    const kinds = [...tensors].map(([, t]) => `${t.dtype} ${t.data.constructor.name}`);
    expect(kinds).toEqual([
      'C64 Uint8Array',
      'U64 BigUint64Array',
      'I64 BigInt64Array',
      'F64 Float64Array',
      'F32 Float32Array',
      'U32 Uint32Array',
      'I32 Int32Array',
      'BF16 Uint16Array',
      'F16 Uint16Array',
      'U16 Uint16Array',
      'I16 Int16Array',
      'F8_E8M0 Uint8Array',
      'F8_E4M3 Uint8Array',
      'F8_E5M2 Uint8Array',
      'I8 Int8Array',
      'U8 Uint8Array',
      'F6_E3M2 Uint8Array',
      'F6_E2M3 Uint8Array',
      'F4 Uint8Array',
      'BOOL Uint8Array',
    ]);
  });

  it('copies: neither the source nor another tensor shares memory', () => {
    const file = encodeSafetensors({
      a: { dtype: 'U8', shape: [4], data: new Uint8Array([1, 2, 3, 4]) },
    });
    const tensor = readSafetensors(file).tensors.get('a') as RawTensor;
    file.fill(0);
    expect(tensor.data).toEqual(new Uint8Array([1, 2, 3, 4]));
  });

  it('is independent of insertion order and pads the header to 8 bytes', () => {
    const tensors = [...oneOfEach()];
    const forward = encodeSafetensors(new Map(tensors));
    expect(encodeSafetensors(new Map(tensors.reverse()))).toEqual(forward);
    for (let length = 1; length < 20; length++) {
      const one = { ['n'.repeat(length)]: tensors[0]?.[1] as RawTensor };
      expect(new DataView(encodeSafetensors(one).buffer).getUint32(0, true) % 8).toBe(0);
    }
  });

  it('sorts names as UTF-8 does', () => {
    const zero: RawTensor = { dtype: 'U8', shape: [1], data: new Uint8Array(1) };
    const names = ['\u{1f600}', '\uff5e', 'b', 'ab', 'a', '\u{1f600}a', '\u{1f601}', ''];
    const file = encodeSafetensors(new Map(names.map((name) => [name, zero])));
    const expected = [...names].sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
    expect([...readSafetensors(file).tensors.keys()]).toEqual(expected);
  });

  it('reads the named tensors only, and refuses a name that is not there', () => {
    const file = encodeSafetensors(oneOfEach());
    const { tensors } = readSafetensors(file, { names: ['t.U8', 't.F32'] });
    expect([...tensors.keys()]).toEqual(['t.F32', 't.U8']);
    expect(codeOf(() => readSafetensors(file, { names: ['nope'] }))).toBe('ERR_FILE');
  });

  it('refuses tensors that are not what they say', () => {
    const data = new Float32Array(2);
    const bad = {
      ERR_SHAPE: [
        { dtype: 'F32', shape: [3], data },
        { dtype: 'F32', shape: [-2], data },
        { dtype: 'F32', shape: [1.5], data },
        { dtype: 'F32', shape: [2 ** 53], data },
        { dtype: 'F4', shape: [3], data: new Uint8Array(1) },
      ],
      ERR_DTYPE: [
        { dtype: 'f32', shape: [2], data },
        { dtype: 'F32', shape: [2], data: new Int32Array(2) },
        { dtype: 'BF16', shape: [4], data },
        { dtype: 'F32', shape: [2], data: [1, 2] },
        { dtype: 'F32', shape: [2], data: new DataView(new ArrayBuffer(8)) },
      ],
    };
    for (const [code, tensors] of Object.entries(bad)) {
      for (const tensor of tensors) {
        expect(codeOf(() => encodeSafetensors({ a: tensor as unknown as RawTensor }))).toBe(code);
      }
    }
    const good: RawTensor = { dtype: 'F32', shape: [2], data };
    expect(codeOf(() => encodeSafetensors({ __metadata__: good }))).toBe('ERR_VALUE');
    expect(codeOf(() => encodeSafetensors({ '\ud800': good }))).toBe('ERR_VALUE');
    expect(codeOf(() => encodeSafetensors({}, { a: 1 } as never))).toBe('ERR_VALUE');
  });
});

describe('rawToFloat32', () => {
  it('converts all f16 patterns exactly', () => {
    const data = Uint16Array.from({ length: 65536 }, (_, i) => i);
    const values = rawToFloat32({ dtype: 'F16', shape: [65536], data });
    const expected = Float32Array.from({ length: 65536 }, (_, bits) => {
      const [e, f] = [(bits >> 10) & 31, bits & 1023];
      const finite = e === 0 ? f * 2 ** -24 : (1 + f / 1024) * 2 ** (e - 15);
      const magnitude = e < 31 ? finite : f === 0 ? Infinity : NaN;
      return bits & 0x8000 ? -magnitude : magnitude;
    });
    expect(values).toEqual(expected);
  });

  it('converts all bf16 patterns exactly', () => {
    const data = Uint16Array.from({ length: 65536 }, (_, i) => i);
    const values = rawToFloat32({ dtype: 'BF16', shape: [65536], data });
    const back = new Uint32Array(values.buffer);
    expect(back).toEqual(Uint32Array.from({ length: 65536 }, (_, bits) => (bits << 16) >>> 0));
  });

  it('rounds f64 once and copies f32', () => {
    const f64 = new Float64Array([1 + 2 ** -24, 1 + 3 * 2 ** -24, 1e300, -0, NaN, 2 ** -150]);
    const values = rawToFloat32({ dtype: 'F64', shape: [6], data: f64 });
    expect([...values]).toEqual([1, 1 + 2 ** -22, Infinity, -0, NaN, 0]);
    const f32 = new Float32Array([1, 2]);
    const copy = rawToFloat32({ dtype: 'F32', shape: [2], data: f32 });
    f32[0] = 9;
    expect([...copy]).toEqual([1, 2]);
    const odd = new Uint8Array(9).subarray(1);
    expect([...rawToFloat32({ dtype: 'F32', shape: [2], data: odd })]).toEqual([0, 0]);
  });

  it('refuses integers', () => {
    const raw: RawTensor = { dtype: 'I8', shape: [1], data: new Int8Array(1) };
    expect(codeOf(() => rawToFloat32(raw))).toBe('ERR_DTYPE');
  });
});

describe('atomic writes', () => {
  const tensors = { a: { dtype: 'U8', shape: [5], data: new Uint8Array(5).fill(7) } } as const;

  it('leaves the old file and no other whichever system call fails', () => {
    const folder = tempFolder();
    const file = path.join(folder, 'x.safetensors');
    writeSafetensors(file, tensors);
    const old = fs.readFileSync(file);
    const calls = ['openSync', 'writeSync', 'fsyncSync', 'renameSync'] as const;
    for (const call of calls) {
      for (let at = 1; at <= (call === 'writeSync' ? 2 : 1); at++) {
        for (const [errno, code] of [
          ['ENOSPC', 'ERR_DISK_FULL'],
          ['EDQUOT', 'ERR_DISK_FULL'],
          ['EFBIG', 'ERR_DISK_FULL'],
          ['EIO', 'ERR_FILE'],
        ] as const) {
          const original = fs[call] as (...args: unknown[]) => unknown;
          let count = 0;
          const spy = vi.spyOn(fs, call as 'openSync').mockImplementation(((...args: unknown[]) => {
            if (++count === at) throw Object.assign(new Error(errno), { code: errno });
            return original(...args);
          }) as never);
          try {
            const write = () => writeSafetensors(file, { ...tensors, b: tensors.a });
            expect([call, codeOf(write)]).toEqual([call, code]);
          } finally {
            spy.mockRestore();
          }
          expect(count).toBe(at);
          expect(fs.readdirSync(folder)).toEqual(['x.safetensors']);
          expect(fs.readFileSync(file)).toEqual(old);
        }
      }
    }
  });

  it('finishes short writes', () => {
    const file = path.join(tempFolder(), 'x.safetensors');
    const write = fs.writeSync;
    const spy = vi
      .spyOn(fs, 'writeSync')
      .mockImplementation(((fd: number, bytes: Uint8Array, at: number, length: number) =>
        write(fd, bytes, at, Math.min(length, 3))) as never);
    try {
      writeSafetensors(file, tensors);
    } finally {
      spy.mockRestore();
    }
    expect(readSafetensors(file).tensors.get('a')?.data).toEqual(tensors.a.data);
  });

  it('replaces what a link leads to, and refuses a missing folder', () => {
    const folder = tempFolder();
    fs.mkdirSync(path.join(folder, 'real'));
    const link = path.join(folder, 'link.safetensors');
    fs.writeFileSync(path.join(folder, 'real', 'x.safetensors'), 'old');
    fs.symlinkSync(path.join('real', 'x.safetensors'), link);
    writeSafetensors(link, tensors);
    expect(fs.lstatSync(link).isSymbolicLink()).toBe(true);
    expect(readSafetensors(link).tensors.size).toBe(1);
    const nowhere = path.join(folder, 'none', 'x.safetensors');
    expect(codeOf(() => writeSafetensors(nowhere, tensors))).toBe('ERR_FILE_NOT_FOUND');
    expect(codeOf(() => readSafetensors(nowhere))).toBe('ERR_FILE_NOT_FOUND');
  });
});
