/** TensorFlow.js on its wasm backend, dense f32, on one thread. */

import type * as tfjs from '@tensorflow/tfjs';
import { resolvePackage } from '../find-package.js';
import type { Job } from '../job.js';
import type { Peer } from '../peer.js';

type Tensor = tfjs.Tensor;

export const tfjsPeer: Peer = {
  name: 'tfjs',
  find: () => {
    const names = ['@tensorflow/tfjs', '@tensorflow/tfjs-backend-wasm'];
    const found = names.map((name) => resolvePackage(name));
    const version = found[0]?.version;
    return version !== undefined && found[1] !== undefined
      ? { version: `${version} wasm` }
      : { missing: `npm install ${names.join(' ')}` };
  },
  refuses: ({ dtype }) => (dtype === 'f32' ? undefined : 'f32 only'),
  computes: 'f32',
  async prepare(job, { elements, copies, scaling }) {
    const { M, K, N, r } = job;
    const tf = resolvePackage('@tensorflow/tfjs')?.load() as typeof tfjs;
    resolvePackage('@tensorflow/tfjs-backend-wasm')?.load();
    tf.enableProdMode();
    if (!(await tf.setBackend('wasm'))) throw new Error('its wasm backend does not start');
    const x = tf.tensor2d(elements('x'), [M, K]);
    const dy = tf.tensor2d(elements('dy'), [M, N]);
    // Both have the inner dimension first, because the backend's fast path does not take a
    // transposed operand.
    const turned = (values: Float32Array, rows: number, columns: number) =>
      tf.tidy(() => tf.transpose(tf.tensor2d(values, [rows, columns])));
    const loraA = turned(elements('loraA'), r, K);
    const loraB = turned(elements('loraB'), N, r);
    const weightBytes = 4 * K * N;
    const values = elements('w');
    const weights = Array.from({ length: copies(weightBytes) }, () => turned(values, N, K));
    let turn = 0;
    const next = () => weights[turn++ % weights.length] as Tensor;
    const forward = (w: Tensor) => (a: Tensor, b: Tensor, c: Tensor) =>
      tf.add(tf.matMul(a, w), tf.mul(tf.matMul(tf.matMul(a, b), c), scaling));
    // TensorFlow.js has no separate backward pass; the note says so.
    const backward = () => {
      const loss = forward(next()) as (...operands: Tensor[]) => Tensor;
      return tf.grads(loss)([x, loraA, loraB], dy)[0] as Tensor;
    };
    const bodies: Readonly<Record<Job['op'], () => Tensor>> = {
      matmul: () => tf.matMul(x, next()),
      loraForward: () => forward(next())(x, loraA, loraB),
      loraBackward: backward,
      lora: backward,
    };
    const body = bodies[job.op];
    return {
      weightBytes,
      copies: weights.length,
      note: `dense f32, one thread${job.op === 'loraBackward' ? ', with the forward pass' : ''}`,
      run: () => {
        tf.tidy(() => {
          body();
        });
      },
      output: () => tf.tidy(() => body().dataSync()),
    };
  },
};
