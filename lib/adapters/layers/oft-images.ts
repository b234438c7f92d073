import type { Value } from '../../autograd/gradient-tape.js';
import { Tape } from '../../autograd/tape.js';
import { checkTensor } from '../../core/check-tensor.js';
import { fail, wrongType } from '../../core/errors.js';
import { scope } from '../../core/scope.js';
import type { Tensor } from '../../core/tensor.js';
import { checkSameDevice, readOptions } from '../../core/validate.js';
import { Im2col } from '../../ops/im2col.js';
import { Adapter } from '../definition/adapter.js';
import { AdapterSaved } from '../definition/adapter-saved.js';
import { type oft, turnedInput } from '../methods/orthogonal/oft.js';
import type { SkewMaps } from '../methods/orthogonal/rotation.js';

type OftSettings = (typeof oft)['definition']['defaults'];

/** The images and kernel of {@link OftImages}. */
export interface OftImagesSpec {
  /** C */
  channels: number;
  /** H */
  height: number;
  /** W */
  width: number;
  /** [KH, KW] of the convolution; its stride and padding do not matter. */
  kernel: readonly [number, number];
}

/** Gradients of {@link OftImages.forward}. */
export interface OftImagesGradients {
  /** [B, C, H, W] */
  dx: Tensor;
  /** The shape and dtype of the adapter's weight. */
  dWeight: Tensor;
}

/**
 * What PEFT's OFT of a convolution does to the layer's input until it is merged: at every position inside the image it
 * rotates the patch that the kernel would see, and sums the patches to an image again. With a kernel of 1 x 1 that equals
 * the merged layer (`oft` over patches). With a larger one it is another function: a new adapter gives the image times the
 * number of patches that contain each pixel. A folder that PEFT trained was trained this way.
 * @example
 * const images = new OftImages(adapter, { channels: 64, height: 32, width: 32, kernel: [3, 3] });
 * const { y, saved } = images.forward(x);
 * const output = patches.image(matmul(patches.rows(y), w)); // the convolution's own Im2col
 */
export class OftImages implements Disposable {
  readonly adapter: Adapter<OftSettings>;
  readonly #patches: Im2col;

  /**
   * @param adapter of method `oft` with inFeatures C · KH · KW; it belongs to the caller
   * @throws ERR_TYPE, ERR_SHAPE, ERR_VALUE, ERR_OOM; ERR_UNSUPPORTED for another method
   */
  constructor(adapter: Adapter | Adapter<OftSettings>, spec: OftImagesSpec) {
    const op = 'OftImages';
    if (!(adapter instanceof Adapter)) throw wrongType(op, 'adapter', 'an Adapter', adapter);
    const { method, inFeatures: K, device } = adapter;
    if (method !== 'oft') fail('ERR_UNSUPPORTED', op, 'adapter', 'of method oft', method);
    const { channels, height, width, kernel } = readOptions(op, spec, {
      channels: true,
      height: true,
      width: true,
      kernel: true,
    }) as OftImagesSpec;
    this.#patches = new Im2col({ channels, height, width, kernel, device });
    const { inFeatures } = this.#patches;
    if (inFeatures !== K) {
      this.#patches.dispose();
      const expected = `of inFeatures C · KH · KW = ${inFeatures}`;
      fail('ERR_SHAPE', op, 'adapter', expected, String(K));
    }
    this.adapter = adapter as unknown as Adapter<OftSettings>;
  }

  /**
   * @param x [B, C, H, W]
   * @param options.training will there be a backward pass? Default true
   * @returns y, with the shape and dtype of x, and the state for {@link OftImages.backward}
   * @throws ERR_TYPE, ERR_SHAPE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
   */
  forward(x: Tensor, options?: { training?: boolean }): { y: Tensor; saved: AdapterSaved } {
    const op = 'OftImages.forward';
    checkTensor(op, 'x', x);
    const { adapter } = this;
    checkSameDevice(op, 'the adapter', adapter, x);
    const training = readOptions(op, options, { training: true }).training ?? true;
    const patches = this.#patches;
    return scope(() => {
      const tape = new Tape({ recording: training });
      const held = x.reshape(x.shape);
      const leaves = new Map<string, Value>([
        ['dx', tape.variable(held)],
        ['dWeight', tape.variable(adapter.parameters.weight as Tensor)],
      ]);
      const [given, weight] = [...leaves.values()] as [Value, Value];
      const rows = tape.record(patches.rows(held), [given], [], (dy, pass) => {
        pass.give(given, patches.rowsBackward(dy));
      });
      const { inFeatures: K, config } = adapter;
      const state = adapter.state as SkewMaps;
      const turned = turnedInput(tape, rows, weight, { K, config, state });
      const value = tape.record(patches.rowsBackward(turned.tensor), [turned], [], (dy, pass) => {
        pass.give(turned, patches.rows(dy));
      });
      const saved = new AdapterSaved(tape, value, leaves, [held]);
      if (!training) saved.dispose();
      return { y: value.tensor, saved };
    });
  }

  /**
   * @param dy [B, C, H, W]
   * @param options.keep keep the saved state for another pass; default false: it is freed
   * @throws ERR_TYPE, ERR_SHAPE, ERR_DEVICE, ERR_VALUE, ERR_DISPOSED, ERR_OOM
   */
  backward(dy: Tensor, saved: AdapterSaved, options?: { keep?: boolean }): OftImagesGradients {
    const op = 'OftImages.backward';
    if (!AdapterSaved.is(saved)) {
      throw wrongType(op, 'saved', 'the saved state of OftImages.forward', saved);
    }
    const { keep } = readOptions(op, options, { keep: true });
    const wanted = [...saved.leaves.values()];
    const [dx, dWeight] = saved.tape.gradients(op, saved.y, dy, wanted) as [Tensor, Tensor];
    if (keep !== true) saved.dispose();
    return { dx, dWeight };
  }

  /** Frees the maps, but not the adapter. A second call does nothing. */
  dispose(): void {
    this.#patches.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
