/** One small call of every op, on one device, each leaving nothing behind. */
import {
  combineRows,
  combineRowsBackward,
  type Device,
  dequantize,
  expertsMatmul,
  expertsMatmulBackward,
  FORMATS,
  LoraAdapter,
  LoraLinear,
  loraBackward,
  loraBackwardMany,
  loraBackwardSwiglu,
  loraForward,
  loraForwardMany,
  loraForwardSwiglu,
  matmul,
  matmulInputGrad,
  QuantizedWeight,
  quantize,
  routeRows,
  scope,
  selectExperts,
  synchronize,
  Tensor,
} from '../../../lib/index.js';

export interface Operations {
  /** By name; a call returns once its memory is free again. */
  calls: Map<string, () => Promise<void>>;
  dispose(): void;
}

const [M, N, K, r] = [5, 24, 40, 3];

export async function everyOp(device: Device): Promise<Operations> {
  const x = Tensor.randn([M, K], { seed: 1, device });
  const dy = Tensor.randn([M, N], { seed: 2, device });
  const w = Tensor.randn([N, K], { seed: 3, device });
  const bias = Tensor.randn([N], { seed: 4, device });
  const mask = Tensor.from(new Float32Array(M * K).fill(1), [M, K], { device });
  const loraB = Tensor.randn([N, r], { seed: 5, device });
  const loraA = Tensor.randn([r, K], { seed: 6, device });
  const logits = Tensor.randn([M, 4], { seed: 9, device }); // of experts
  const adapter = new LoraAdapter({ loraA, loraB, loraAlpha: 6, dropout: 0.25, loraBias: bias });
  const nf4 = quantize(w, { format: 'nf4', doubleQuant: true });
  const int8 = quantize(w, { format: 'int8' });
  const state = await nf4.toBitsandbytes();
  const values = new Float32Array(M * K).fill(0.5);
  const shared = new Float32Array(new SharedArrayBuffer(values.byteLength));
  const other: Device = device === 'cpu' ? 'reference' : 'cpu';

  const calls = new Map<string, () => Promise<void>>();
  const add = (name: string, body: () => unknown) => {
    calls.set(name, async () => {
      await scope(async () => {
        await body();
      });
      await synchronize(device);
      await synchronize(other);
    });
  };

  add('Tensor.from', () => void Tensor.from(values, [M, K], { device, dtype: 'bf16' }));
  add('Tensor.zeros', () => void Tensor.zeros([M, K], { device, dtype: 'f16' }));
  add('Tensor.randn', () => void Tensor.randn([M, K], { device, seed: 7 }));
  add('Tensor.uniform', () => void Tensor.uniform([M, K], { device, seed: 8 }));
  add('Tensor.wrap', () => Tensor.wrap(shared, [M, K], { device }).read());
  add('read', () => x.read());
  add('readSync', () => void x.readSync());
  add('readBits', () => x.to({ dtype: 'bf16' }).readBits());
  add('write', () => mask.write(values));
  add('cast', () => x.to({ dtype: 'f16' }).read());
  add('to another device', () => x.to({ device: other }).read());
  add('weight to another device', () => void nf4.to({ device: other }));
  add('synchronize', () => synchronize(device));
  for (const { name: format } of FORMATS) {
    add(`quantize ${format}`, () => void quantize(w, { format }));
    add(`quantize ${format} doubly`, () => void quantize(w, { format, doubleQuant: true }));
  }
  add('dequantize nf4', () => dequantize(nf4).read());
  add('dequantize int8', () => dequantize(int8, { dtype: 'bf16' }).readBits());
  add('toBitsandbytes', () => nf4.toBitsandbytes());
  add('fromBitsandbytes', () => void QuantizedWeight.fromBitsandbytes(state, { device }));
  add('matmul dense', () => matmul(x, w, { bias }).read());
  add('matmul nf4', () => matmul(x, nf4).read());
  add('matmul int8', () => matmul(x, int8, { bias }).read());
  add('matmulInputGrad dense', () => matmulInputGrad(dy, w).read());
  add('matmulInputGrad nf4', () => matmulInputGrad(dy, nf4).read());
  add('loraForward', () => loraForward(x, nf4, adapter, { bias, seed: 9 }).y.read());
  add('loraForward with a mask', () => loraForward(x, w, adapter, { dropoutMask: mask }).y.read());
  add('loraForward for inference', () => loraForward(x, w, adapter, { training: false }).y.read());
  add('loraBackward', () => {
    const { saved } = loraForward(x, nf4, adapter, { bias, seed: 10 });
    return loraBackward(dy, saved).dx?.read();
  });
  add('loraBackward into a sum', () => {
    const { saved } = loraForward(x, w, adapter, { seed: 11 });
    const dLoraA = Tensor.zeros([r, K], { device });
    loraBackward(dy, saved, { needs: ['dLoraA'], accumulateInto: { dLoraA } });
    return dLoraA.read();
  });
  const [up, value] = [{ w: int8, bias }, { w }];
  add('loraForwardMany', () => {
    const { ys } = loraForwardMany(x, [{ w: nf4, adapter, seed: 13 }, up, value]);
    return Promise.all(ys.map((y) => y.read()));
  });
  add('loraBackwardMany', () => {
    const { saved } = loraForwardMany(x, [{ w: nf4, adapter, seed: 14 }, up]);
    return loraBackwardMany([dy, dy], saved).dx?.read();
  });
  add('loraForwardSwiglu', () => loraForwardSwiglu(x, { w: nf4, adapter, seed: 15 }, up).y.read());
  add('loraForwardSwiglu for inference', () =>
    loraForwardSwiglu(x, { w: nf4, adapter }, { w: nf4 }, { training: false }).y.read(),
  );
  add('loraBackwardSwiglu', () => {
    const { saved } = loraForwardSwiglu(x, { w: nf4, adapter, seed: 16 }, up);
    return loraBackwardSwiglu(dy, saved).dx?.read();
  });
  add('LoraAdapter.init', () => {
    LoraAdapter.init({ inFeatures: K, outFeatures: N, r, loraAlpha: 1, seed: 1, device });
  });
  add('LoraLinear', async () => {
    const layer = new LoraLinear({ weight: nf4, bias, adapters: { default: adapter } });
    layer.forward(x, { seed: 12 });
    await layer.backward(dy).dx?.read();
  });

  add('a layer of experts', () => {
    const E = 4; // each has a quarter of the rows of the weight
    const { experts, gates } = selectExperts(logits, { k: 2 });
    const route = routeRows(experts, { k: 2, experts: E });
    const lora = {
      loraA: loraA.reshape([1, r, K]),
      loraB: loraB.reshape([E, N / E, r]),
      scaling: 2,
    };
    const { y, h } = expertsMatmul(x, w, route, { lora });
    const out = combineRows(y, route, { gates });
    const { dy: dSlots } = combineRowsBackward(out, route, { gates, y });
    const operands = { lora, x, h: h as Tensor };
    const { dx, dLoraA } = expertsMatmulBackward(dSlots as Tensor, w, route, operands);
    return Promise.all([dx?.read(), dLoraA?.read()]);
  });

  const owned = [x, dy, w, bias, mask, loraA, loraB, logits, nf4, int8];
  return {
    calls,
    dispose: () => {
      for (const value of owned) value.dispose();
    },
  };
}
