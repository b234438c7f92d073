import { wrongType } from '../../core/errors.js';
import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import { checkInteger, orDefault, readOptions } from '../../core/validate.js';
import { checkGradients, type GradientReport } from '../../ops/check-gradients.js';
import type { AdapterPlace, AnyMethod } from './method.js';

/** Options of {@link checkAdapter} besides the method's own settings. */
export interface CheckAdapterOptions {
  /** K; default 24. */
  inFeatures?: number;
  /** N; default 16. */
  outFeatures?: number;
  /** Rows of x, at least 1; default 5. */
  rows?: number;
  /** Seed of the values; default 1. */
  seed?: number;
  /** Settings of the method that replace its defaults. */
  settings?: Readonly<Record<string, unknown>>;
  /** Shapes of further inputs that a call needs. */
  inputs?: Readonly<Record<string, readonly number[]>>;
}

/**
 * Compares every gradient of a method (of x, the bias, each trained tensor, each further input) with
 * differences of its forward pass, on a small layer whose parameters have moved away from their
 * start. See {@link checkGradients}. What a method deliberately holds constant (DoRA's norm) shows
 * up as a failure.
 * @returns a report for each gradient
 * @throws ERR_TYPE, ERR_VALUE; whatever the method throws
 * @example
 * for (const { name, passed } of checkAdapter(mine, { settings: { r: 4 } })) console.log(name, passed);
 */
export function checkAdapter(
  method: AnyMethod,
  options: CheckAdapterOptions = {},
): GradientReport[] {
  if (typeof method?.create !== 'function') {
    throw wrongType('checkAdapter', 'method', 'what defineAdapter returns', method);
  }
  const op = 'checkAdapter';
  const given = readOptions(op, options, {
    inFeatures: true,
    outFeatures: true,
    rows: true,
    seed: true,
    settings: true,
    inputs: true,
  });
  const { inFeatures: K = 24, outFeatures: N = 16, seed = 1, settings = {} } = given;
  const rows = checkInteger(op, 'rows', orDefault(given.rows, 5), 1, 2 ** 31 - 1);
  const device = 'reference';
  return scope(() => {
    let turn = seed;
    const draw = (shape: readonly number[]) => Tensor.randn(shape, { seed: turn++, device });
    const w = draw([N, K]);
    const place: AdapterPlace = { inFeatures: K, outFeatures: N, device, seed, weight: w };
    const adapter = method.create({ ...place, ...settings });
    for (const tensor of Object.values(adapter.parameters)) {
      const noise = draw(tensor.shape).readSync();
      tensor.write(tensor.readSync().map((value, i) => value + 0.3 * (noise[i] as number)));
    }
    const further = Object.fromEntries(
      Object.entries(given.inputs ?? {}).map(([name, shape]) => [name, draw(shape)]),
    );
    const run = (at: Readonly<Record<string, Tensor>>) => {
      for (const [name, tensor] of Object.entries(adapter.parameters)) {
        tensor.write((at[name] as Tensor).readSync());
      }
      const inputs = Object.fromEntries(
        Object.keys(further).map((name) => [name, at[name] as Tensor]),
      );
      return adapter.forward(at.dx as Tensor, w, { bias: at.dBias as Tensor, seed, inputs });
    };
    const parameters = Object.entries(adapter.parameters).map(
      ([name, tensor]) => [name, tensor.to({ device })] as const,
    );
    return checkGradients({
      inputs: {
        dx: draw([rows, K]),
        dBias: draw([N]),
        ...further,
        ...Object.fromEntries(parameters),
      },
      forward: (at) => run(at).y,
      backward: (dy, at) => {
        const found = adapter.backward(dy, run(at).saved);
        const { dx, dBias, parameters: own, inputs } = found;
        return {
          ...(dx === undefined ? {} : { dx }),
          ...(dBias === undefined ? {} : { dBias }),
          ...own,
          ...inputs,
        };
      },
    });
  });
}
