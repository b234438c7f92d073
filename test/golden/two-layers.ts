/** The network of recorded trainings, `fc2(tanh(fc1(x)))` with adapters, and its mean squared error. */
import { recordAdapter } from '../../lib/adapters/definition/record.js';
import {
  type Adapter,
  adapterFromPeft,
  type BaseWeight,
  type Device,
  type DType,
  Tensor,
  type TrainedParameter,
  type TrainPass,
} from '../../lib/index.js';
import { folderOf, PREFIX } from './adapter-case.js';
import type { GoldenCase } from './case-file.js';
import { baseWeight, tensorOf } from './library.js';

export interface Layer {
  readonly w: BaseWeight;
  readonly bias: Tensor | undefined;
  readonly adapter: Adapter;
}

const kFileNames: Readonly<Record<string, string>> = {
  loraA: 'lora_A.weight',
  loraB: 'lora_B.weight',
  magnitude: 'lora_magnitude_vector.weight',
};

const kRoles: Readonly<Record<string, 'down' | 'up'>> = { loraA: 'down', loraB: 'up' };

/** Both layers of a case with an adapter folder. */
export function layersOf(
  golden: GoldenCase,
  device: Device,
): Readonly<Record<'fc1' | 'fc2', Layer>> {
  const folder = folderOf(golden);
  const of = (name: 'fc1' | 'fc2'): Layer => {
    // A base that is not quantised may be under the name of a dequantised one.
    const own = (part: string) => {
      const plain = golden.has(`base.${name}.${part}`);
      return golden.tensor(`${plain ? 'base' : 'base_dequant'}.${name}.${part}`);
    };
    const a = folder.tensors.get(`${PREFIX}${name}.lora_A.weight`);
    const b = folder.tensors.get(`${PREFIX}${name}.lora_B.weight`);
    const [N = 0] = b?.shape ?? [];
    const [, K = 0] = a?.shape ?? [];
    const dense = golden.has(`base.${name}.weight`) && own('weight').dtype === 'F32';
    const stored = dense || !golden.has(`base.${name}.weight`);
    const w = stored ? tensorOf(own('weight'), device) : baseWeight(golden, name, device);
    const adapter = adapterFromPeft(folder, name, {
      inFeatures: K,
      outFeatures: N,
      weight: w,
      device,
    });
    return { w, bias: tensorOf(own('bias'), device), adapter };
  };
  return { fc1: of('fc1'), fc2: of('fc2') };
}

/** The parameters of layers under PEFT's names, with their pairs. */
export function parametersOf(
  layers: Readonly<Record<string, Layer>>,
  scaling: number,
): TrainedParameter[] {
  return Object.entries(layers).flatMap(([module, { adapter }]) =>
    Object.entries(adapter.parameters).map(([name, tensor]) => ({
      name: `${PREFIX}${module}.${kFileNames[name]}`,
      role: kRoles[name] ?? ('other' as const),
      tensor,
      layer: module,
      scaling,
    })),
  );
}

/** Batch `index` of a tensor [batches, M, N]. */
function batchOf(golden: GoldenCase, name: string, index: number, device: Device): Tensor {
  const [, M = 0, N = 0] = golden.tensor(name).shape;
  const values = golden.numbers(name).subarray(index * M * N, (index + 1) * M * N);
  return Tensor.from(Float32Array.from(values), [M, N], { device });
}

/**
 * `mean((y - target)²) / passes` with y of one layer, or of two with tanh between them.
 * @param index of the batch
 */
export function passOf(
  golden: GoldenCase,
  layers: readonly Layer[],
  index: number,
  device: Device,
  { dtype = 'f32', passes = 1 }: { readonly dtype?: DType; readonly passes?: number } = {},
): TrainPass {
  return (tape) => {
    const run = (x: ReturnType<typeof tape.own>, { adapter, w, bias }: Layer) =>
      recordAdapter(tape, adapter, {
        x,
        w,
        bias: bias === undefined ? undefined : tape.constant(bias),
      }).y;
    const x = tape.own(batchOf(golden, 'in.x', index, device).to({ dtype }));
    const [first, second] = layers as [Layer, Layer | undefined];
    const inner = run(x, first);
    const y = second === undefined ? inner : run(tape.map(inner, 'tanh'), second);
    const target = tape.own(batchOf(golden, 'in.target', index, device));
    const wide = tape.record(y.tensor.to({ dtype: 'f32' }), [y], [], (dy, pass) =>
      pass.give(y, dy),
    );
    const apart = tape.add(wide, target, 1, -1);
    const squares = tape.multiply(apart, apart, 1 / (apart.tensor.size * passes));
    const rows = tape.sum(squares, 1);
    return tape.reshape(tape.sum(tape.reshape(rows, [1, rows.tensor.size]), 1), [1]);
  };
}
