/** The raw functions of a model's ops around its linear layers; `native/addon/model_ops.cpp` documents their arguments. */

/** Native memory behind a tensor or a weight: an opaque external with a type tag. */
export type NativeHandle = { readonly __nativeHandle: unique symbol };

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
}
