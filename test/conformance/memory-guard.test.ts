// Operands and outputs in the middle of a larger block, at every alignment of an element: no byte
// around them is written, inputs keep theirs, and the result has the bits of aligned memory.
import { describe, expect, it } from 'vitest';
import {
  type Device,
  type DType,
  LoraAdapter,
  loraBackward,
  loraForward,
  matmul,
  matmulInputGrad,
  scope,
  synchronize,
  Tensor,
} from '../../lib/index.js';
import { encodeAll, exact, type Matrix } from '../oracle.js';
import { DEVICES, DTYPES, operand } from './operands.js';

const GUARD_BYTES = 4096;
const SENTINEL = 0xa7;

interface Guarded {
  readonly tensor: Tensor;
  /** Throws if a byte before or after the data was written. */
  check(name: string): void;
  bytes(): Uint8Array;
  /** Writes a byte at an offset from the start of the data. */
  poke(at: number): void;
}

/** A tensor over shared memory, `shift` elements past a boundary of 64 bytes, between sentinels. */
function guarded(values: Matrix, dtype: DType, device: Device, shift: number): Guarded {
  const size = dtype === 'f32' ? 4 : 2;
  const start = GUARD_BYTES + shift * size;
  const length = values.data.length * size;
  const whole = new Uint8Array(new SharedArrayBuffer(start + length + GUARD_BYTES)).fill(SENTINEL);
  const data =
    dtype === 'f32'
      ? new Float32Array(whole.buffer, start, values.data.length)
      : new Uint16Array(whole.buffer, start, values.data.length);
  data.set(dtype === 'f32' ? values.data : encodeAll(dtype, values.data));
  return {
    tensor: Tensor.wrap(data, [values.rows, values.cols], { dtype, device }),
    check: (name) => {
      whole.forEach((byte, i) => {
        const inside = i >= start && i < start + length;
        if (!inside && byte !== SENTINEL) throw new Error(`${name}: byte ${i - start} was written`);
      });
    },
    bytes: () => whole.slice(start, start + length),
    poke: (at) => {
      whole[start + at] = SENTINEL ^ 0xff;
    },
  };
}

const CASES = DEVICES.flatMap((device) => DTYPES.map((dtype) => ({ device, dtype })));
const SHAPES = [
  { M: 5, N: 17, K: 31, r: 3 },
  { M: 65, N: 33, K: 70, r: 8 },
  { M: 1, N: 63, K: 129, r: 1 },
];

describe.each(CASES)('$device, $dtype', ({ device, dtype }) => {
  it('nothing outside of an operand is touched', async () => {
    for (const { M, N, K, r } of SHAPES) {
      const values = {
        x: operand(M, K, { seed: 1, dtype, device }),
        w: operand(N, K, { seed: 2, dtype, device }),
        dy: operand(M, N, { seed: 3, dtype, device }),
        loraA: operand(r, K, { seed: 4, dtype, device }),
        loraB: operand(N, r, { seed: 5, dtype, device }),
        dx: operand(M, K, { seed: 6, dtype, device }),
        dLoraA: operand(r, K, { seed: 7, dtype, device }),
        dLoraB: operand(N, r, { seed: 8, dtype, device }),
        dBias: operand(1, N, { seed: 9, dtype, device }),
      };
      type Name = keyof typeof values;
      const names = Object.keys(values) as Name[];
      const outputs: readonly Name[] = ['dx', 'dLoraA', 'dLoraB', 'dBias'];

      const run = async (t: Record<Name, Tensor>): Promise<Float32Array[]> => {
        const adapter = new LoraAdapter({ loraA: t.loraA, loraB: t.loraB, loraAlpha: 2 * r });
        const { y, saved } = loraForward(t.x, t.w, adapter);
        const { dx, dLoraA, dLoraB, dBias } = t;
        loraBackward(t.dy, saved, {
          needs: ['dx', 'dLoraA', 'dLoraB', 'dBias'],
          accumulateInto: { dx, dLoraA, dLoraB, dBias },
        });
        const plain = [matmul(t.x, t.w), matmulInputGrad(t.dy, t.w), y];
        return Promise.all([...plain, ...outputs.map((name) => t[name])].map((v) => v.read()));
      };

      const right = await scope(() =>
        run(
          Object.fromEntries(names.map((name) => [name, values[name].tensor])) as Record<
            Name,
            Tensor
          >,
        ),
      );
      for (const shift of [0, 1, 3, 7, 15]) {
        await scope(async () => {
          const memory = Object.fromEntries(
            names.map((name, i) => [name, guarded(values[name].matrix, dtype, device, shift + i)]),
          ) as Record<Name, Guarded>;
          const before = names.map((name) => memory[name].bytes());
          const tensors = Object.fromEntries(
            names.map((name) => [name, memory[name].tensor]),
          ) as Record<Name, Tensor>;
          const results = await run(tensors);
          await synchronize(device);
          results.forEach((result, i) => {
            exact(`result ${i} at ${shift}`, result, right[i] as Float32Array);
          });
          names.forEach((name, i) => {
            memory[name].check(`${name} at ${shift}`);
            const changed = Buffer.compare(memory[name].bytes(), before[i] as Uint8Array) !== 0;
            expect(changed, name).toBe(outputs.includes(name));
          });
        });
      }
      for (const name of names) values[name].tensor.dispose();
    }
  });
});

describe('the guard', () => {
  it.each([-1, 24])('sees a byte written at %i', (at) => {
    const values = operand(2, 3, { seed: 1, device: 'cpu' });
    const memory = guarded(values.matrix, 'f32', 'cpu', 1);
    expect(() => memory.check('x')).not.toThrow();
    memory.poke(at);
    expect(() => memory.check('x')).toThrow(`byte ${at} was written`);
    memory.tensor.dispose();
    values.tensor.dispose();
  });
});
