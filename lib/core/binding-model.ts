/** The raw functions of a model's ops around its linear layers; `native/addon/model_ops.cpp` documents their arguments. */

/** Native memory behind a tensor or a weight: an opaque external with a type tag. */
export type NativeHandle = { readonly __nativeHandle: unique symbol };

/** What both passes of attention take first. */
export type AttentionArguments = [
  q: NativeHandle,
  k: NativeHandle,
  v: NativeHandle,
  qFirst: number,
  kFirst: number,
  vFirst: number,
  sequences: number,
  heads: number,
  kvHeads: number,
  headDim: number,
  window: number,
  scale: number,
  softcap: number,
  rope: NativeHandle | null,
  documents: NativeHandle | null,
];

/** What the ops of experts take of a route. */
export type RouteHandles = [
  order: NativeHandle,
  inverse: NativeHandle,
  offsets: NativeHandle,
  k: number,
];

/** What both passes of the products of experts take. */
export type ExpertsLora = [
  gather: boolean,
  loraA: NativeHandle | null,
  loraB: NativeHandle | null,
  scaling: number,
];

export interface ModelBinding {
  indices(device: string, values: Int32Array, limit: number, holes: boolean): NativeHandle;
  writeIndices(indices: NativeHandle, values: Int32Array): void;
  embedding(ids: NativeHandle, table: NativeHandle, scale: number, dtype: string): NativeHandle;
  linearCrossEntropy(
    x: NativeHandle,
    head: NativeHandle,
    targets: NativeHandle,
    weights: NativeHandle | null,
    scale: number,
    softcap: number,
    wantsDx: boolean,
  ): [losses: NativeHandle, dx: NativeHandle | null];
  routeRows(
    experts: NativeHandle,
    k: number,
    count: number,
  ): [order: NativeHandle, inverse: NativeHandle, offsets: NativeHandle];
  selectExperts(
    logits: NativeHandle,
    k: number,
    chosenOnly: boolean,
  ): [experts: NativeHandle, gates: NativeHandle];
  selectExpertsBackward(
    dGates: NativeHandle,
    logits: NativeHandle,
    experts: NativeHandle,
    gates: NativeHandle,
    chosenOnly: boolean,
  ): NativeHandle;
  expertsMatmul(
    x: NativeHandle,
    w: NativeHandle,
    bias: NativeHandle | null,
    ...rest: [...route: RouteHandles, ...lora: ExpertsLora]
  ): [y: NativeHandle, h: NativeHandle | null];
  /** `wanted`: the dtype of dx, dLoraA and dLoraB, or null. */
  expertsMatmulBackward(
    dy: NativeHandle,
    w: NativeHandle,
    x: NativeHandle | null,
    ...rest: [
      ...route: RouteHandles,
      ...lora: ExpertsLora,
      h: NativeHandle | null,
      wanted: readonly (string | null)[],
    ]
  ): [dx: NativeHandle | null, dLoraA: NativeHandle | null, dLoraB: NativeHandle | null];
  combineRows(y: NativeHandle, gates: NativeHandle | null, ...route: RouteHandles): NativeHandle;
  combineRowsBackward(
    dOut: NativeHandle,
    y: NativeHandle | null,
    gates: NativeHandle | null,
    ...rest: [...route: RouteHandles, dtype: string | null, wantsDGates: boolean]
  ): [dy: NativeHandle | null, dGates: NativeHandle | null];
  globalNorm(tensors: readonly NativeHandle[]): NativeHandle;
  /** `tensors`: p, g and the states of each parameter; `numbers`: beta1, beta2, eps, maxNorm, lr, step, and lrScale and weightDecay of each. */
  optimizerStep(
    kind: string,
    tensors: readonly NativeHandle[],
    numbers: Float64Array,
    lr: NativeHandle | null,
    stepsDone: NativeHandle | null,
    norm: NativeHandle | null,
  ): void;
  rmsNormForward(
    x: NativeHandle,
    residual: NativeHandle | null,
    g: NativeHandle,
    eps: number,
    plusOne: boolean,
    keep: boolean,
  ): [y: NativeHandle, sum: NativeHandle | null, invRms: NativeHandle | null];
  rmsNormBackward(
    dy: NativeHandle,
    x: NativeHandle,
    g: NativeHandle,
    invRms: NativeHandle,
    dSum: NativeHandle | null,
    plusOne: boolean,
    wantsDx: boolean,
    wantsDg: boolean,
  ): [dx: NativeHandle | null, dg: NativeHandle | null];
  attention(
    ...args: [
      ...shared: AttentionArguments,
      kCache: NativeHandle | null,
      vCache: NativeHandle | null,
      past: number,
      keep: boolean,
      sinks: NativeHandle | null,
    ]
  ): [o: NativeHandle, lse: NativeHandle | null];
  attentionBackward(
    ...args: [
      ...shared: AttentionArguments,
      o: NativeHandle,
      lse: NativeHandle,
      dO: NativeHandle,
      fused: boolean,
    ]
  ): NativeHandle[];
}
