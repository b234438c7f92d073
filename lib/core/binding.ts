/**
 * The only file that knows the native addon. It finds the addon, types its raw functions and
 * converts its errors into those of the library.
 */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, extname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { BorrowedBinding } from './binding-borrowed.js';
import type { ModelBinding, NativeHandle } from './binding-model.js';
import type { HostArray, WeightBinding } from './binding-weights.js';
import { type ErrorCode, LowrankError, LowrankTypeError } from './errors.js';
import type { CallShape, CpuExplanation, CudaExplanation } from './explanation.js';

export type { NativeHandle } from './binding-model.js';

type Callback<T = void> = (code: string | null, message: string, result: T) => void;

/**
 * Adapters of a batch: loraA, loraB, and loraBias or null of each. The last element is a Float64Array with
 * the scaling and dropout of each: one call from the addon to Node instead of several per adapter.
 */
export type RawAdapters = ReadonlyArray<NativeHandle | Float64Array | null>;

/** What a device reports about itself. */
interface RawDevice {
  device: string;
  available: boolean;
  reason?: string;
  name: string;
  features: string[];
  memory: number;
  isa?: string;
  betterIsas?: string[];
  sm?: number;
  driver?: string;
}

/**
 * What the addon's loraForward takes after x. By position, as every argument of the addon: Node-API reads eleven values
 * of an object by name in 1.1 us, by position in 0.1 us.
 */
export type RawLoraPart = readonly [
  w: NativeHandle,
  bias: NativeHandle | null,
  loraA: NativeHandle,
  loraB: NativeHandle,
  loraBias: NativeHandle | null,
  scaling: number,
  dropout: number,
  seedLow: number,
  seedHigh: number,
  dropoutMask: NativeHandle | null,
  compute: string,
];

/** The same of a projection, which may have no adapter. */
export type RawProjection =
  | RawLoraPart
  | readonly [
      w: NativeHandle,
      bias: NativeHandle | null,
      loraA: null,
      loraB: null,
      loraBias: null,
      scaling: 0,
      dropout: 0,
      seedLow: 0,
      seedHigh: 0,
      dropoutMask: null,
      compute: string,
    ];

/** The raw functions of the addon; `native/addon/*.cpp` documents their arguments. */
export interface Binding extends BorrowedBinding, ModelBinding, WeightBinding {
  devices(): RawDevice[];
  device(name: string): RawDevice | null;
  deviceNames(): string[];
  startDevice(device: string): void;
  /** What a call would run on a device, an instruction set, or an architecture (`sm_90`); nothing runs. */
  explain(
    kind: 'device' | 'isa' | 'architecture',
    name: string,
    call: CallShape,
  ): CpuExplanation | CudaExplanation;
  memoryUsage(device: string): { liveBytes: number; peakBytes: number; liveTensors: number };
  resetPeak(device: string): void;
  /** @param bytes Infinity: no limit */
  setMemoryBudget(device: string, bytes: number): void;
  setThreads(threads: number): void;
  threads(): number;
  createTensor(
    device: string,
    dtype: string,
    shape: readonly number[],
    data: HostArray | null,
  ): NativeHandle;
  wrapTensor(
    device: string,
    dtype: string,
    shape: readonly number[],
    memory: HostArray | bigint,
  ): NativeHandle;
  randomTensor(
    device: string,
    dtype: string,
    shape: readonly number[],
    kind: 'normal' | 'uniform' | 'keep',
    seedLow: number,
    seedHigh: number,
    mean: number,
    scale: number,
    seedAt: NativeHandle | null,
  ): NativeHandle;
  castTensor(tensor: NativeHandle, dtype: string): NativeHandle;
  /** Another handle of the same memory. */
  share(tensor: NativeHandle): NativeHandle;
  reshape(tensor: NativeHandle, shape: readonly number[]): NativeHandle;
  /** Do two tensors overlap in memory, even in part? */
  overlap(a: NativeHandle, b: NativeHandle): boolean;
  dispose(handle: NativeHandle): void;
  /** f32 values or the bits of a 16-bit dtype; for a part of a weight, its bytes. */
  read(
    handle: NativeHandle,
    part: string | null,
    elements: 'f32' | 'bits',
    done: Callback<ArrayBuffer>,
  ): void;
  readSync(handle: NativeHandle, part: string | null, target: HostArray): boolean;
  writeTensor(tensor: NativeHandle, data: HostArray): void;
  toDevice(handle: NativeHandle, device: string): NativeHandle;
  synchronize(device: string, done: Callback): void;
  useStream(device: string, handle: bigint | null): void;
  flush(device: string, done: Callback): void;
  flushSync(device: string): boolean;
  workspaceBytes(device: string): number;
  reserveWorkspace(device: string, bytes: number, done: Callback): void;
  /** The ops of this thread are recorded from here to endRecording. */
  beginRecording(device: string): NativeHandle;
  /** @returns the launches of a run */
  endRecording(recording: NativeHandle, discard: boolean): number;
  replay(recording: NativeHandle): void;
  disposeRecording(recording: NativeHandle): void;
  launches(device: string): number;
  matmul(
    x: NativeHandle,
    w: NativeHandle,
    bias: NativeHandle | null,
    compute: string,
  ): NativeHandle;
  matmulInputGrad(dy: NativeHandle, w: NativeHandle): NativeHandle;
  loraForward(x: NativeHandle, ...part: RawLoraPart): [y: NativeHandle, h: NativeHandle];
  /** @returns y and h (or null) of each */
  loraForwardMany(x: NativeHandle, parts: readonly RawProjection[]): (NativeHandle | null)[];
  /** Projections as in loraForwardMany; `keep` returns gate and up too. */
  loraForwardSwiglu(
    x: NativeHandle,
    gate: RawProjection,
    up: RawProjection,
    keep: boolean,
  ): [
    y: NativeHandle,
    gateH: NativeHandle | null,
    upH: NativeHandle | null,
    gate: NativeHandle | null,
    up: NativeHandle | null,
  ];
  loraBackward(
    dy: NativeHandle,
    x: NativeHandle | null,
    w: NativeHandle | null,
    loraA: NativeHandle,
    loraB: NativeHandle,
    h: NativeHandle | null,
    scaling: number,
    dropout: number,
    seedLow: number,
    seedHigh: number,
    dropoutMask: NativeHandle | null,
    wanted: ReadonlyArray<NativeHandle | string | null>,
  ): Array<NativeHandle | null>;
  loraShrink(
    x: NativeHandle,
    loraA: NativeHandle,
    scaling: number,
    dropout: number,
    seedLow: number,
    seedHigh: number,
    dropoutMask: NativeHandle | null,
  ): NativeHandle;
  loraExpand(
    x: NativeHandle,
    w: NativeHandle,
    bias: NativeHandle | null,
    h: NativeHandle,
    loraB: NativeHandle,
    scaling: number,
    compute: string,
  ): NativeHandle;
  loraExpandWithNorms(
    x: NativeHandle,
    w: NativeHandle,
    bias: NativeHandle | null,
    h: NativeHandle,
    loraB: NativeHandle,
    scaling: number,
    compute: string,
    loraA: NativeHandle,
    weightNorms: NativeHandle,
  ): [NativeHandle, NativeHandle];
  loraExpandBackward(
    dy: NativeHandle,
    h: NativeHandle | null,
    loraB: NativeHandle,
    scaling: number,
    wanted: ReadonlyArray<NativeHandle | string | null>,
  ): Array<NativeHandle | null>;
  loraShrinkBackward(
    dy: NativeHandle | null,
    w: NativeHandle | null,
    dh: NativeHandle,
    loraA: NativeHandle,
    x: NativeHandle | null,
    scaling: number,
    dropout: number,
    seedLow: number,
    seedHigh: number,
    dropoutMask: NativeHandle | null,
    wanted: ReadonlyArray<NativeHandle | string | null>,
  ): Array<NativeHandle | null>;
  weightGrad(
    dy: NativeHandle,
    x: NativeHandle,
    wanted: ReadonlyArray<NativeHandle | string | null>,
  ): Array<NativeHandle | null>;
  groupedForward(
    x: NativeHandle,
    w: NativeHandle,
    bias: NativeHandle | null,
    adapters: RawAdapters,
    adapterOf: Int32Array,
    slots: number,
    rowScale: NativeHandle | null,
    seedLow: number,
    seedHigh: number,
    dropoutMask: NativeHandle | null,
    compute: string,
  ): [y: NativeHandle, h: NativeHandle];
  groupedBackward(
    dy: NativeHandle,
    x: NativeHandle | null,
    w: NativeHandle | null,
    h: NativeHandle | null,
    inFeatures: number,
    adapters: RawAdapters,
    adapterOf: Int32Array,
    slots: number,
    rowScale: NativeHandle | null,
    seedLow: number,
    seedHigh: number,
    dropoutMask: NativeHandle | null,
    wanted: ReadonlyArray<NativeHandle | string | null>,
  ): Array<NativeHandle | null>;
  multiplyAdd(
    a: NativeHandle,
    b: NativeHandle | null,
    c: NativeHandle | null,
    alpha: number,
    beta: number,
    dtype: string,
  ): NativeHandle;
  mapTensor(a: NativeHandle, kind: string, dtype: string): NativeHandle;
  gatedActivation(gate: NativeHandle, up: NativeHandle, kind: string): NativeHandle;
  gatedActivationBackward(
    dy: NativeHandle,
    gate: NativeHandle,
    up: NativeHandle,
    kind: string,
  ): [dGate: NativeHandle, dUp: NativeHandle];
  sumProduct(a: NativeHandle, b: NativeHandle | null, axis: number): NativeHandle;
  featureMap(
    device: string,
    inFeatures: number,
    outFeatures: number,
    begin: Int32Array | null,
    index: Int32Array,
  ): NativeHandle;
  mapFeatures(
    x: NativeHandle,
    map: NativeHandle,
    c: NativeHandle | null,
    alpha: number,
    beta: number,
    dtype: string,
  ): NativeHandle;
  blockMatmul(x: NativeHandle, w: NativeHandle): NativeHandle;
  blockMatmulInputGrad(dy: NativeHandle, w: NativeHandle): NativeHandle;
  blockWeightGrad(dy: NativeHandle, x: NativeHandle): NativeHandle;
}

/** One place where the library looked for the addon, and the outcome. */
export interface BindingAttempt {
  path: string;
  outcome: string;
}

/** `linux-x64-gnu`: the name in a platform package. */
function platformName(): string {
  const { platform, arch } = process;
  if (platform !== 'linux') return `${platform}-${arch}`;
  const report = process.report?.getReport() as { header?: { glibcVersionRuntime?: string } };
  return `${platform}-${arch}-${report?.header?.glibcVersionRuntime ? 'gnu' : 'musl'}`;
}

/** The folder of package.json. Sources and `dist/` lie at different depths below it. */
function packageRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'package.json')) && dirname(folder) !== folder) {
    folder = dirname(folder);
  }
  return folder;
}

function candidates(): Array<{ path: string; isPackage: boolean }> {
  const override = process.env.LOWRANK_BINDING;
  if (override) return [{ path: override, isPackage: false }];
  const root = packageRoot();
  return [
    { path: join(root, 'build', 'Release', 'lowrank.node'), isPackage: false },
    { path: join(root, 'native', 'gyp', 'build', 'Release', 'lowrank.node'), isPackage: false },
    { path: `@lowrank/${platformName()}`, isPackage: true },
  ];
}

/** @internal The reason why an addon could not be loaded, in words. */
export function failureOf(
  error: unknown,
  packageName: string | undefined,
  require: NodeJS.Require,
): string {
  const { code, message } = error as Error & { code?: unknown };
  const [line = ''] = String(message).split('\n');
  if (packageName === undefined) return line;
  if (code === 'MODULE_NOT_FOUND' && line.includes(`'${packageName}'`)) {
    const other = otherLibc(packageName);
    return other !== undefined && isInstalled(other, require)
      ? `not installed (${other} is installed, but for another C library)`
      : 'not installed';
  }
  // Messages of the dynamic loader: glibc complains about a symbol's version, both about a missing
  // loader.
  const needs = /GLIBC|ld-linux|ld-musl|libc\.musl|libc\.so/.test(line);
  return `installed, but ${needs ? 'made for another C library' : 'broken'}: ${line}`;
}

/** The package for the same processor and the other C library. */
function otherLibc(packageName: string): string | undefined {
  if (packageName.endsWith('-gnu')) return packageName.replace(/gnu$/, 'musl');
  return packageName.endsWith('-musl') ? packageName.replace(/musl$/, 'gnu') : undefined;
}

function isInstalled(packageName: string, require: NodeJS.Require): boolean {
  try {
    require.resolve(packageName);
    return true;
  } catch {
    return false;
  }
}

let loaded: Binding | undefined;
let loadedFrom = '';

/** The file that the addon was loaded from. Loads it if necessary. */
export function bindingPath(): string {
  binding();
  return loadedFrom;
}

/**
 * The addon, loaded on first use: from `LOWRANK_BINDING`, else the local build, else the platform
 * package.
 * @throws LowrankError `ERR_NO_BINDING`, which lists every attempt and the remedy.
 */
export function binding(): Binding {
  if (loaded !== undefined) return loaded;
  const require = createRequire(import.meta.url);
  const attempts: BindingAttempt[] = [];
  for (const { path, isPackage } of candidates()) {
    if (!isPackage && !existsSync(path)) {
      attempts.push({ path, outcome: 'no such file' });
      continue;
    }
    if (!isPackage && extname(path) !== '.node') {
      attempts.push({ path, outcome: 'not an addon: its name must end in .node' });
      continue;
    }
    try {
      const found = require(path) as Partial<Binding> | null;
      if (typeof found?.devices === 'function') {
        loaded = found as Binding;
        loadedFrom = require.resolve(path);
        return loaded;
      }
      attempts.push({ path, outcome: 'not an addon of this library' });
    } catch (error) {
      attempts.push({ path, outcome: failureOf(error, isPackage ? path : undefined, require) });
    }
  }
  const list = attempts.map(({ path, outcome }) => `  ${path}: ${outcome}`).join('\n');
  const remedy = process.env.LOWRANK_BINDING
    ? 'Correct or unset LOWRANK_BINDING.'
    : 'Build it here with `npx lowrank build` (needs a C++ compiler and CMake, or Python for ' +
      `node-gyp), or install the package @lowrank/${platformName()} where one is published.`;
  throw new LowrankError(
    'ERR_NO_BINDING',
    `the native addon for ${platformName()}, Node ${process.version} was not found:\n${list}\n${remedy}`,
  );
}

/** Converts an error of the addon into one of the library. */
function translate(error: unknown, op: string): unknown {
  if (!(error instanceof Error)) return error;
  const { code } = error as Error & { code?: unknown };
  if (typeof code !== 'string' || !code.startsWith('ERR_')) return error;
  if (code === 'ERR_TYPE') return new LowrankTypeError(op, error.message);
  return new LowrankError(code as ErrorCode, error.message, { op });
}

/** Runs one raw call for `op`. Whatever it throws becomes a {@link LowrankError}. */
export function native<T>(op: string, call: (raw: Binding) => T): T {
  const raw = binding();
  try {
    return call(raw);
  } catch (error) {
    throw translate(error, op);
  }
}

let optional: Binding | null | undefined;

/** The addon where it is there, for what JavaScript can do as well. */
export function optionalNative(): Binding | undefined {
  if (optional === undefined) {
    try {
      optional = binding();
    } catch {
      optional = null;
    }
  }
  return optional ?? undefined;
}

/** Like {@link native}, for a raw call that reports through a callback. */
export function nativeAsync<T = void>(
  op: string,
  call: (raw: Binding, done: Callback<T>) => void,
): Promise<T> {
  return new Promise((resolve, reject) => {
    native(op, (raw) =>
      call(raw, (code, message, result) => {
        if (code === null) resolve(result);
        else reject(new LowrankError(code as ErrorCode, message, { op }));
      }),
    );
  });
}
