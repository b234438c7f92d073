/**
 * Reads and writes the values of TensorFlow.js tensors in place, if the backend allows it. Ops of a host device then
 * compute on that memory, and others copy each operand once into native memory and the result once back.
 *
 * | backend | read | write |
 * | --- | --- | --- |
 * | cpu | `dataSync()` is the tensor's own array | the tensor adopts the array |
 * | wasm | a view of the WebAssembly heap | the output's place in the heap |
 * | others | `dataSync()` copies | `tf.tensor` copies |
 *
 * The wasm path uses internals of a backend whose last release is 4.22 (2024). It is used only for
 * major version 4, and only after a probe has read back what it wrote; otherwise values are copied. A
 * view is valid until the next allocation: growth of the heap detaches it.
 *
 * The heap ends at 4 GiB. Beyond that the allocator returns address 0, which the backend treats as memory: the tensor
 * overlaps the start of the heap, and writing to it destroys the allocator. So every allocation is checked from the first
 * use on, including those of the stock kernels.
 */

import type { DataType, Tensor, TensorInfo } from '@tensorflow/tfjs';
import { fail } from '../../core/errors.js';
import { tensorflow } from './tensorflow.js';

/** The internals of the wasm backend that the path through the heap uses. */
interface WasmBackend {
  readonly wasm: { readonly HEAPU8: Uint8Array; _malloc?: (bytes: number) => number };
  readonly dataIdMap: { get(dataId: object): { readonly memoryOffset: number | null } };
  makeOutput(shape: number[], dtype: DataType): TensorInfo;
}

/** Backends that were probed, and whether their heap may be used. */
const probed = new WeakMap<object, boolean>();

/**
 * The f32 values of a tensor. They are valid until the next tensor is created; never write to them.
 *
 * @param tensor float32, on any backend
 * @throws LowrankError `ERR_OOM` for a tensor that the backend could not allocate
 */
export function valuesOf(tensor: TensorInfo): Float32Array {
  const wasm = wasmBackend();
  if (wasm !== undefined) {
    const view = heapView(wasm, tensor);
    if (view !== undefined) return view;
  }
  return tensorflow().engine().readSync(tensor.dataId) as Float32Array;
}

/**
 * Makes a new float32 tensor on the current backend; `fill` writes its values.
 *
 * @param fill gets uninitialised memory of the tensor's size and must write all of it; read inputs
 * inside it (with {@link valuesOf}), because allocating can move the heap
 * @returns tracked by the surrounding `tf.tidy`
 * @throws LowrankError `ERR_OOM`
 */
export function tensorFrom(shape: readonly number[], fill: (target: Float32Array) => void): Tensor {
  const engine = tensorflow().engine();
  return engine.makeTensorFromTensorInfo(tensorInfoFrom(shape, fill));
}

/**
 * Like {@link tensorFrom}, for several tensors that are written together.
 *
 * @param fill gets the memory of each, in the order of `shapes`
 */
export function tensorsFrom(
  shapes: readonly (readonly number[])[],
  fill: (targets: readonly Float32Array[]) => void,
): Tensor[] {
  const engine = tensorflow().engine();
  return tensorInfosFrom(shapes, fill).map((info) => engine.makeTensorFromTensorInfo(info));
}

/** Like {@link tensorFrom}, for kernels: nothing tracks the result. */
export function tensorInfoFrom(
  shape: readonly number[],
  fill: (target: Float32Array) => void,
): TensorInfo {
  const [info] = tensorInfosFrom([shape], ([target]) => fill(target as Float32Array));
  return info as TensorInfo;
}

function tensorInfosFrom(
  shapes: readonly (readonly number[])[],
  fill: (targets: readonly Float32Array[]) => void,
): TensorInfo[] {
  const wasm = wasmBackend();
  if (wasm !== undefined) {
    const infos: TensorInfo[] = [];
    let done = false;
    try {
      // All before the first view: the heap may grow, and then it lies elsewhere.
      for (const shape of shapes) infos.push(wasm.makeOutput([...shape], 'float32'));
      const views = infos.flatMap((info) => heapView(wasm, info) ?? []);
      if (views.length === infos.length) {
        fill(views);
        done = true;
        return infos;
      }
    } finally {
      if (!done) for (const { dataId } of infos) tensorflow().engine().backend.disposeData(dataId);
    }
  }
  const values = shapes.map(
    (shape) => new Float32Array(shape.reduce((product, dim) => product * dim, 1)),
  );
  fill(values);
  const backend = tensorflow().engine().backend;
  return shapes.map((shape, i) => ({
    dataId: backend.write(values[i] as Float32Array, [...shape], 'float32'),
    shape: [...shape],
    dtype: 'float32',
  }));
}

function wasmBackend(): WasmBackend | undefined {
  const tf = tensorflow();
  if (tf.getBackend() !== 'wasm') return undefined;
  const backend = tf.engine().backend as unknown as WasmBackend;
  let usable = probed.get(backend);
  if (usable === undefined) {
    usable = tf.version_core.startsWith('4.') && probe(backend);
    probed.set(backend, usable);
    if (usable) checkAllocations(backend);
  }
  return usable ? backend : undefined;
}

/** Addresses have 32 bits: the allocator would truncate a larger size. */
const kMostBytes = 2 ** 32 - 1;

/** Makes the backend's allocator throw if it returns 0. */
function checkAllocations({ wasm }: WasmBackend): void {
  const { _malloc: malloc } = wasm;
  if (typeof malloc !== 'function') return;
  wasm._malloc = (bytes) => {
    const address = bytes <= kMostBytes ? malloc.call(wasm, bytes) : 0;
    if (address === 0 && bytes > 0) heapIsFull(wasm.HEAPU8, bytes);
    return address;
  };
}

function heapIsFull(heap: Uint8Array, bytes: number): never {
  const expected = `with ${bytes} bytes to spare for a tensor`;
  return fail('ERR_OOM', 'tfjs', "the wasm backend's heap", expected, `one of ${heap.byteLength}`);
}

/** Writes through the heap and reads through the public API. */
function probe(backend: WasmBackend): boolean {
  const { engine, tensor1d } = tensorflow();
  const pattern = [1.5, -2.25, 3e-30];
  const source = tensor1d(pattern);
  try {
    const view = heapView(backend, source);
    if (view === undefined || view.length !== 3) return false;
    if (!pattern.every((value, i) => view[i] === Math.fround(value))) return false;
    view[1] = 7;
    return (engine().readSync(source.dataId) as Float32Array)[1] === 7;
  } catch {
    return false;
  } finally {
    source.dispose();
  }
}

function heapView(backend: WasmBackend, tensor: TensorInfo): Float32Array | undefined {
  const heap = backend.wasm?.HEAPU8;
  const offset_bytes = backend.dataIdMap?.get(tensor.dataId)?.memoryOffset;
  if (!(heap instanceof Uint8Array) || typeof offset_bytes !== 'number') return undefined;
  const size = tensor.shape.reduce((product, dim) => product * dim, 1);
  const end_bytes = offset_bytes + 4 * size;
  if (size > 0 && (offset_bytes === 0 || end_bytes > heap.byteLength)) heapIsFull(heap, 4 * size);
  if (offset_bytes % 4 !== 0) return undefined;
  return new Float32Array(heap.buffer, offset_bytes, size);
}
