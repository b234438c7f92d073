/** The library's decoder as a runner, on one device. */
import {
  type Adapter,
  adapterFromPeft,
  type Device,
  type DType,
  openHfModel,
  readAdapterFolder,
  scope,
  Tensor,
} from '../../../lib/index.js';
import { Decoder, type DecoderPass } from '../../../lib/model/decoder.js';
import { layerLinears } from '../../../lib/model/decoder-tensors.js';
import { DecoderWeights } from '../../../lib/model/decoder-weights.js';
import { AdamW } from '../../../lib/train/adamw.js';
import { hostLossTape } from '../../model/host-tape.js';
import type { ModelBatch } from './cases.js';
import type { ModelRunner, RunningModel } from './runner.js';

const kNames: Readonly<Record<string, string>> = { loraA: 'lora_A.weight', loraB: 'lora_B.weight' };

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
    const tape = hostLossTape(recording, () => targetsOf(batch).targets);
    const call = {
      dtype: this.dtype,
      inputGradient: recording,
      ...(adapted ? { adapters: this.adapters } : {}),
    };
    return { tape, call, pass: this.decoder.forward(tape, batch, call) };
  }

  #losses(batch: ModelBatch, recording: boolean) {
    const { targets, count } = targetsOf(batch);
    const { tape, call, pass } = this.#pass(batch, recording);
    const { features, parameters } = pass;
    const scale = 1 / count;
    const made = this.decoder.loss(tape, features, targets, { ...call, parameters, scale });
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

  #gradients(batch: ModelBatch) {
    const { tape, pass, loss: total } = this.#losses(batch, true);
    const wanted = [pass.embedded, ...namedValues(pass).values()];
    const dy = Tensor.from([1], [1], { device: total.tensor.device });
    const found = tape.gradients('loss', total, dy, wanted);
    const values = found.map((gradient, i) => {
      if (gradient === undefined) throw new Error(`no gradient of value ${i}`);
      return gradient.readSync();
    });
    const loss = total.tensor.readSync()[0] as number;
    const [embedding, ...others] = values as [Float32Array, ...Float32Array[]];
    const names = [...namedValues(pass).keys()];
    const adapters = new Map(names.map((name, i) => [name, others[i] as Float32Array]));
    return { loss, embedding, adapters };
  }

  gradients(batch: ModelBatch) {
    return scope(() => this.#gradients(batch));
  }

  generate(prompts: Int32Array, B: number, steps: number) {
    const V = this.decoder.config.vocabSize;
    const rows = Array.from({ length: B }, (_, b) => {
      const P = prompts.length / B;
      return [...prompts.subarray(b * P, (b + 1) * P)];
    });
    const logits: number[] = [];
    for (let step = 0; step < steps; step++) {
      const T = (rows[0] as number[]).length;
      const ids = Int32Array.from(rows.flat());
      const positions = ids.map((_, m) => m % T);
      const segments = new Int32Array(ids.length);
      const all = this.logits({ B, T, ids, positions, segments, labels: ids }, true);
      for (const [b, row] of rows.entries()) {
        const last = all.subarray(((b + 1) * T - 1) * V, (b + 1) * T * V);
        logits.push(...last);
        row.push(last.indexOf(Math.max(...last)));
      }
    }
    return { ids: rows.flat(), logits };
  }

  train(batch: ModelBatch, settings: Parameters<RunningModel['train']>[1]): number[] {
    const { lr, steps, weight_decay } = settings;
    const parameters = [...this.adapters.values()].flatMap((adapter) =>
      Object.values(adapter.parameters),
    );
    const before = parameters.map((tensor) => tensor.readSync().slice());
    const values = Float32Array.from(before.flatMap((part) => [...part]));
    const optimizer = new AdamW(values.length, { weightDecay: weight_decay });
    const losses: number[] = [];
    for (let step = 0; step <= steps; step++) {
      const { loss, adapters } = this.gradients(batch);
      losses.push(loss);
      if (step === steps) break;
      const gradient = [...this.adapters].flatMap(([module, { parameters: own }]) =>
        Object.keys(own).flatMap((name) => [...(adapters.get(fileName(module, name)) ?? [])]),
      );
      optimizer.update(values, Float32Array.from(gradient), lr);
      let at = 0;
      for (const tensor of parameters) {
        tensor.write(values.subarray(at, at + tensor.size));
        at += tensor.size;
      }
    }
    for (const [i, tensor] of parameters.entries()) tensor.write(before[i] as Float32Array);
    return losses;
  }

  dispose(): void {
    this.decoder.dispose();
    for (const adapter of this.adapters.values()) adapter.dispose();
  }
}

const fileName = (module: string, name: string): string =>
  `base_model.model.${module}.${kNames[name]}`;

/** The trained values of a pass, by their names in the adapter file. */
function namedValues({ parameters }: DecoderPass) {
  return new Map(
    [...parameters].flatMap(([module, own]) =>
      Object.entries(own).map(([name, value]) => [fileName(module, name), value] as const),
    ),
  );
}
