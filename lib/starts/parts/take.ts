import { Tensor } from '../../core/tensor.js';

/** Rows of a matrix, in this order. */
export function chosenRows(a: Tensor, rows: readonly number[]): Tensor {
  const { device } = a;
  const [, width = 0] = a.shape;
  const values = a.readSync();
  const out = new Float32Array(rows.length * width);
  rows.forEach((from, to) => {
    out.set(values.subarray(from * width, (from + 1) * width), to * width);
  });
  return Tensor.from(out, [rows.length, width], { device });
}

/** Columns of a matrix, in this order. */
export function chosenColumns(a: Tensor, columns: readonly number[]): Tensor {
  const { device } = a;
  const [height = 0, width = 0] = a.shape;
  const values = a.readSync();
  const count = columns.length;
  const out = Float32Array.from(
    { length: height * count },
    (_, at) => values[Math.floor(at / count) * width + (columns[at % count] as number)] as number,
  );
  return Tensor.from(out, [height, count], { device });
}
