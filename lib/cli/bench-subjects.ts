/**
 * What `lowrank bench` measures: an op in this library's kernels, the same without fusion, and the
 * same in other libraries. A subject is one synchronous call, finished when it returns.
 */

import {
  type Device,
  dequantize,
  LoraAdapter,
  type LoraSaved,
  loraBackward,
  loraForward,
  matmul,
  matmulInputGrad,
  type QuantFormat,
  type QuantizedWeight,
  quantize,
  Tensor,
} from '../index.js';
import { tensorflow } from '../tfjs/tensorflow.js';

export const benchOps = ['matmul', 'loraForward', 'loraBackward', 'lora'] as const;
export type BenchOp = (typeof benchOps)[number];

/** Sizes of one measurement. */
export interface BenchShape {
  readonly M: number;
  readonly K: number;
  readonly N: number;
  readonly r: number;
}

/** Something to time. */
export interface Subject {
  readonly name: string;
  run(): void;
  dispose(): void;
}

/** Floating point operations of an op: what the maths needs, not what an implementation does. */
export function flopsOf(op: BenchOp, { M, K, N, r }: BenchShape): number {
  const base = 2 * M * N * K;
  const low = 2 * M * r * (K + N);
  switch (op) {
    case 'matmul':
      return base;
    case 'loraForward':
      return base + low;
    case 'loraBackward':
      return base + 2 * low;
    case 'lora':
      return 2 * base + 3 * low;
  }
}

/** Operands of this library, shared by its subjects. */
class Operands {
  readonly x: Tensor;
  readonly dy: Tensor;
  readonly w: QuantizedWeight | Tensor;
  readonly adapter: LoraAdapter;
  private readonly fence: Tensor;
  private readonly fenceValue = new Float32Array(1);

  constructor({ M, K, N, r }: BenchShape, format: QuantFormat | 'none', device: Device) {
    this.x = Tensor.randn([M, K], { seed: 1, device });
    this.dy = Tensor.randn([M, N], { seed: 2, device });
    const dense = Tensor.randn([N, K], { seed: 3, std: 0.02, device });
    this.w = format === 'none' ? dense : quantize(dense, { format });
    if (this.w !== dense) dense.dispose();
    const loraA = Tensor.randn([r, K], { seed: 4, std: 0.02, device });
    const loraB = Tensor.randn([N, r], { seed: 5, std: 0.02, device });
    this.adapter = new LoraAdapter({ loraA, loraB, loraAlpha: 2 * r });
    this.fence = Tensor.zeros([1], { device });
  }

  /** Waits for everything queued: reads are in order with ops, and this one copies four bytes. */
  wait(): void {
    this.fence.readInto(this.fenceValue);
  }

  dispose(): void {
    for (const value of [this.x, this.dy, this.w, this.adapter, this.fence]) value.dispose();
  }
}

/** This library: fused, and its own unfused ops over a weight that is dequantised at every call. */
export function ownSubjects(
  op: BenchOp,
  shape: BenchShape,
  format: QuantFormat | 'none',
  device: Device,
): Subject[] {
  const operands = new Operands(shape, format, device);
  const { x, dy, w, adapter } = operands;
  let saved: LoraSaved | undefined;
  if (op === 'loraBackward') {
    const forward = loraForward(x, w, adapter);
    forward.y.dispose();
    saved = forward.saved;
  }
  const free = (...values: (Tensor | undefined)[]) => {
    for (const value of values) value?.dispose();
  };
  const backward = (state: LoraSaved, keep: boolean) => {
    const { dx, dLoraA, dLoraB } = loraBackward(dy, state, { keep });
    free(dx, dLoraA, dLoraB);
  };
  const fused: Readonly<Record<BenchOp, () => void>> = {
    matmul: () => free(matmul(x, w)),
    loraForward: () => {
      const forward = loraForward(x, w, adapter);
      free(forward.y);
      forward.saved.dispose();
    },
    loraBackward: () => backward(saved as LoraSaved, true),
    lora: () => {
      const forward = loraForward(x, w, adapter);
      free(forward.y);
      backward(forward.saved, false);
    },
  };
  const withDense = (body: (dense: Tensor) => void) => {
    if (w instanceof Tensor) return body(w);
    const dense = dequantize(w);
    body(dense);
    dense.dispose();
  };
  // Without the final addition and the gradients of the factors: this peer is let off lightly.
  const forward = (dense: Tensor) => {
    const h = matmul(x, adapter.loraA);
    free(matmul(x, dense), matmul(h, adapter.loraB), h);
  };
  const backwardOf = (dense: Tensor) => {
    const dh = matmulInputGrad(dy, adapter.loraB);
    free(matmulInputGrad(dy, dense), matmulInputGrad(dh, adapter.loraA), dh);
  };
  const unfused: Readonly<Record<BenchOp, () => void>> = {
    matmul: () => withDense((dense) => free(matmul(x, dense))),
    loraForward: () => withDense(forward),
    loraBackward: () => withDense(backwardOf),
    lora: () => {
      withDense(forward);
      withDense(backwardOf);
    },
  };
  const subject = (name: string, body: () => void, dispose: () => void): Subject => ({
    name,
    run: () => {
      body();
      operands.wait();
    },
    dispose,
  });
  return [
    subject(`lowrank ${device}`, fused[op], () => {}),
    subject('lowrank unfused', unfused[op], () => {
      saved?.dispose();
      operands.dispose();
    }),
  ];
}

/**
 * TensorFlow.js on its wasm backend, dense f32.
 * @returns `undefined` where it is not installed
 */
export async function tfjsSubject(op: BenchOp, shape: BenchShape): Promise<Subject | undefined> {
  const { M, K, N, r } = shape;
  let tf: ReturnType<typeof tensorflow>;
  try {
    tf = tensorflow();
    tf.enableProdMode();
    await import('@tensorflow/tfjs-backend-wasm');
    if (!(await tf.setBackend('wasm'))) return undefined;
  } catch {
    return undefined;
  }
  const x = tf.randomNormal([M, K]);
  const w = tf.randomNormal([K, N], 0, 0.02);
  const loraA = tf.randomNormal([K, r], 0, 0.02);
  const loraB = tf.randomNormal([r, N], 0, 0.02);
  const dy = tf.randomNormal([M, N]);
  type T = typeof x;
  const forward = (a: T, b: T, c: T) =>
    tf.add(
      tf.matMul(a as never, w as never),
      tf.mul(tf.matMul(tf.matMul(a as never, b as never), c as never), 2),
    );
  const gradients = tf.grads(forward as never);
  const bodies: Readonly<Record<BenchOp, () => unknown>> = {
    matmul: () => tf.matMul(x as never, w as never),
    loraForward: () => forward(x, loraA, loraB),
    // TensorFlow.js has no backward pass alone; the name of the subject says so.
    loraBackward: () => gradients([x, loraA, loraB] as never, dy as never),
    lora: () => gradients([x, loraA, loraB] as never, dy as never),
  };
  return {
    name: op === 'loraBackward' ? 'tfjs wasm (with forward)' : 'tfjs wasm',
    run: () => {
      tf.tidy(() => {
        bodies[op]();
      });
    },
    dispose: () => {
      for (const tensor of [x, w, loraA, loraB, dy]) tensor.dispose();
    },
  };
}
