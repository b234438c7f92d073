/**
 * One fine-tune, from a model and a text to an adapter folder.
 */

import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import type { Adapter } from '../adapters/definition/adapter.js';
import { removeLeftovers } from '../checkpoint/files/atomic-write.js';
import { fileError } from '../checkpoint/files/file-access.js';
import { lockOutput, type OutputLock } from '../checkpoint/files/lock.js';
import { bytesOf } from '../checkpoint/raw-tensor.js';
import { compareSteps, type StepComparison } from '../compare/compare.js';
import { LowrankError } from '../core/errors.js';
import { printable } from '../core/printable.js';
import { DataSource, type PreparedData, type SamplePrompt } from '../data/data-source.js';
import { type Device, defaultDevice } from '../index.js';
import { Decoder } from '../model/decoder.js';
import type { DecoderPlaces } from '../model/decoder-tensors.js';
import { type BaseMemory, DecoderWeights } from '../model/decoder-weights.js';
import { generate } from '../model/generate.js';
import { openModel } from '../model/gguf/open-model.js';
import { LinearSource } from '../model/linear-source.js';
import type { ModelFiles } from '../model/model-files.js';
import { needsData, type Starter } from '../starts/starter.js';
import type { TrainingData } from '../text/sequences.js';
import { openTokenizer, type TextTokenizer } from '../text/tokenizer.js';
import { AdapterSet, requireFitting } from '../train/adapter-set.js';
import { ModelTrainer, type StepResult } from '../train/model-trainer.js';
import { writeAdapter } from '../trained/write-adapter.js';
import {
  checkpointPath,
  type FinetuneOptions,
  heldOutBeginnings,
  requireLength,
  requireUsableOut,
  requireWritable,
} from './finetune-files.js';
import { requireMemory } from './plan.js';
import { privacyOf, privateTrain, type RunPrivacy, requirePrivate } from './privacy.js';
import { identityOf } from './run-identity.js';
import { requireRunRules } from './run-rules.js';
import { type LossHistory, restoreRunState } from './run-state.js';
import { calibrationOf, starterOf } from './start.js';
import { StateFile } from './state-file.js';

export type { FinetuneOptions } from './finetune-files.js';

const kOp = 'finetune';

/** Callbacks for events of the run. */
export interface FinetuneObserver {
  phase?(text: string): void;
  progress?(done: number, total: number): void;
  warning?(text: string): void;
  step?(result: StepResult, heldOut: number | undefined): void;
  heldOut?(step: number, loss: number): void;
  /** The adapter has its final name. */
  written?(folder: string): void;
}

/** A prompt and the model's continuation. */
export interface Sample {
  readonly prompt: string;
  readonly before: string;
  readonly after: string;
}

export interface FinetuneResult {
  readonly out: string;
  readonly steps: number;
  readonly lossBefore: number;
  readonly lossAfter: number;
  readonly lossUnit: 'nats per token' | 'nats per pair';
  /** Share of the held-out pairs of answers that the result ranks right, for a loss over pairs. */
  readonly rankedRight: number | undefined;
  readonly history: LossHistory;
  readonly tokensPerSecond: number;
  readonly trainSeconds: number;
  readonly adapterParameters: number;
  readonly baseParameters: number;
  readonly memory: BaseMemory;
  /** How the files hold the linear layers, where they are quantised: `gptq`; empty where the run quantised them. */
  readonly layouts: readonly string[];
  readonly comparison: StepComparison | undefined;
  /** What a private run guarantees. */
  readonly privacy?: RunPrivacy;
  readonly samples: readonly Sample[];
}

/** Thrown if the signal aborted, with the files that the run leaves. */
export class Interrupted extends LowrankError {
  constructor(
    /** The state to resume from. */
    readonly checkpoint: string | undefined,
    /** The adapter, if it was finished earlier. */
    readonly adapter: string | undefined,
  ) {
    super('ERR_CANCELLED', 'finetune: interrupted', { op: kOp });
  }
}

/**
 * Runs a fine-tune to its end.
 *
 * @param signal stops after the current step, with a checkpoint
 * @throws LowrankError from the parts · {@link Interrupted}
 */
export async function finetune(
  options: FinetuneOptions,
  observer: FinetuneObserver = {},
  signal: AbortSignal = new AbortController().signal,
): Promise<FinetuneResult> {
  const run = new FinetuneRun(options, observer, signal);
  try {
    return await run.execute();
  } finally {
    await run.dispose();
  }
}

/**
 * Checks, before the first of several runs of a model, what a later one would be rejected for: the settings of its
 * method, and its folder.
 * @throws LowrankError as {@link finetune}
 */
export function requireRuns(runs: readonly FinetuneOptions[]): void {
  const places = new Map(runs.map(({ model }) => [model, openModel(model).places]));
  for (const options of runs) {
    requirePrivate(options);
    const { model, adapter, device = defaultDevice() } = options;
    requireFitting(adapter, places.get(model) as DecoderPlaces, device);
    starterOf(openModel(model), options, device);
    requireRunRules(openModel(model), options);
  }
  for (const { out } of runs) requireUsableOut(out);
}

class FinetuneRun {
  private readonly checkpoint: string;
  private layouts: readonly string[] = [];
  private starter: Starter | undefined;
  private decoder: Decoder | undefined;
  private adapters: AdapterSet | undefined;
  private trainer: ModelTrainer | undefined;
  private tokenizer: TextTokenizer | undefined;
  private lock: OutputLock | undefined;
  private state: StateFile | undefined;
  private lastPause = 0;
  /** Has the adapter of this run its final name? */
  private written = false;

  constructor(
    private readonly options: FinetuneOptions,
    private readonly observer: FinetuneObserver,
    private readonly signal: AbortSignal,
  ) {
    this.checkpoint = checkpointPath(options.out);
  }

  async dispose(): Promise<void> {
    this.trainer?.dispose();
    this.starter?.dispose();
    this.adapters?.dispose();
    this.decoder?.dispose();
    this.state?.close();
    this.lock?.release();
    await this.tokenizer?.close();
  }

  async execute(): Promise<FinetuneResult> {
    const { options, observer } = this;
    requirePrivate(options);
    requireUsableOut(options.out);
    const target = path.resolve(options.out);
    this.lock = lockOutput(kOp, target);
    removeLeftovers(target);
    const source = DataSource.open(kOp, options);
    const model = openModel(options.model);
    for (const warning of model.warnings) observer.warning?.(warning);
    this.layouts = model.layouts;
    requireLength(options.seqLen, model.decoder.maxPositionEmbeddings);
    const device = options.device ?? defaultDevice();
    const parameters = requireFitting(options.adapter, model.places, device);
    requireMemory(model, options, parameters);
    requireRunRules(model, options);
    const starter = starterOf(model, options, device);
    this.starter = starter;
    const pause = () => this.pause();
    const tokenizer = await openTokenizer(kOp, model, pause, undefined, options.tokenizer, {
      template: options.chatTemplate,
    });
    this.tokenizer = tokenizer;
    observer.phase?.('tokenising');
    const report = (done: number, total: number) => this.breathe(done, total);
    const prepared = await source.prepare(tokenizer, report);
    const { data } = prepared;
    for (const note of prepared.notes) observer.warning?.(note);
    const privacy = privacyOf(options, data.train.count);
    observer.phase?.(options.format.format === 'none' ? 'loading' : 'quantising');
    const { decoder, sha256 } = await this.load(model, device, report);
    this.decoder = decoder;
    const started = await this.start(decoder, data, report);
    const adapters = new AdapterSet(decoder, options.adapter, options.train.seed, started);
    this.adapters = adapters;
    for (const text of await requireWritable(adapters)) observer.warning?.(text);
    const files = new LinearSource(model, options.format, device);
    const train = privateTrain(options.train, privacy);
    const trainer = new ModelTrainer(decoder, adapters, data, train, files);
    this.trainer = trainer;
    const identity = identityOf(options, {
      config: model.decoder,
      weights: sha256,
      tokenizer: tokenizer.hashes,
      data: source.identity(tokenizer),
    });
    const prompts = await this.prompts(source, prepared, tokenizer);
    const { ends } = prepared;
    observer.phase?.('sampling');
    // A base that a start replaced is no model without its adapter.
    const replaced = adapters.startFactors.size > 0;
    const before = await this.samples(trainer, tokenizer, { prompts, ends }, replaced);
    let history: LossHistory = { train: [], heldOut: [] };
    if (options.resume) {
      history = restoreRunState(kOp, this.checkpoint, trainer, identity);
    } else {
      this.setOldStateAside();
      await this.evaluate(trainer, history);
    }
    const state = new StateFile(kOp, this.checkpoint, trainer, identity, history);
    this.state = state;
    const { seconds, steps } = await this.train(trainer, state, history);
    observer.phase?.('writing');
    trainer.trainer.showEvaluated();
    try {
      await writeAdapter(options, trainer.adapters, trainer.rules);
    } catch (error) {
      throw state.rescue(error);
    }
    state.close();
    fs.rmSync(this.checkpoint, { force: true });
    this.written = true;
    observer.written?.(options.out);

    observer.phase?.('sampling');
    const after = await this.samples(trainer, tokenizer, { prompts, ends }, true);
    const { method, settings } = options.adapter;
    const own = starter === undefined && trainer.rules === undefined && privacy === undefined;
    const plain = method.method === 'lora' && settings.loraBias !== true && own;
    const compares = options.compare && plain && source.plain;
    const comparison = compares ? await this.compare(trainer) : undefined;
    const { heldOut } = history;
    const pairs = options.train.dpoBeta !== undefined;
    const score = pairs ? await trainer.prefer(trainer.data.heldOut, true, pause) : undefined;
    return {
      out: options.out,
      steps: trainer.step,
      lossBefore: heldOut[0]?.loss ?? Number.NaN,
      lossAfter: heldOut[heldOut.length - 1]?.loss ?? Number.NaN,
      lossUnit: pairs ? 'nats per pair' : 'nats per token',
      rankedRight: score?.accuracy,
      history,
      tokensPerSecond: seconds > 0 ? (steps * this.tokensPerStep) / seconds : 0,
      trainSeconds: seconds,
      adapterParameters: adapters.parameterCount,
      baseParameters: decoder.weights.parameterCount,
      memory: decoder.weights.memory,
      layouts: this.layouts,
      comparison,
      ...(privacy === undefined ? {} : { privacy }),
      samples: before.map(({ prompt, text }, i) => ({
        prompt,
        before: text,
        after: after[i]?.text ?? '',
      })),
    };
  }

  /** The base model, read layer by layer, and the hash of every tensor with its name. */
  private async load(
    model: ModelFiles,
    device: Device,
    report: (done: number, total: number) => Promise<void>,
  ): Promise<{ readonly decoder: Decoder; readonly sha256: string }> {
    const hash = createHash('sha256');
    const loading = DecoderWeights.loading(model, {
      format: this.options.format,
      device,
      ...(this.starter?.store === undefined ? {} : { store: this.starter.store }),
      onTensor: (name, { data }) => hash.update(name).update(bytesOf(data)),
    });
    try {
      for (;;) {
        const { done, value } = loading.next();
        if (done !== true) {
          await report(value.done, value.total);
          continue;
        }
        return { decoder: new Decoder(model.decoder, value), sha256: hash.digest('hex') };
      }
    } catch (error) {
      // Frees what was read.
      loading.return(undefined as never);
      throw error;
    }
  }

  /** The adapters that a start makes, if the run has one. */
  private async start(
    decoder: Decoder,
    data: TrainingData,
    report: (done: number, total: number) => Promise<void>,
  ): Promise<ReadonlyMap<string, Adapter> | undefined> {
    const { starter } = this;
    if (starter === undefined) return undefined;
    if (needsData(starter.options.start)) this.observer.phase?.('observing');
    return starter.finish(decoder, calibrationOf(data, this.options), report);
  }

  private get tokensPerStep(): number {
    const { train, seqLen } = this.options;
    return train.batch * train.accumulate * seqLen;
  }

  /** The remaining steps. Time and count are those of training only. */
  private async train(
    trainer: ModelTrainer,
    state: StateFile,
    history: LossHistory,
  ): Promise<{ seconds: number; steps: number }> {
    const { options, observer } = this;
    const total = options.train.steps;
    observer.phase?.('training');
    let milliseconds = 0;
    let steps = 0;
    let uncaptured = trainer.notCaptured;
    const save = () => state.save();
    while (trainer.step < total) {
      await this.pause(save);
      const started = performance.now();
      const result = await trainer.train();
      milliseconds += performance.now() - started;
      steps++;
      if (trainer.notCaptured !== uncaptured) {
        uncaptured = trainer.notCaptured;
        observer.warning?.(`steps run without a graph: ${uncaptured}`);
      }
      history.train.push(result.loss);
      state.fit();
      observer.step?.(result, history.heldOut[history.heldOut.length - 1]?.loss);
      const due = (every: number) => every > 0 && trainer.step % every === 0;
      if (due(options.evalEvery) && trainer.step < total) {
        await this.evaluate(trainer, history, save);
      }
      if (due(options.saveEvery) && trainer.step < total) save();
    }
    trainer.finish();
    const last = history.heldOut[history.heldOut.length - 1];
    if (last?.step !== trainer.step) await this.evaluate(trainer, history, save);
    return { seconds: milliseconds / 1000, steps };
  }

  private async evaluate(
    trainer: ModelTrainer,
    history: LossHistory,
    save?: () => void,
  ): Promise<void> {
    const loss = await trainer.evaluate(trainer.data.heldOut, true, () => this.pause(save));
    history.heldOut.push({ step: trainer.step, loss });
    this.observer.heldOut?.(trainer.step, loss);
  }

  /** What samples begin with: the texts of the options, or held-out beginnings. */
  private async prompts(
    source: DataSource,
    prepared: PreparedData,
    tokenizer: TextTokenizer,
  ): Promise<readonly SamplePrompt[]> {
    const { prompts, sampleTokens } = this.options;
    if (sampleTokens === 0) return [];
    if (prompts.length === 0 && !source.plain) return prepared.prompts;
    const pause = () => this.pause();
    const chosen = prompts.length > 0 ? prompts : heldOutBeginnings(source.documents);
    const found: SamplePrompt[] = [];
    for (const text of chosen) {
      const name = `--prompt ${printable(text)}`;
      const messages = [{ role: 'user', content: text }];
      const start = source.chats ? undefined : (tokenizer.bosId ?? tokenizer.eosId);
      const asked = source.chats ? await tokenizer.prompt({ messages }, name, pause) : text;
      const encoded = await tokenizer.encode(asked, 'the prompt', pause);
      found.push({ text, ids: [...(start === undefined ? [] : [start]), ...encoded] });
    }
    return found;
  }

  private async samples(
    trainer: ModelTrainer,
    tokenizer: TextTokenizer,
    { prompts, ends }: Pick<PreparedData, 'prompts' | 'ends'>,
    adapted: boolean,
  ): Promise<{ prompt: string; text: string }[]> {
    const { sampleTokens, train } = this.options;
    const found: { prompt: string; text: string }[] = [];
    const pause = () => this.pause();
    for (const { text: prompt, ids } of prompts) {
      const next: number[] = [];
      const tokens = generate(trainer.decoder, ids, {
        maxTokens: sampleTokens,
        temperature: 0.7,
        topK: 40,
        seed: train.seed,
        dtype: train.dtype,
        eosIds: [...trainer.decoder.config.eosTokenIds, ...ends],
        ...(adapted
          ? { adapters: trainer.adapters.byModule, experts: trainer.adapters.experts }
          : {}),
      });
      for await (const id of tokens) {
        next.push(id);
        await pause();
      }
      found.push({ prompt, text: await tokenizer.decode(next, pause) });
    }
    return found;
  }

  private async compare(trainer: ModelTrainer): Promise<StepComparison | undefined> {
    this.observer.phase?.('comparing');
    return compareSteps(trainer, {
      warn: (text) => this.observer.warning?.(text),
      pause: (done, total) => this.breathe(done, total),
    });
  }

  private async breathe(done: number, total: number): Promise<void> {
    this.observer.progress?.(done, total);
    // A turn of the event loop costs more than a short document.
    if (performance.now() - this.lastPause > 30) await this.pause();
  }

  /** Lets signals in, and stops if one came. */
  private async pause(save?: () => void): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve));
    this.lastPause = performance.now();
    if (!this.signal.aborted) return;
    save?.();
    const kept = fs.existsSync(this.checkpoint) ? this.checkpoint : undefined;
    throw new Interrupted(kept, this.written ? this.options.out : undefined);
  }

  /** A new run does not silently overwrite the state of an unfinished one. */
  private setOldStateAside(): void {
    if (!fs.existsSync(this.checkpoint)) return;
    const aside = `${this.checkpoint}.old`;
    try {
      fs.renameSync(this.checkpoint, aside);
    } catch (error) {
      throw fileError(kOp, this.checkpoint, error);
    }
    this.observer.warning?.(
      `an unfinished run was there; its state is now ${printable(aside)} (--resume continues such a run)`,
    );
  }
}
