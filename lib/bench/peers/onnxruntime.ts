/** onnxruntime-node's MatMulNBits: 4-bit blocks, multiplied in f32 or with int8 activations. */

import { resolvePackage } from '../find-package.js';
import type { Peer } from '../peer.js';
import { matMulNBitsModel, quantizeBlocks } from './onnx-model.js';

/** The part of the package that is used. */
interface OnnxRuntime {
  readonly InferenceSession: {
    create(model: Uint8Array, options: object): Promise<Session>;
  };
  readonly Tensor: new (type: 'float32', data: Float32Array, dims: readonly number[]) => unknown;
}
interface Session {
  run(feeds: object): Promise<{ readonly y: { readonly data: Float32Array } }>;
}

const kBlocksize = 64;

function onnxruntimePeer(accuracyLevel: 0 | 4): Peer {
  return {
    name: `onnxruntime-${accuracyLevel}`,
    find: () => {
      const found = resolvePackage('onnxruntime-node');
      return found === undefined
        ? { missing: 'npm install onnxruntime-node' }
        : { version: found.version };
    },
    refuses: ({ op, format, dtype, K, device }) => {
      if (op !== 'matmul') return 'only matmul';
      if (format !== 'nf4' && format !== 'fp4') return 'only weights of four bits';
      if (dtype !== 'f32') return 'only f32';
      if (K % kBlocksize !== 0) return `only K of a multiple of ${kBlocksize}`;
      return device === 'cpu' || device === 'reference' ? undefined : 'measured on the CPU only';
    },
    computes: accuracyLevel === 4 ? 'int8' : 'f32',
    async prepare({ M, K, N, threads }, { elements, copies }) {
      const ort = resolvePackage('onnxruntime-node')?.load() as OnnxRuntime;
      const quantized = quantizeBlocks(elements('w'), kBlocksize);
      const weightBytes = quantized.codes.length + 4 * quantized.scales.length;
      const model = matMulNBitsModel({
        ...{ M, K, N, accuracyLevel, blocksize: kBlocksize },
        ...quantized,
      });
      const sessions: Session[] = [];
      for (let i = copies(weightBytes); i > 0; i--) {
        const options = { intraOpNumThreads: threads, interOpNumThreads: 1 };
        sessions.push(await ort.InferenceSession.create(model, options));
      }
      const x = new ort.Tensor('float32', elements('x'), [M, K]);
      let turn = 0;
      const run = () => (sessions[turn++ % sessions.length] as Session).run({ x });
      return {
        weightBytes,
        copies: sessions.length,
        note: `int4 blocks of ${kBlocksize}, ${accuracyLevel === 4 ? 'int8 activations' : 'f32'}`,
        run: async () => {
          await run();
        },
        output: async () => (await run()).y.data,
      };
    },
  };
}

/** Its default, which multiplies in f32. */
export const onnxruntimeF32Peer = onnxruntimePeer(0);
/** Its fastest. */
export const onnxruntimeInt8Peer = onnxruntimePeer(4);
