// Products with a 4-bit weight against the peer's forward and backward.
import { describe, it } from 'vitest';
import {
  LoraAdapter,
  loraBackward,
  loraForward,
  matmul,
  matmulInputGrad,
  type QuantizedWeight,
  scope,
  Tensor,
} from '../../lib/index.js';
import { codebookOf } from '../oracle.js';
import { caseIds, type GoldenCase, loadCase } from './case-file.js';
import { dtypeNames, floats, tensorOf, weightOf } from './library.js';
import { RuleBook } from './rules.js';

const DEVICES = ['cpu', 'reference'] as const;
type Device = (typeof DEVICES)[number];

function weightIn(golden: GoldenCase, device: Device): QuantizedWeight {
  const { quant_type, blocksize, N, K, dtype } = golden.params;
  const format = quant_type as 'nf4' | 'fp4';
  return weightOf(
    {
      format,
      blocksize: Number(blocksize),
      dtype: dtypeNames[String(dtype)] ?? 'f32',
      shape: [Number(N), Number(K)],
      codes: golden.tensor('param.packed').bytes,
      codebook: codebookOf(format),
      // Some cases of double quantisation hold the scales that come of it.
      ...(golden.has('param.absmax_u8')
        ? {
            nested: {
              absmax8bit: golden.tensor('param.absmax_u8').bytes,
              nestedAbsmax: floats(golden.tensor('param.nested_absmax')),
              nestedCodebook: floats(golden.tensor('param.nested_code')),
              offset: floats(golden.tensor('param.offset'))[0] as number,
            },
          }
        : { absmax: floats(golden.tensor('param.absmax_fp32')) }),
    },
    device,
  );
}

describe.each(DEVICES)('matmul on %s', (device: Device) => {
  it.each([...caseIds('matmul'), ...caseIds('matmul_cpu_bf16')])('%s', async (id) => {
    await scope(async () => {
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      const w = weightIn(golden, device);
      const x = tensorOf(golden.tensor('in.x'), device);
      const bias = golden.has('in.bias') ? tensorOf(golden.tensor('in.bias'), device) : undefined;
      const y = matmul(x, w, bias === undefined ? {} : { bias });
      rules.check('out.y', await y.read());
      if (rules.has('grad.x')) {
        const dy = tensorOf(golden.tensor('in.grad_out'), device);
        rules.check('grad.x', await matmulInputGrad(dy, w).read());
        if (bias !== undefined) {
          // The gradient of a bias comes with an adapter; one of zeros leaves the product as it is.
          const [N, K] = w.shape as [number, number];
          const adapter = new LoraAdapter({
            loraA: Tensor.zeros([1, K], { device }),
            loraB: Tensor.zeros([N, 1], { device }),
            loraAlpha: 1,
          });
          const { saved } = loraForward(x, w, adapter, { bias });
          const { dBias } = loraBackward(dy, saved, { needs: ['dBias'] });
          rules.check('grad.bias', await (dBias as Tensor).read());
        }
      }
      rules.finish();
    });
  });
});
