/**
 * The kernel `MatMul16` of `@genai-fi/nanogpt` 1.3.0 for the cpu backend, with the scale and the activation that its
 * gradient assumes. The package's own ignores both there: its feed-forward layer is then linear, while its gradient is
 * that of gelu.
 */

import * as tf from '@tensorflow/tfjs';

function matMul16({ inputs: { A, B }, attrs }) {
  const { transposeA = false, transposeB = false, scale, scaleA, scaleB, activation } = attrs;
  return tf.tidy(() => {
    let y = tf.matMul(A, B, transposeA, transposeB);
    for (const factor of [scale, scaleA, scaleB]) if (factor !== undefined) y = tf.mul(y, factor);
    if (activation === 'gelu') y = tf.engine().runKernel('Gelu', { x: y });
    else if (activation === 'relu2') y = tf.square(tf.relu(y));
    else if (activation === 'relu') y = tf.relu(y);
    if (attrs.originalShape) y = tf.reshape(y, attrs.originalShape);
    return attrs.perm ? tf.transpose(y, attrs.perm) : y;
  });
}

/** Replaces the kernel on the cpu backend; `registerMissing` takes it to others. */
export function correctMatMul16() {
  tf.unregisterKernel('MatMul16', 'cpu');
  tf.registerKernel({ kernelName: 'MatMul16', backendName: 'cpu', kernelFunc: matMul16 });
}
