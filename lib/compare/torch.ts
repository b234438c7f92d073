/**
 * The same training step in eager PyTorch, if Python has it: on the dequantised weights, with the
 * same adapters and batches, so that the losses can be compared too.
 */

import fs from 'node:fs';
import path from 'node:path';
import { benchFile } from '../bench/foreign.js';
import { findPython, findTunedTorch, torchSettings } from '../bench/peers/torch.js';
import { type Started, startFastest } from '../bench/start-subject.js';
import type { RawTensor } from '../checkpoint/raw-tensor.js';
import { writeSafetensors } from '../checkpoint/safetensors-write.js';
import { makeTemporaryFolder } from '../environment/temporary-folder.js';
import { getThreads } from '../index.js';
import type { StepSnapshot } from '../train/snapshot.js';
import { rotaryTable } from './tensorflow/heads.js';

const kPrefix = 'lowrank-torch-';

/** A training step in PyTorch that can be timed; {@link close} ends its process and removes its files. */
export interface TorchStep extends Started {
  readonly version: string;
  readonly dtype: 'f32' | 'bf16';
  /** How torch is run: dtype, BLAS, settings. */
  readonly note: string;
  /** Loss of the step. */
  readonly loss: number;
  close(): Promise<void>;
}

/**
 * Starts PyTorch on a step.
 *
 * @param dtype of base and activations; the factors stay in f32, as PEFT keeps them
 * @returns `undefined` if no Python has torch
 * @throws Error, in words, if torch cannot do it or multiplies with an untuned BLAS · LowrankError if there is no room for the files
 */
export async function startTorch(
  step: StepSnapshot,
  dtype: 'f32' | 'bf16',
): Promise<TorchStep | undefined> {
  if (findPython('torch', 'numpy') === undefined) return undefined;
  const python = findTunedTorch();
  if ('missing' in python) throw new Error(python.missing);
  const folder = makeTemporaryFolder('finetune', kPrefix);
  const remove = () => fs.rmSync(folder, { recursive: true, force: true });
  process.once('exit', remove);
  const clean = () => {
    process.off('exit', remove);
    remove();
  };
  try {
    const file = path.join(folder, 'step.safetensors');
    writeSafetensors(file, tensorsOf(step));
    const threads = getThreads();
    const args = [
      benchFile('torch_llama.py'),
      JSON.stringify({ ...jobOf(step), file, threads, dtype }),
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
      dtype,
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
function jobOf({ config, B, T, batches, head, scaling, dropout }: StepSnapshot) {
  return {
    B,
    T,
    passes: batches.length,
    layers: config.numHiddenLayers,
    heads: config.numAttentionHeads,
    kvHeads: config.numKeyValueHeads,
    headDim: config.headDim,
    eps: config.rmsNormEps,
    head,
    scaling,
    dropout,
  };
}

function tensorsOf({ config, T, batches, tensors }: StepSnapshot): Map<string, RawTensor> {
  const raw = new Map<string, RawTensor>();
  for (const [name, { shape, values }] of tensors) {
    raw.set(name, { dtype: 'F32', shape, data: values });
  }
  const angles = [T, config.headDim / 2];
  for (const [name, data] of Object.entries(rotaryTable(config, T))) {
    raw.set(name, { dtype: 'F32', shape: angles, data });
  }
  batches.forEach(({ ids, targets }, i) => {
    raw.set(`ids.${i}`, { dtype: 'I32', shape: [ids.length], data: ids });
    raw.set(`targets.${i}`, { dtype: 'I32', shape: [targets.length], data: targets });
  });
  return raw;
}
