/** The ops over small tensors, and the halves of a LoRA layer where they differ from the whole. */
import {
  type DType,
  gatedActivation,
  gatedActivationBackward,
  loraExpand,
  loraExpandBackward,
  loraShrink,
  loraShrinkBackward,
  MAP_KINDS,
  mapTensor,
  multiplyAdd,
  sumProduct,
  swiglu,
  swigluBackward,
  type Tensor,
  weightGrad,
} from '../../lib/index.js';
import { DTYPES, operand } from '../conformance/operands.js';
import { hashOf, type KernelCase, misplaced, withInfinities } from './case-parts.js';

/** [M, N]: one row, whole runs, ragged rows, rows over several blocks, and long ones. */
const SHAPES = [
  [1, 172],
  [33, 40],
  [5, 131],
  [331, 24],
  [2, 8200],
] as const;

export function elementwise(): KernelCase[] {
  return DTYPES.flatMap((dtype, i) => {
    const other = DTYPES[(i + 1) % DTYPES.length] as (typeof DTYPES)[number];
    const cases: KernelCase[] = [];
    for (const [M, N] of SHAPES) {
      for (const placed of [false, true]) {
        // Long rows are slow under the emulator, and their ends are like those of others.
        if (placed && N > 1000) continue;
        const prefix = `elementwise ${placed ? 'unaligned ' : ''}`;
        const name = `${dtype} [${M}, ${N}]`;
        const at = async (tensor: Tensor): Promise<Tensor> => (placed ? misplaced(tensor) : tensor);
        cases.push({
          name: `${prefix}multiplyAdd ${name}`,
          async run(device) {
            const make = async (rows: number, cols: number, seed: number, type = dtype) =>
              at(operand(rows, cols, { seed, dtype: type, device }).tensor);
            const a = await make(M, N, 61);
            const row = await make(1, N, 62, other);
            const column = await make(M, 1, 63);
            const same = await make(M, N, 64);
            const wide = await make(M, N, 65, other);
            const one = await make(1, 1, 66);
            return hashOf([
              multiplyAdd({ a, b: row, c: column, alpha: 0.5, beta: 2 }),
              multiplyAdd({ a, b: same, c: one }),
              multiplyAdd({ a, c: wide, dtype: 'f32' }),
              multiplyAdd({ a, b: row, dtype: other }),
            ]);
          },
        });
        cases.push({
          name: `${prefix}sumProduct ${name}`,
          async run(device) {
            const make = async (rows: number, cols: number, seed: number, type = dtype) =>
              at(operand(rows, cols, { seed, dtype: type, device }).tensor);
            const a = await make(M, N, 71);
            const same = await make(M, N, 72);
            const row = await make(1, N, 73, other);
            const column = await make(M, 1, 74);
            // Sums of one sign stay infinite, unless an infinity meets the zeros past a row's end.
            const sizes = mapTensor(a, 'abs');
            const infinite = withInfinities(operand(M, 1, { seed: 75, device }), {
              dtype: 'f32',
              device,
            });
            const axes = [0, 1] as const;
            const sums = axes.flatMap((axis) =>
              [undefined, same, row, column].map((b) => sumProduct(a, b, { axis })),
            );
            return hashOf([...sums, sumProduct(sizes, infinite, { axis: 1 })]);
          },
        });
      }
    }
    for (const placed of [false, true]) {
      cases.push({
        name: `elementwise ${placed ? 'unaligned ' : ''}mapTensor ${dtype}`,
        async run(device) {
          const { tensor } = operand(9, 131, { seed: 81, dtype, device });
          const a = placed ? await misplaced(tensor) : tensor;
          return hashOf(
            MAP_KINDS.flatMap((kind) => [mapTensor(a, kind), mapTensor(a, kind, { dtype: other })]),
          );
        },
      });
      cases.push({
        name: `elementwise ${placed ? 'unaligned ' : ''}swiglu ${dtype}`,
        async run(device) {
          const make = (seed: number, as: DType = dtype) =>
            operand(9, 131, { seed, dtype: as, device }).tensor;
          const gate = placed ? await misplaced(make(82)) : make(82);
          const up = make(83);
          return hashOf([
            swiglu(gate, up),
            ...Object.values(swigluBackward(make(84), gate, up)),
            ...Object.values(swigluBackward(make(84, other), gate, up)),
          ]);
        },
      });
      for (const kind of ['gelu', 'gelu-tanh', 'silu-clamped'] as const) {
        cases.push({
          name: `elementwise ${placed ? 'unaligned ' : ''}${kind} ${dtype}`,
          async run(device) {
            const make = (seed: number, as: DType = dtype) =>
              operand(9, 131, { seed, dtype: as, device, std: 3 }).tensor;
            const gate = placed ? await misplaced(make(82)) : make(82);
            const up = make(83);
            return hashOf([
              gatedActivation(gate, up, { kind }),
              ...Object.values(gatedActivationBackward(make(84), gate, up, { kind })),
              ...Object.values(gatedActivationBackward(make(84, other), gate, up, { kind })),
            ]);
          },
        });
      }
    }
    return cases;
  });
}

/** Shrinks whose K is cut, in clusters on compute capability 9.0, for each tile of ranks. K ends inside a tile. */
export function shrinks(): KernelCase[] {
  return DTYPES.flatMap((dtype) =>
    [8, 21].map((r) => ({
      name: `shrink ${dtype} [70, 1100] r ${r}`,
      async run(device) {
        const x = operand(70, 1100, { seed: 85, dtype, device }).tensor;
        const loraA = operand(r, 1100, { seed: 86, dtype: 'f32', device }).tensor;
        const row = operand(1, 1100, { seed: 87, dtype, device }).tensor;
        return hashOf([loraShrink(x, loraA, { scaling: 2 }), loraShrink(row, loraA)]);
      },
    })),
  );
}

/** h and dh given, dh added to, and a dense gradient of more columns than any rank. */
export function halves(): KernelCase[] {
  return DTYPES.map((dtype) => ({
    name: `halves ${dtype} [33, 72, 96] r 8`,
    async run(device) {
      const [M, N, K, r] = [33, 72, 96, 8];
      const make = (rows: number, cols: number, seed: number, type = dtype) =>
        operand(rows, cols, { seed, dtype: type, device }).tensor;
      const [x, dy, w] = [make(M, K, 91), make(M, N, 92), make(N, K, 93)];
      const [loraA, loraB] = [make(r, K, 94, 'f32'), make(N, r, 95)];
      const drop = { dropout: 0.3, seed: 5 };
      const h = loraShrink(x, loraA, { ...drop, scaling: 2 });
      const y = loraExpand(x, w, h, loraB, { scaling: 0.5 });
      const into = make(M, r, 96, 'f32');
      const over = loraExpandBackward(dy, h, loraB, { accumulateInto: { dh: into } });
      const alone = make(M, r, 97, 'f32');
      loraExpandBackward(dy, undefined, loraB, { needs: ['dh'], accumulateInto: { dh: alone } });
      const under = loraShrinkBackward(dy, w, into, loraA, { x, ...drop, scaling: 0.5 });
      const grads = [...Object.values(over), ...Object.values(under)];
      return hashOf([h, y, alone, ...grads, weightGrad(dy, x), weightGrad(x, dy, { dtype })]);
    },
  }));
}
