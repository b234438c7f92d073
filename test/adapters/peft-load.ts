/** What PEFT makes of each method's folders, and how a test finds out. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { readSafetensors, type Tensor } from '../../lib/index.js';
import { caseIds, configOf } from '../golden/case-file.js';
import { Matrix } from '../oracle/adapter-layer.js';
import type { PeftFiles } from '../oracle/peft/index.js';
import type { PeftMethod } from '../oracle/peft/loader.js';
import { psoftWith } from '../oracle/peft/transforms.js';

/** Methods of which PEFT has no folders: theirs are of a `peft_type` of our own, which PEFT does not know. */
export const OWN: Readonly<Record<string, string>> = {
  adamss:
    "PEFT makes its subspaces from k-means of scikit-learn when it loads, whatever the folder's rows are",
  aflora: 'not in PEFT',
  arrow: "PEFT's folder of it is a router over other folders, and has no tensors",
  dylora: 'not in PEFT',
  flora: 'not in PEFT',
  full: 'not in PEFT',
  hydralora: 'not in PEFT',
  'ir-qlora': 'not in PEFT',
  l4q: 'not in PEFT',
  'lota-qaf': 'not in PEFT',
  kadaptation: 'not in PEFT',
  krona: 'not in PEFT',
  'l-lora': 'not in PEFT',
  'layered-lora': 'not in PEFT',
  'lora-dropout': 'not in PEFT',
  'lora-fa': 'an optimiser in PEFT, not a type of folder',
  'lora-xs': 'not in PEFT',
  loramoe: 'not in PEFT',
  lotr: 'not in PEFT',
  melora: 'not in PEFT',
  mora: 'not in PEFT',
  moslora: 'not in PEFT',
  multilora: 'not in PEFT',
  'private-lora': 'not in PEFT',
  'reslora-input': 'not in PEFT',
  'reslora-middle': 'not in PEFT',
  salora: 'not in PEFT',
  sibo: 'not in PEFT',
  sltrain: 'not in PEFT',
  sora: 'not in PEFT',
  'tied-lora': 'not in PEFT',
  'x-lora': "PEFT's folder of it is a classifier over other folders",
};

export interface Expectation {
  /** What the writer says that PEFT computes otherwise. */
  readonly caveat?: RegExp;
  /** PEFT's error. */
  readonly refuses?: RegExp;
  /** Keys that PEFT leaves out, of which nothing depends. */
  readonly ignored?: RegExp;
  /** PEFT's layer has other numbers, as the caveat says. */
  readonly otherwise?: true;
  /** Fields of the config that PEFT does not know. */
  readonly unknown?: readonly string[];
  /** x and the table are those of an embedding. */
  readonly embedding?: true;
}

/** A row for each method that PEFT has. */
export const PEFT: Readonly<Record<string, Expectation>> = {
  adalora: {},
  alora: {},
  bdlora: {},
  beft: {},
  boft: {},
  'boft/butterfly': { caveat: /one factor|CUDA extension/, refuses: /size mismatch/ },
  c3a: {},
  deft: {},
  'deft-qr': {},
  delora: {},
  dora: {},
  fourierft: {},
  'fourierft/ortho': {
    caveat: /"backward" in place of "ortho"/,
    otherwise: true,
    unknown: ['ifft2_norm'],
  },
  // The loader takes the folder's V for that which PEFT would have made.
  frod: { caveat: /frod_V/, ignored: /frod_U$/ },
  // Of a layer without a bias.
  glora: { ignored: /glora_[CDE]/ },
  gralora: {},
  hira: {},
  hra: {},
  ia3: {},
  'ia3-input': {},
  kasa: {},
  lily: {},
  loha: {},
  lokr: {},
  lora: {},
  miss: {},
  monteclora: {},
  oft: {},
  // PEFT has the largest triplets of its own decomposition, which is that of the same weight.
  osf: { ignored: /_osf_[USV]_high$/ },
  peanut: {},
  poly: {},
  // The loader takes the folder's factors for those of PEFT's own decomposition.
  psoft: { caveat: /signs/, ignored: /_psoft_[AB]_cache$/ },
  pvera: {},
  qalora: { caveat: /GPTQ/, refuses: /size mismatch/ },
  randlora: {},
  road: {},
  shira: {},
  supertuning: {},
  tinylora: {},
  'trainable-tokens': { embedding: true },
  unilora: {},
  vblora: {},
  velora: {},
  vera: {},
  waveft: {},
};

export const matrixOf = (tensor: Tensor): Matrix => {
  const cols = tensor.shape.at(-1) ?? 1;
  return new Matrix(tensor.size / cols, cols, Float64Array.from(tensor.readSync()));
};

/** A folder's files, as any program reads them. */
export function filesOf(folder: string) {
  const config = JSON.parse(readFileSync(join(folder, 'adapter_config.json'), 'utf8'));
  const { tensors } = readSafetensors(join(folder, 'adapter_model.safetensors'));
  const values = [...tensors].map(([key, { shape, data }]) => {
    return [key, { shape, values: Array.from(data as ArrayLike<number>, Number) }] as const;
  });
  return { config, tensors: new Map(values) };
}

/** As if PEFT's decomposition had the signs of ours. */
export const psoftOf = ({ tensors }: PeftFiles): PeftMethod =>
  psoftWith((load, module) => {
    const { N, K } = load.sizes(module);
    const r = load.number('r');
    const values = (name: string) => {
      const { values: cache = [] } =
        tensors.get(`base_model.model.${module}._psoft_${name}_cache`) ?? {};
      return Float64Array.from(cache);
    };
    return { a: new Matrix(r, K, values('A')), b: new Matrix(N, r, values('B')) };
  });

/** Fields of PEFT's config of a type: those that it wrote itself into its recorded folders. */
export function fieldsOf(type: string): ReadonlySet<string> {
  const all = [...caseIds('tuners'), ...caseIds('lora'), ...caseIds('routing')];
  const own = all.map(configOf).filter(({ peft_type }) => peft_type === type);
  return new Set(own.flatMap((config) => Object.keys(config)));
}

export const worst = (got: ArrayLike<number>, expected: Matrix): number => {
  const scale = Math.max(1, ...expected.data.map(Math.abs));
  return (
    expected.data.reduce((most, v, i) => Math.max(most, Math.abs(v - (got[i] as number))), 0) /
    scale
  );
};
