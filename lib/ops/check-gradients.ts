import { checkShape, checkTensor } from '../core/check-tensor.js';
import { fail, shown, wrongType } from '../core/errors.js';
import { scope } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import { checkInteger, orDefault, readOptions } from '../core/validate.js';

/** Options of {@link checkGradients}. */
export interface CheckGradientsOptions {
  /** Named tensors, f32, on device `reference`. */
  inputs: Record<string, Tensor>;
  /** The layer: a function of these inputs that returns the same tensor each time (e.g. with a fixed dropout seed). */
  forward: (inputs: Record<string, Tensor>) => Tensor;
  /** Gradients of `Σ y ⊙ dy` by the names of inputs. An input that is left out is not checked. */
  backward: (dy: Tensor, inputs: Record<string, Tensor>) => Record<string, Tensor>;
  /** Step, as a multiple of the input's root mean square; default 1/32. */
  step?: number;
  /** Seed of the directions and of dy; default 1. */
  seed?: number;
  /** Number of directions for each input; default 8. */
  samples?: number;
}

/** One gradient of {@link checkGradients}. */
export interface GradientReport {
  name: string;
  /** The largest error of a directional derivative, relative to the root mean square of all of them. */
  worst: number;
  /** Is `worst` at most 1e-3? */
  passed: boolean;
}

/**
 * At the default step, rounding y to f32 contributes about 1e-5 to a directional derivative, and
 * the step itself (to the fourth power) 1e-6. A wrong formula is off by a tenth or more.
 */
const TOLERANCE = 1e-3;
const U32 = 2 ** -24;

/** Pseudo-random words that depend only on the seed and the position. */
function word(seed: number, stream: number, index: number): number {
  let bits = (Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b) ^ Math.imul(stream + 1, 0xc2b2ae35)) >>> 0;
  bits = Math.imul(bits ^ (index + 0x165667b1), 0x27d4eb2f) >>> 0;
  bits = Math.imul(bits ^ (bits >>> 15), 0x2c1b3c6d) >>> 0;
  bits = Math.imul(bits ^ (bits >>> 12), 0x297a2d39) >>> 0;
  return (bits ^ (bits >>> 15)) >>> 0;
}

function rootMeanSquare(values: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += (values[i] as number) ** 2;
  return values.length === 0 ? 0 : Math.sqrt(sum / values.length);
}

function checkInputs(op: string, inputs: unknown): [string, Tensor][] {
  if (inputs === null || typeof inputs !== 'object' || Array.isArray(inputs)) {
    throw wrongType(op, 'inputs', 'an object of tensors', inputs);
  }
  return Object.entries(inputs).map(([name, value]) => {
    const tensor = checkTensor(op, `inputs.${name}`, value);
    if (tensor.device !== 'reference') {
      fail('ERR_DEVICE', op, `inputs.${name}`, 'on device reference', tensor.device);
    }
    if (tensor.dtype !== 'f32') fail('ERR_DTYPE', op, `inputs.${name}`, 'f32', tensor.dtype);
    return [name, tensor];
  });
}

/**
 * Compares gradients with differences of the forward pass: for each input, derivatives of
 * `Σ y ⊙ dy` along random directions of ±1, by central differences at two steps (Richardson
 * extrapolation: the error goes with the fourth power of the step). Run it on small layers on
 * device `reference`, whose outputs are double sums rounded once to f32.
 *
 * If rounding of y hides an input's true gradient (loraA while loraB is zero), the input passes
 * only if its given gradient is just as small.
 * @returns a report for each gradient that `backward` returned, in the order of `inputs`
 * @throws ERR_TYPE, ERR_VALUE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED; whatever `forward`
 * and `backward` throw
 * @example
 * const reports = checkGradients({
 *   inputs: { h, core },
 *   forward: ({ h, core }) => coreScale(h, { core }).h2,
 *   backward: (dh2, { h, core }) => {
 *     const { dh, dCore } = coreScaleBackward(dh2, coreScale(h, { core }).saved);
 *     return { h: dh, core: dCore };
 *   },
 * });
 */
export function checkGradients(options: CheckGradientsOptions): GradientReport[] {
  const op = 'checkGradients';
  if (options === undefined) throw wrongType(op, 'options', 'an object', options);
  const given = readOptions(op, options, {
    inputs: true,
    forward: true,
    backward: true,
    step: true,
    seed: true,
    samples: true,
  });
  const inputs = checkInputs(op, given.inputs);
  const { forward, backward } = given;
  if (typeof forward !== 'function') throw wrongType(op, 'forward', 'a function', forward);
  if (typeof backward !== 'function') throw wrongType(op, 'backward', 'a function', backward);
  const step: unknown = orDefault(given.step, 1 / 32);
  if (typeof step !== 'number') throw wrongType(op, 'step', 'a number', step);
  if (!(step > 0 && step <= 1)) fail('ERR_VALUE', op, 'step', 'in (0, 1]', shown(step));
  const seed = checkInteger(op, 'seed', orDefault(given.seed, 1), 0, 2 ** 31 - 1);
  const samples = checkInteger(op, 'samples', orDefault(given.samples, 8), 1, 4096);
  const named = Object.fromEntries(inputs);

  return scope(() => {
    const y = checkTensor(op, 'the result of forward', forward({ ...named }));
    const yValues = y.readSync();
    const dyValues = Float32Array.from(yValues, (_, i) => {
      const bits = word(seed, 0, i);
      return ((bits & 0xffff) / 2 ** 16 + 0.5) * (bits >>> 31 === 0 ? 1 : -1);
    });
    const dy = Tensor.from(dyValues, y.shape, { dtype: y.dtype, device: 'reference' });
    const gradients = backward(dy, { ...named });
    // A promise has no names, so none of its gradients would be checked.
    if (gradients === null || typeof gradients !== 'object' || gradients instanceof Promise) {
      throw wrongType(op, 'the result of backward', 'an object of tensors', gradients);
    }
    for (const name of Object.keys(gradients)) {
      if (!(name in named)) {
        const expected = `of ${inputs.map(([known]) => known).join(', ')}`;
        fail('ERR_VALUE', op, 'the result of backward', expected, name);
      }
    }
    // What rounding every y contributes to a sum.
    const noise =
      U32 * Math.sqrt(yValues.reduce((s, v, i) => s + (v * (dyValues[i] ?? 0)) ** 2, 0));

    const valueAt = (name: string, tensor: Tensor, values: Float32Array): number =>
      scope(() => {
        const moved = Tensor.from(values, tensor.shape, { device: 'reference' });
        const out = forward({ ...named, [name]: moved }).readSync();
        return out.reduce((sum, value, i) => sum + value * (dyValues[i] ?? 0), 0);
      });

    return inputs
      .filter(([name]) => gradients[name] !== undefined)
      .map(([name, tensor], which) => {
        const gradient = checkTensor(op, `gradient ${name}`, gradients[name]);
        checkShape(op, `gradient ${name}`, gradient, tensor.shape);
        const g = gradient.readSync();
        const at = tensor.readSync();
        const size = step * (rootMeanSquare(at) || 1);
        const numeric: number[] = [];
        const exact: number[] = [];
        for (let sample = 0; sample < samples; sample++) {
          const sign = (i: number): number =>
            word(seed, 1 + which * samples + sample, i) >>> 31 === 0 ? size : -size;
          // Differences over twice the step h, and over h: (8 e(h / 2) - e(h)) / 6 is h times the
          // derivative, up to the fifth power of h. The steps are those that f32 can represent.
          const difference = (scale: number): [number, number] => {
            const up = at.map((value, i) => value + scale * sign(i));
            const down = at.map((value, i) => value - scale * sign(i));
            const moved = up.reduce((s, value, i) => s + (g[i] ?? 0) * (value - (down[i] ?? 0)), 0);
            return [valueAt(name, tensor, up) - valueAt(name, tensor, down), moved];
          };
          const [whole, wholeExact] = difference(1);
          const [half, halfExact] = difference(0.5);
          numeric.push((8 * half - whole) / 6);
          exact.push((8 * halfExact - wholeExact) / 6);
        }
        const scale = rootMeanSquare(numeric) + (16 * noise) / TOLERANCE;
        const errors = numeric.map((value, i) => Math.abs(value - (exact[i] as number)));
        const worst = scale === 0 ? Math.max(...errors) : Math.max(...errors) / scale;
        return { name, worst, passed: worst <= TOLERANCE };
      });
  });
}
