/** llama.cpp through node-llama-cpp, as far as the suite needs it. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

interface Next {
  readonly probabilities: ReadonlyMap<number, number>;
}
interface Sequence {
  controlledEvaluate(input: unknown[]): Promise<({ readonly next: Next } | undefined)[]>;
}
interface Context {
  getSequence(): Sequence;
  dispose(): Promise<void>;
}
interface Model {
  tokenize(text: string, special?: boolean): number[];
  createContext(options: object): Promise<Context>;
  dispose(): Promise<void>;
}
export interface Llama {
  loadModel(options: object): Promise<Model>;
  dispose(): Promise<void>;
}

const kEntry = join(import.meta.dirname, 'node_modules', 'node-llama-cpp', 'dist', 'index.js');

/** The library, on the processor. @throws Error if it is not installed */
export async function openLlama(): Promise<Llama> {
  if (!existsSync(kEntry)) throw new Error('llama.cpp is not installed: npm run test:llama-cpp');
  const { getLlama } = (await import(pathToFileURL(kEntry).href)) as {
    getLlama(options: object): Promise<Llama>;
  };
  return getLlama({ gpu: false, build: 'never', skipDownload: true, logLevel: 'error' });
}

/** The logarithms of llama.cpp's probabilities of the token after `ids`, by token. */
export async function nextLogs(
  llama: Llama,
  modelPath: string,
  ids: readonly number[],
  adapter?: string,
): Promise<Map<number, number>> {
  const model = await llama.loadModel({ modelPath });
  const context = await model.createContext({
    contextSize: 64,
    batchSize: 64,
    flashAttention: false,
    // Keys and values as exact as ours.
    experimentalKvCacheKeyType: 'F32',
    experimentalKvCacheValueType: 'F32',
    ...(adapter === undefined ? {} : { lora: { adapters: [{ filePath: adapter, scale: 1 }] } }),
  });
  const options = { temperature: 1, topK: 0, topP: 1, minP: 0 };
  const last = [ids.at(-1), { generateNext: { probabilities: true, options } }];
  const found = await context.getSequence().controlledEvaluate([...ids.slice(0, -1), last]);
  const next = found.at(-1)?.next.probabilities ?? new Map<number, number>();
  await context.dispose();
  await model.dispose();
  return new Map([...next].map(([id, share]) => [id, Math.log(share)]));
}

/** The ids of a text. */
export async function idsOf(llama: Llama, modelPath: string, text: string): Promise<number[]> {
  const model = await llama.loadModel({ modelPath });
  const ids = [...model.tokenize(text, true)];
  await model.dispose();
  return ids;
}
