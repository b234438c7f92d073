/** The library's decoder as a runner, on one device. */
import {
  type Adapter,
  adapterFromPeft,
  type BaseWeight,
  type Device,
  type DType,
  type ModelTape,
  openHfModel,
  readAdapterFolder,
  scope,
  Tensor,
  type Value,
} from '../../../lib/index.js';
import { Decoder } from '../../../lib/model/decoder.js';
import { layerLinears } from '../../../lib/model/decoder-tensors.js';
import { DecoderWeights, type LayerWeights } from '../../../lib/model/decoder-weights.js';
import { nextLogits } from '../../../lib/model/generate.js';
import { KvCache } from '../../../lib/model/kv-cache.js';
import type { TrainedParameter } from '../../../lib/optim/definition/definition.js';
import { Trainer } from '../../../lib/train/trainer.js';
import { hostLossTape, withHostLoss } from '../../model/host-tape.js';
import type { ModelBatch } from './cases.js';
import { chosenInF32, pinExperts } from './pinned-experts.js';
import type { ModelRunner, RunningModel } from './runner.js';

const kNames: Readonly<Record<string, string>> = { loraA: 'lora_A.weight', loraB: 'lora_B.weight' };

/** Of the layers whose results are added to the residual stream. */
const kOutputFactor = /\.(o_proj|down_proj)\.lora_B\.weight$/;

export function decoderRunner(
  name: string,
  device: Device,
  dtype: Extract<DType, 'f32' | 'bf16'>,
): ModelRunner {
  return {
    name,
    precision: dtype,
    open: (golden, folder) => {
      const model = openHfModel(folder);
      const decoder = new Decoder(model.decoder, DecoderWeights.load(model, { device }));
      const read = readAdapterFolder(golden.adapter);
      const { layers, head } = model.places;
      const adapters = new Map<string, Adapter>();
      for (const { module, N, K } of [...layers.flatMap(layerLinears), head]) {
        if (!read.tensors.has(`base_model.model.${module}.lora_A.weight`)) continue;
        const place = { inFeatures: K, outFeatures: N, device };
        adapters.set(module, adapterFromPeft(read, module, place));
      }
      return new RunningDecoder(decoder, adapters, dtype);
    },
  };
}

/** What each row of a batch should predict; -1 where nothing counts. */
function targetsOf({ T, labels }: ModelBatch): { targets: Int32Array; count: number } {
  const targets = labels.map((_, m) => {
    const label = (m + 1) % T === 0 ? -100 : (labels[m + 1] as number);
    return label === -100 ? -1 : label;
  });
  return { targets, count: targets.filter((target) => target >= 0).length };
}

class RunningDecoder implements RunningModel {
  constructor(
    readonly decoder: Decoder,
    readonly adapters: ReadonlyMap<string, Adapter>,
    readonly dtype: DType,
  ) {}

  #pass(batch: ModelBatch, recording: boolean, adapted = true) {
    const tape = this.#pinned(
      hostLossTape(recording, () => targetsOf(batch).targets),
      batch,
      adapted,
    );
    const call = {
      dtype: this.dtype,
      inputGradient: recording,
      ...(adapted ? { adapters: this.adapters } : {}),
    };
    return { tape, call, pass: this.decoder.forward(tape, batch, call) };
  }

  /** In bf16 with the experts of f32. */
  #pinned<T extends ModelTape>(tape: T, batch: ModelBatch, adapted = true): T {
    const routed = this.decoder.config.layers.some(({ mlp }) => mlp.experts !== undefined);
    if (this.dtype === 'f32' || !routed) return tape;
    const call = adapted ? { adapters: this.adapters } : {};
    return pinExperts(tape, chosenInF32(this.decoder, batch, call));
  }

  #losses(batch: ModelBatch, recording: boolean) {
    const { targets, count } = targetsOf(batch);
    const { tape, call, pass } = this.#pass(batch, recording);
    const scale = 1 / count;
    const made = this.decoder.loss(tape, pass.features, targets, { ...call, scale });
    return { tape, pass, ...made };
  }

  logits(batch: ModelBatch, adapted: boolean): Float32Array {
    return scope(() => {
      const { tape, call, pass } = this.#pass(batch, false, adapted);
      return this.decoder.logits(tape, pass.features, call).tensor.readSync();
    });
  }

  losses(batch: ModelBatch) {
    return scope(() => {
      const { loss, losses } = this.#losses(batch, false);
      const rows = losses.readSync();
      const tokenLosses = rows.filter((_, m) => (m + 1) % batch.T !== 0);
      return { loss: loss.tensor.readSync()[0] as number, tokenLosses };
    });
  }

  /** The trained tensors, by their names in the adapter file. */
  get #parameters(): readonly TrainedParameter[] {
    return [...this.adapters].flatMap(([module, { parameters }]) =>
      Object.entries(parameters).map(([name, tensor]) => ({
        name: `base_model.model.${module}.${kNames[name]}`,
        role: 'other' as const,
        tensor,
      })),
    );
  }

  #gradients(batch: ModelBatch) {
    const { tape, pass, loss: total } = this.#losses(batch, true);
    const parameters = this.#parameters;
    const own = parameters.map(({ tensor }) => tape.variables.get(tensor)?.[0] as Value);
    const dy = Tensor.from([1], [1], { device: total.tensor.device });
    const found = tape.gradients('loss', total, dy, [pass.embedded, ...own]);
    const values = found.map((gradient, i) => {
      if (gradient === undefined) throw new Error(`no gradient of value ${i}`);
      return gradient.readSync();
    });
    const loss = total.tensor.readSync()[0] as number;
    const [embedding, ...others] = values as [Float32Array, ...Float32Array[]];
    const factor = this.#factor;
    const adapters = new Map(
      parameters.map(({ name }, i) => {
        const gradient = others[i] as Float32Array;
        return [
          name,
          kOutputFactor.test(name) ? gradient.map((d) => d * factor) : gradient,
        ] as const;
      }),
    );
    return { loss, embedding: embedding.map((d) => d * factor), adapters };
  }

  gradients(batch: ModelBatch) {
    return scope(() => this.#gradients(batch));
  }

  generate(prompts: Int32Array, B: number, steps: number) {
    const V = this.decoder.config.vocabSize;
    const { device } = this.decoder.weights;
    const P = prompts.length / B;
    const rows = Array.from({ length: B }, (_, b) => [...prompts.subarray(b * P, (b + 1) * P)]);
    const capacity = P + steps;
    using cache = new KvCache(this.decoder.config, {
      capacity,
      batch: B,
      dtype: this.dtype,
      device,
    });
    const logits: number[] = [];
    let next = prompts;
    for (let step = 0; step < steps; step++) {
      const call = { cache, dtype: this.dtype, adapters: this.adapters };
      const all = scope(() => nextLogits(this.decoder, next, call).readSync());
      next = new Int32Array(B);
      for (const [b, row] of rows.entries()) {
        const last = all.subarray(b * V, (b + 1) * V);
        logits.push(...last);
        next[b] = last.indexOf(Math.max(...last));
        row.push(next[b] as number);
      }
    }
    return { ids: rows.flat(), logits };
  }

  train(batch: ModelBatch, settings: Parameters<RunningModel['train']>[1]): number[] {
    const { lr, steps, weight_decay: weightDecay } = settings;
    const { targets, count } = targetsOf(batch);
    const parameters = this.#parameters;
    const before = parameters.map(({ tensor }) => tensor.readSync());
    using trainer = new Trainer(parameters, { lr, weightDecay });
    const losses = Array.from({ length: steps + 1 }, () =>
      scope(() => {
        const step = trainer.step((tape) => {
          const whole = this.#pinned(
            withHostLoss(tape, () => targets),
            batch,
          );
          const call = { dtype: this.dtype, adapters: this.adapters };
          const { features } = this.decoder.forward(whole, batch, call);
          const scale = 1 / count;
          return this.decoder.loss(whole, features, targets, { ...call, scale }).loss;
        });
        return step.loss.readSync()[0] as number;
      }),
    );
    for (const [i, { tensor }] of parameters.entries()) tensor.write(before[i] as Float32Array);
    return losses;
  }

  /** Times which the stream is, where {@link scaledStream} runs. */
  #factor = 1;

  async scaledStream<T>(embeddingScale: number, run: () => T | Promise<T>): Promise<T> {
    const { config, weights } = this.decoder;
    const { layers } = weights;
    const { dtype } = this;
    const { device } = weights;
    const made: Tensor[] = [];
    const keep = (values: Float32Array, shape: readonly number[], of: DType): Tensor => {
      const tensor = Tensor.from(values, shape, { dtype: of, device });
      made.push(tensor);
      return tensor;
    };
    // What the decoder multiplies by in this dtype.
    const own = keep(Float32Array.of(config.embeddingScale), [1], dtype).readSync()[0] as number;
    const factor = embeddingScale / own;
    const one = config.norm.plusOne ? 1 : 0;
    // A gain in bf16 would be rounded, and so belong to another model; a weight too.
    const gain = (tensor: Tensor): Tensor =>
      keep(
        tensor.readSync().map((w) => (one + w) * factor - one),
        tensor.shape,
        'f32',
      );
    const times = (tensor: Tensor): Tensor =>
      keep(
        tensor.readSync().map((w) => w * factor),
        tensor.shape,
        'f32',
      );
    const scaled = <W extends { readonly w: BaseWeight; readonly bias?: Tensor }>(layer: W): W => ({
      ...layer,
      w: times(layer.w as Tensor),
      ...(layer.bias === undefined ? {} : { bias: times(layer.bias) }),
    });
    /** What a block adds to the stream: its norm's, or its last layer's. */
    const outputs = (layer: LayerWeights): Partial<LayerWeights> => {
      const { attentionOutputNorm, mlpOutputNorm, attentionOutput, down, experts } = layer;
      if (attentionOutputNorm !== undefined && mlpOutputNorm !== undefined) {
        return {
          attentionOutputNorm: gain(attentionOutputNorm),
          mlpOutputNorm: gain(mlpOutputNorm),
        };
      }
      return {
        attentionOutput: scaled(attentionOutput),
        ...(down === undefined ? {} : { down: scaled(down) }),
        ...(experts === undefined ? {} : { experts: { ...experts, down: scaled(experts.down) } }),
      };
    };
    const normed = layers.every(({ mlpOutputNorm }) => mlpOutputNorm !== undefined);
    const factors = normed ? [] : this.#outputFactors;
    const before = factors.map((tensor) => tensor.readSync());
    try {
      const { norm } = config;
      const eps = norm.eps * (normed ? 1 : factor ** 2);
      Reflect.set(this.decoder, 'config', { ...config, embeddingScale, norm: { ...norm, eps } });
      Reflect.set(
        weights,
        'layers',
        layers.map((layer) => ({ ...layer, ...outputs(layer) })),
      );
      factors.forEach((tensor, i) => {
        tensor.write((before[i] as Float32Array).map((value) => value * factor));
      });
      this.#factor = factor;
      return await run();
    } finally {
      this.#factor = 1;
      Reflect.set(this.decoder, 'config', config);
      Reflect.set(weights, 'layers', layers);
      factors.forEach((tensor, i) => {
        tensor.write(before[i] as Float32Array);
      });
      for (const tensor of made) tensor.dispose();
    }
  }

  /** The second factors of the layers that add to the stream. */
  get #outputFactors(): readonly Tensor[] {
    return this.#parameters
      .filter(({ name }) => kOutputFactor.test(name))
      .map(({ tensor }) => tensor);
  }

  dispose(): void {
    this.decoder.dispose();
    for (const adapter of this.adapters.values()) adapter.dispose();
  }
}
