/** What each method is tested with: sizes that it allows, settings small enough to differentiate. */
import {
  type Adapter,
  type AdapterPlace,
  adapterMethods,
  type BaseWeight,
  dequantize,
  LoraAdapter,
  loraForward,
  multiplyAdd,
  Tensor,
} from '../../lib/index.js';
import { DENSE_ROWS } from './settings-dense.js';
import { ROUTED_ROWS } from './settings-routed.js';
import { STRUCTURED_ROWS } from './settings-structured.js';

export interface MethodSettings {
  readonly N: number;
  readonly K: number;
  readonly settings: Readonly<Record<string, unknown>>;
  readonly create: (place: AdapterPlace & Readonly<Record<string, unknown>>) => Adapter;
  /** Further inputs that a call needs: name to shape, for M rows. */
  readonly inputs?: Readonly<
    Record<string, (M: number, size: { N: number; K: number }) => readonly number[]>
  >;
  /** Of the differences; default 1/32. */
  readonly step?: number;
  /**
   * The forward pass with what the method holds constant in its gradients taken from `start`: what
   * differences are taken of.
   */
  readonly held?: (
    start: Adapter,
    w: BaseWeight,
  ) => (at: Readonly<Record<string, Tensor>>) => Tensor;
  /** Why a fresh adapter is not the base model, where it is not. */
  readonly startsElsewhere?: string;
}

export type Row = Partial<Omit<MethodSettings, 'create'>>;

const alpha = { settings: { r: 4, loraAlpha: 6 } };

/** DoRA's norm is no function of the factors for its gradients. */
function doraWithNormHeld(start: Adapter, w: BaseWeight) {
  const { loraA, loraB } = start.parameters as Record<'loraA' | 'loraB', Tensor>;
  const { loraAlpha } = start.config as { loraAlpha: number };
  const [r = 0, K = 0] = loraA.shape;
  const dense = (w instanceof Tensor ? w : dequantize(w, { dtype: 'f32' })).readSync();
  const [a, b] = [loraA.readSync(), loraB.readSync()];
  const reciprocals = Float32Array.from({ length: start.outFeatures }, (_, n) => {
    let sum = 0;
    for (let k = 0; k < K; k++) {
      let v = dense[n * K + k] as number;
      for (let i = 0; i < r; i++) {
        v += (loraAlpha / r) * (b[n * r + i] as number) * (a[i * K + k] as number);
      }
      sum += v * v;
    }
    return 1 / Math.sqrt(sum);
  });
  const held = Tensor.from(reciprocals, [start.outFeatures], { device: start.device });
  return (at: Readonly<Record<string, Tensor>>): Tensor => {
    const now = at as Record<'loraA' | 'loraB' | 'magnitude' | 'dx' | 'dBias', Tensor>;
    const adapter = new LoraAdapter({ loraA: now.loraA, loraB: now.loraB, loraAlpha });
    const { y } = loraForward(now.dx, w, adapter, { training: false });
    return multiplyAdd({ a: y, b: multiplyAdd({ a: now.magnitude, b: held }), c: now.dBias });
  };
}

const ROWS: Readonly<Record<string, Row>> = {
  flora: { settings: { r: 3 } },
  'l-lora': alpha,
  'layered-lora': { settings: { r: 3, pastRank: 2 } },
  salora: alpha,
  alora: {
    settings: { ...alpha.settings, invocationTokens: [7, 0, 7] },
    inputs: { active: (M) => [M, 1] },
  },
  'lora-dropout': { settings: { r: 4, loraAlpha: 6, p: 0 } },
  'reslora-input': { ...alpha, inputs: { previous: (M, { K }) => [M, K] } },
  'reslora-middle': { ...alpha, inputs: { middle: (M) => [M, 4] } },
  sibo: { ...alpha, inputs: { initial: (M, { K }) => [M, K] } },
  adalora: alpha,
  aflora: { settings: { r: 4 } },
  beft: {},
  delora: {
    settings: { r: 4, lambda: 3 },
  },
  dora: { ...alpha, held: doraWithNormHeld },
  ia3: {},
  'ia3-input': {},
  'ia3-input/kernel': { settings: { kernel: [2, 2] } },
  kasa: { ...alpha, startsElsewhere: 'the smallest singular triplets are taken off' },
  lora: alpha,
  'lora/bias': { settings: { r: 4, loraAlpha: 6, rslora: true, loraBias: true } },
  'lora/embedding': { settings: { r: 4, loraAlpha: 6, embedding: true } },
  'lora/groups': { settings: { r: 8, loraAlpha: 6, kernel: [2, 2], groups: 4 } },
  'lora/groups-bias': {
    settings: { r: 8, loraAlpha: 6, kernel: [2, 2], groups: 2, loraBias: true },
  },
  'lora-fa': alpha,
  'lora-xs': { ...alpha, startsElsewhere: 'the paper draws the core, near zero' },
  lotr: { settings: { r: 4, scale: 1.5 } },
  monteclora: { settings: { r: 4, loraAlpha: 6, samples: 3 } },
  moslora: alpha,
  'private-lora': { settings: { rA: 5, rB: 3 } },
  randlora: { settings: { r: 5, loraAlpha: 6 } },
  sora: alpha,
  'tied-lora': { settings: { r: 4 } },
  tinylora: { settings: { r: 3, u: 5 } },
  vera: { settings: { r: 6, dInitial: 0.2 } },
  ...STRUCTURED_ROWS,
  ...ROUTED_ROWS,
  ...DENSE_ROWS,
};

/** What the suite runs: every method, and its variants behind a slash. */
export const METHOD_CASES: readonly string[] = adapterMethods.flatMap(({ method }) => [
  method,
  ...Object.keys(ROWS).filter((name) => name.startsWith(`${method}/`)),
]);

/** @param name of {@link METHOD_CASES} */
export function settingsOf(name: string): MethodSettings {
  const method = name.split('/')[0];
  const found = adapterMethods.find((candidate) => candidate.method === method);
  const row = ROWS[name];
  if (found === undefined || row === undefined) throw new Error(`no settings for ${name}`);
  return {
    N: 24,
    K: 32,
    settings: {},
    create: (place) => found.create(place as AdapterPlace) as unknown as Adapter,
    ...row,
  };
}
