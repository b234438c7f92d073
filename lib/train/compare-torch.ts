/**
 * The same training step in eager PyTorch, if Python has it: on the dequantised weights, with the
 * same adapters and batches, so that the losses can be compared too.
 */

import fs from 'node:fs';
import path from 'node:path';
import { type AlphaConfig, scalingOf } from '../adapters/parts/scaling.js';
import { benchFile } from '../bench/foreign.js';
import { findPython, torchSettings } from '../bench/peers/torch.js';
import { type Started, startFastest } from '../bench/start-subject.js';
import type { RawTensor } from '../checkpoint/raw-tensor.js';
import { writeSafetensors } from '../checkpoint/safetensors-write.js';
import { makeTemporaryFolder } from '../environment/temporary-folder.js';
import { dequantize, getThreads, Tensor } from '../index.js';
import { type BaseModel, linearNames } from './base-model.js';
import { rotaryTable } from './heads.js';
import type { BaseLinear } from './kernels.js';
import type { Trainer } from './trainer.js';

const kPrefix = 'lowrank-torch-';

/** A training step in PyTorch that can be timed; {@link close} ends its process and removes its files. */
export interface TorchStep extends Started {
  readonly version: string;
  /** How torch is run: dtype, BLAS, settings. */
  readonly note: string;
  /** Loss of the step. */
  readonly loss: number;
  close(): Promise<void>;
}

/**
 * Starts PyTorch on the next step.
 *
 * @returns `undefined` if no Python has torch
 * @throws Error, in words, if torch cannot do it · LowrankError if there is no room for the files
 */
export async function startTorch(trainer: Trainer): Promise<TorchStep | undefined> {
  const python = findPython('torch', 'numpy');
  if (python === undefined) return undefined;
  const folder = makeTemporaryFolder('finetune', kPrefix);
  const remove = () => fs.rmSync(folder, { recursive: true, force: true });
  process.once('exit', remove);
  const clean = () => {
    process.off('exit', remove);
    remove();
  };
  try {
    const file = path.join(folder, 'step.safetensors');
    writeSafetensors(file, tensorsOf(trainer));
    const threads = getThreads();
    const args = [
      benchFile('torch_llama.py'),
      JSON.stringify({ ...jobOf(trainer), file, threads }),
    ];
    const programs = torchSettings(threads).map((settings) => ({
      command: python.command,
      args,
      ...settings,
    }));
    const started = await startFastest(programs, 0);
    const { version = '', note = '', probe = [] } = started.ready;
    return {
      ...started,
      version,
      note,
      loss: probe[0] ?? Number.NaN,
      close: async () => {
        await started.process.close();
        clean();
      },
    };
  } catch (error) {
    clean();
    throw error;
  }
}

/** The job of bench/torch_llama.py, besides the tensors. */
function jobOf({ base, adapters, data, options }: Trainer) {
  const { config } = base;
  const alpha = adapters.slots[0]?.adapter.config as AlphaConfig;
  return {
    B: options.batch,
    T: data.train.T,
    passes: options.accumulate,
    layers: config.numHiddenLayers,
    heads: config.numAttentionHeads,
    kvHeads: config.numKeyValueHeads,
    headDim: config.headDim,
    eps: config.rmsNormEps,
    head: base.head.name,
    scaling: scalingOf(alpha),
    dropout: alpha.dropout,
  };
}

function tensorsOf(trainer: Trainer): Map<string, RawTensor> {
  const { base, adapters, data } = trainer;
  const { config } = base;
  const tensors = new Map<string, RawTensor>();
  const add = (name: string, shape: readonly number[], values: Float32Array) =>
    tensors.set(name, { dtype: 'F32', shape, data: values });
  const addLinear = (layer: BaseLinear) =>
    add(`${layer.name}.weight`, [layer.N, layer.K], denseValues(layer));
  const addNorm = (name: string, values: Float32Array) =>
    add(`${name}.weight`, [values.length], values);
  base.layers.forEach((layer, at) => {
    addNorm(`model.layers.${at}.input_layernorm`, layer.inputNorm);
    addNorm(`model.layers.${at}.post_attention_layernorm`, layer.postAttentionNorm);
    for (const name of linearNames) addLinear(layer.linear[name]);
  });
  addNorm('model.norm', base.norm);
  addLinear(base.head);
  add('model.embed_tokens.weight', [config.vocabSize, config.hiddenSize], embeddingOf(base));
  const { cos, sin } = rotaryTable(config, data.train.T);
  const angles = [data.train.T, config.headDim / 2];
  add('cos', angles, cos);
  add('sin', angles, sin);
  for (const { layer, parameters } of adapters.slots) {
    for (const { name, shape, values } of parameters) {
      add(`${layer.name}.${name === 'loraA' ? 'lora_A' : 'lora_B'}`, shape, values);
    }
  }
  trainer.nextBatches().forEach(({ ids, targets }, i) => {
    tensors.set(`ids.${i}`, { dtype: 'I32', shape: [ids.length], data: ids });
    tensors.set(`targets.${i}`, { dtype: 'I32', shape: [targets.length], data: targets });
  });
  return tensors;
}

function embeddingOf(base: BaseModel): Float32Array {
  const { vocabSize, hiddenSize } = base.config;
  const values = new Float32Array(vocabSize * hiddenSize);
  base.embed(
    Int32Array.from({ length: vocabSize }, (_, id) => id),
    values,
  );
  return values;
}

function denseValues({ w }: BaseLinear): Float32Array {
  if (w instanceof Tensor) return w.readSync();
  const full = dequantize(w);
  try {
    return full.readSync();
  } finally {
    full.dispose();
  }
}
