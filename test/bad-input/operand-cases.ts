/** Bad input to an op of named tensors, made from what each of them should be. */
import { type Device, Tensor } from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { type BadCase, type BadClass, bad, hostile, impostors } from './harness.js';

/** What an operand should be, and what of the classes applies to it. */
export interface OperandRule {
  readonly name: string;
  readonly shape: readonly number[];
  /** It may be left out: undefined is no mistake. */
  readonly optional?: boolean;
  /** Shapes of that class that are refused. */
  readonly wrong: readonly (readonly [BadClass, readonly number[]])[];
  /** Dtypes that are refused beside f32 operands. */
  readonly dtypes?: readonly ('bf16' | 'f16')[];
  /** Its device is that of the call: another one is the other operands' mistake. */
  readonly leads?: boolean;
}

/** Wrong sizes in place of a matrix. */
export const wrongMatrix = ([rows, cols]: readonly [number, number]): OperandRule['wrong'] => [
  [11, [rows, cols - 1]],
  [12, [rows, cols + 1]],
  [13, [rows, 0]],
  [14, [0, cols + 2]],
  [22, [rows, 5 * cols]],
  [23, [rows * cols]],
  [23, [1, rows, cols, 1]],
];

/** Wrong sizes in place of a vector. */
export const wrongVector = (size: number): OperandRule['wrong'] => [
  [11, [size - 1]],
  [12, [size + 1]],
  [13, [0]],
  [23, [size, 2]],
];

/** `call` takes one operand that is wrong, by its name; the others are right. */
export function operandCases(
  device: Device,
  rules: readonly OperandRule[],
  call: (wrong: Record<string, unknown>) => unknown,
): BadCase[] {
  const other = DEVICES.find((candidate) => candidate !== device) as Device;
  const model = Tensor.zeros([2, 2], { device });
  const zeros = (shape: readonly number[], dtype: 'f32' | 'bf16' | 'f16' = 'f32', on = device) =>
    Tensor.zeros(shape, { dtype, device: on });
  return rules.flatMap(({ name, shape, optional, wrong, dtypes = [], leads }) => {
    const gone = zeros(shape);
    gone.dispose();
    return [
      ...impostors(model)
        .filter(([, , value]) => value !== undefined || optional !== true)
        .map(([kind, what, value]) =>
          bad(kind, `${name}: ${what}`, 'ERR_TYPE', () => call({ [name]: value })),
        ),
      ...wrong.map(([kind, size]) =>
        bad(kind, `${name}: [${size}]`, 'ERR_SHAPE', () => call({ [name]: zeros(size) })),
      ),
      ...dtypes.map((dtype) =>
        bad(24, `${name}: ${dtype}`, 'ERR_DTYPE', () => call({ [name]: zeros(shape, dtype) })),
      ),
      bad(31, `${name}: disposed`, 'ERR_DISPOSED', () => call({ [name]: gone })),
      ...(leads === true
        ? []
        : [
            bad(32, `${name}: on ${other}`, 'ERR_DEVICE', () =>
              call({ [name]: zeros(shape, 'f32', other) }),
            ),
          ]),
    ];
  });
}

/** A number among the options that is not one, or not finite. */
export const factorCases = (name: string, call: (wrong: object) => unknown): BadCase[] => [
  bad(3, `${name}: a string`, 'ERR_TYPE', () => call({ [name]: '2' })),
  bad(2, `${name}: null`, 'ERR_TYPE', () => call({ [name]: null })),
  bad(3, `${name}: a bigint`, 'ERR_TYPE', () => call({ [name]: 2n })),
  bad(17, `${name}: NaN`, 'ERR_VALUE', () => call({ [name]: Number.NaN })),
  bad(29, `${name}: infinity`, 'ERR_VALUE', () => call({ [name]: Number.POSITIVE_INFINITY })),
  bad(29, `${name}: too large for f32`, 'ERR_VALUE', () => call({ [name]: 1e300 })),
];

/** Wrong values in place of the options of a call that reads `field` of them. */
export const optionCases = (call: (options: unknown) => unknown, field: string): BadCase[] => [
  bad(3, 'options: a number', 'ERR_TYPE', () => call(3)),
  bad(2, 'options: null', 'ERR_TYPE', () => call(null)),
  bad(3, 'options: an array', 'ERR_TYPE', () => call([])),
  bad(33, 'options: a getter that throws', 'HOSTILE', () => call(hostile(field))),
];
