import { native } from '../../core/binding.js';
import { checkTensor } from '../../core/check-tensor.js';
import { type Device, resolveDevice } from '../../core/device.js';
import { fail, wrongType } from '../../core/errors.js';
import { Tensor } from '../../core/tensor.js';
import { checkInteger, checkSameDevice, readOptions, showShape } from '../../core/validate.js';
import { type BaseWeight, checkActivations, checkWeight, withLast } from '../base-weight.js';
import { type ComputePrecision, checkCompute } from '../compute.js';
import { checkTraining, resolveDropout } from '../dropout.js';
import { checkLoraAdapter, type LoraAdapter } from '../lora/lora-adapter.js';
import { checkAdapter } from '../lora/lora-linear.js';
import { biasOf } from '../matmul.js';
import { addZeroProduct, zeroTermOf } from '../zero-points.js';
import {
  type GroupedBackwardOptions,
  type GroupedGradients,
  groupedBackward,
  rawAdapters,
} from './grouped-backward.js';
import { assignRows, checkGates, type GroupedRow } from './grouped-rows.js';
import { type GroupedEntry, GroupedSaved } from './grouped-saved.js';

/** Options of {@link GroupedLora.forward}. */
export interface GroupedForwardOptions {
  /** [N] */
  bias?: Tensor;
  /** Is this a training step? Default true. `false` turns dropout off and saves nothing. */
  training?: boolean;
  /** Seed of this call's dropout masks; required if an adapter with rows has dropout and no mask is given. */
  seed?: number;
  /**
   * [..., K], 1 = kept: replaces the generator for every adapter. Kept elements are scaled by
   * `1 / (1 - dropout)` of the row's adapter. It must live until {@link GroupedLora.backward}.
   */
  dropoutMask?: Tensor;
  /**
   * Gates, one weight per adapter term: [M], or with k adapters per row [..., k]; f32, bf16 or f16. It
   * must live until the backward pass, which returns its gradient.
   */
  rowScale?: Tensor;
  /** Precision of the product with the base weight, as in `loraForward`; default `exact`. */
  compute?: ComputePrecision;
}

/**
 * Many low-rank adapters over one frozen weight, each row of a batch with its own adapter or none:
 * decoding with one adapter per sequence (Punica, Chen et al., 2023; S-LoRA, Sheng et al., 2023),
 * long prompts, and training of all adapters in one pass (mLoRA, Ye et al., 2023). One product with
 * the base weight serves the whole batch.
 *
 * A table of references: adding and removing adapters copies nothing. Each adapter has its own
 * rank, scaling, dropout, bias and frozen factors, and its tensors may be written between calls (by
 * an optimiser). The adapters belong to the caller: neither {@link GroupedLora.remove} nor
 * {@link GroupedLora.dispose} frees one, because the same adapter may be in several groups.
 * @example
 * const group = new GroupedLora({ inFeatures: K, outFeatures: N });
 * group.add('alice', alice);
 * group.add('bob', bob);
 * const { y, saved } = group.forward(x, w4, ['alice', null, 'bob', 'alice'], { seed: step });
 * const { dx, adapters } = group.backward(dy, saved);
 * const { dLoraA, dLoraB } = adapters.get('alice');
 */
export class GroupedLora implements Disposable {
  /** K */
  readonly inFeatures: number;
  /** N */
  readonly outFeatures: number;
  readonly device: Device;
  readonly #adapters = new Map<string, LoraAdapter>();
  #disposed = false;

  /**
   * @param options K and N of the base weight, and the device of the adapters, by default the
   * default device
   * @throws ERR_TYPE, ERR_VALUE, ERR_DEVICE
   */
  constructor(options: { inFeatures: number; outFeatures: number; device?: Device }) {
    const op = 'GroupedLora';
    if (options === null || typeof options !== 'object') {
      throw wrongType(op, 'options', 'an object', options);
    }
    const given = readOptions(op, options, { inFeatures: true, outFeatures: true, device: true });
    this.inFeatures = checkInteger(op, 'inFeatures', given.inFeatures, 1, 2 ** 31);
    this.outFeatures = checkInteger(op, 'outFeatures', given.outFeatures, 1, 2 ** 31);
    this.device = resolveDevice(op, given.device);
  }

  /** The adapters' names, in the order in which they were added. */
  get names(): readonly string[] {
    return Object.freeze([...this.#adapters.keys()]);
  }

  /** The adapter with that name, if there is one. */
  get(name: string): LoraAdapter | undefined {
    return this.#adapters.get(name);
  }

  /**
   * Adds an adapter, by reference.
   * @param adapter loraA [r, K], loraB [N, r] with any r
   * @throws ERR_TYPE, ERR_VALUE (the name is taken), ERR_SHAPE, ERR_DEVICE, ERR_DISPOSED
   */
  add(name: string, adapter: LoraAdapter): void {
    const op = 'GroupedLora.add';
    this.#checkName(op, name, false);
    this.#adapters.set(name, this.#checkAdapter(op, adapter));
  }

  /**
   * Replaces the adapter with that name, possibly by one of another rank. States that earlier
   * forward passes saved keep the old one.
   * @throws ERR_TYPE, ERR_VALUE (no such name), ERR_SHAPE, ERR_DEVICE, ERR_DISPOSED
   */
  update(name: string, adapter: LoraAdapter): void {
    const op = 'GroupedLora.update';
    this.#checkName(op, name, true);
    this.#adapters.set(name, this.#checkAdapter(op, adapter));
  }

  /**
   * Removes an adapter from the group. It still belongs to the caller.
   * @throws ERR_TYPE, ERR_VALUE (no such name), ERR_DISPOSED
   */
  remove(name: string): void {
    this.#checkName('GroupedLora.remove', name, true);
    this.#adapters.delete(name);
  }

  /**
   * With e the adapter of row m: `y[m] = x[m] · wᵀ + bias + rowScale[m] · scaling_e · ((gate_e ⊙ x[m]) ·
   * loraA_eᵀ · loraB_eᵀ + loraBias_e)`; rows of null have only the first two terms. If rows are lists of
   * k names, a row has the sum of the last term over its adapters, each with its own `rowScale[m, slot]`
   * (a sparse mixture of experts: Shazeer et al., 2017). The sum follows the order in which the adapters
   * were added to the group.
   *
   * A row has the same bits as `loraForward` with its adapter, whatever the order and the other rows. On
   * a CUDA device it has the same bits in every batch with as many rows of each adapter, in any order,
   * and with `LOWRANK_CUDA_BATCH_INVARIANT=1` in every batch of several adapters. Each call sends a
   * table of the adapters to the device, so such a batch cannot be captured into a graph. Dropout masks
   * depend on the seed and the element's index in x, so with dropout the position of a row matters.
   * @param x [..., K] f32, bf16 or f16
   * @param w [N, K] dense or quantised, frozen
   * @param rows a name or null for each row of x folded to [M, K], or for each entry of its first
   * dimension (a sequence of x [B, S, K]); or for each a list of k names without repetition
   * @returns `y` [..., N] in the dtype of `x`, and what {@link GroupedLora.backward} needs
   * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE, ERR_UNSUPPORTED, ERR_DISPOSED,
   *   ERR_OOM
   */
  forward(
    x: Tensor,
    w: BaseWeight,
    rows: readonly GroupedRow[],
    options?: GroupedForwardOptions,
  ): { y: Tensor; saved: GroupedSaved } {
    const op = 'GroupedLora.forward';
    this.#checkLive(op);
    checkTensor(op, 'x', x);
    checkSameDevice(op, 'x', x, this);
    const { weight, handle, N, K } = checkWeight(op, w);
    if (N !== this.outFeatures || K !== this.inFeatures) {
      const expected = showShape([this.outFeatures, this.inFeatures]);
      fail('ERR_SHAPE', op, 'w', `of shape ${expected}, the group's`, showShape([N, K]));
    }
    checkActivations(op, 'x', x, weight, 'K', K);
    const assigned = assignRows(op, rows, x, this.#adapters);
    const { names, adapterOf, slots } = assigned;
    const adapters = names.map((name) => {
      const adapter = this.#adapters.get(name) as LoraAdapter;
      return checkAdapter(op, adapter, N, K, x, `adapters['${name}'].`);
    });
    const given = readOptions(op, options, {
      bias: true,
      training: true,
      seed: true,
      dropoutMask: true,
      rowScale: true,
      compute: true,
    });
    const training = checkTraining(op, given.training);
    const bias = biasOf(op, given.bias, x, N);
    const compute = checkCompute(op, given.compute, x, weight);
    const dropping = adapters.findIndex(({ dropout }) => dropout > 0);
    const { seed, words, mask } = resolveDropout(
      op,
      adapters[dropping]?.dropout ?? 0,
      `adapter "${names[dropping]}"`,
      x.shape,
      x,
      given,
      training,
    );
    const { rowScale } = given;
    if (rowScale !== undefined) checkGates(op, rowScale, x, assigned);
    const entries: GroupedEntry[] = adapters.map((adapter, e) => ({
      name: names[e] as string,
      adapter,
      dropout: training ? adapter.dropout : 0,
    }));
    const xHandle = Tensor.handleOf(x, op, 'x');
    const raw = rawAdapters(op, entries);
    const scaleHandle = rowScale === undefined ? null : Tensor.handleOf(rowScale, op, 'rowScale');
    const maskHandle = mask === undefined ? null : Tensor.handleOf(mask, op, 'dropoutMask');
    const keepX = training && adapters.some(({ trainA }) => trainA);
    const keepH = training && (rowScale !== undefined || adapters.some(({ trainB }) => trainB));
    const [yHandle, hHandle, held] = native(op, (binding) => {
      const [yRaw, hRaw] = binding.groupedForward(
        xHandle,
        handle,
        bias,
        raw,
        adapterOf,
        slots,
        scaleHandle,
        words[0],
        words[1],
        maskHandle,
        compute,
      );
      return [yRaw, hRaw, keepX ? binding.share(xHandle) : null] as const;
    });
    const product = Tensor.adopt(yHandle, withLast(x, N), x.dtype, x.device);
    const zeros = zeroTermOf(weight);
    const y = zeros === undefined ? product : addZeroProduct(op, zeros, x, product);
    let elements = 0;
    for (const place of adapterOf) elements += adapters[place]?.r ?? 0;
    const h = Tensor.adopt(hHandle, [elements], 'f32', x.device);
    if (!keepH) h.dispose();
    const saved = new GroupedSaved({
      w,
      entries,
      adapterOf,
      slots,
      x: held === null ? undefined : Tensor.adopt(held, x.shape, x.dtype, x.device),
      h: keepH ? h : undefined,
      rowScale,
      yShape: y.shape,
      inFeatures: K,
      hasBias: bias !== null,
      seed,
      dropoutMask: mask,
    });
    return { y, saved };
  }

  /**
   * Gradients of {@link GroupedLora.forward} with a frozen base, for every adapter in one pass.
   * With
   * `u_e = dy · loraB_e` and `dh_e = rowScale ⊙ scaling_e · u_e` over the rows of adapter e:
   *
   * - `dx = dy · w + Σ_e gate_e ⊙ (dh_e · loraA_e)` [..., K], `dBias = Σ dy` [N] over all rows
   * - `dRowScale = scaling_e · (u_e · h_e + dy · loraBias_e)` of each row and slot, also for frozen
   *   adapters; 0 for a slot without an adapter
   * - `dLoraA_e = dh_eᵀ · (gate_e ⊙ x)` [r, K], `dLoraB_e = scaling_e · (rowScale ⊙ dy)ᵀ · h_e` [N, r],
   *   `dLoraBias_e = scaling_e · Σ rowScale · dy` [N] over the rows of e
   *
   * Sums run over the rows of one adapter in their order: on the CPU they have the bits that
   * `loraBackward` returns for those rows as a separate batch.
   * @param dy [..., N], the dtype of `x`
   * @param saved from the forward pass; freed afterwards unless `keep`
   * @returns only the needed gradients. An adapter without rows in the batch has no entry, a frozen
   * factor no gradient. Each gradient has the dtype of its tensor (`dBias` that of `dy`).
   * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE, ERR_ALIAS, ERR_UNSUPPORTED,
   *   ERR_DISPOSED, ERR_OOM
   */
  backward(dy: Tensor, saved: GroupedSaved, options?: GroupedBackwardOptions): GroupedGradients {
    const op = 'GroupedLora.backward';
    this.#checkLive(op);
    return groupedBackward(op, dy, saved, options);
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** Removes all adapters, which belong to the caller. A second call does nothing. */
  dispose(): void {
    this.#disposed = true;
    this.#adapters.clear();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #checkLive(op: string): void {
    if (this.#disposed) fail('ERR_DISPOSED', op, 'this', 'a live group', 'a disposed one');
  }

  #checkName(op: string, name: unknown, exists: boolean): void {
    this.#checkLive(op);
    if (typeof name !== 'string') throw wrongType(op, 'name', 'a string', name);
    if (this.#adapters.has(name) !== exists) {
      fail('ERR_VALUE', op, 'name', exists ? 'an adapter of the group' : 'new', `"${name}"`);
    }
  }

  #checkAdapter(op: string, adapter: LoraAdapter): LoraAdapter {
    const given = checkLoraAdapter(op, 'adapter', adapter);
    return checkAdapter(op, given, this.outFeatures, this.inFeatures, this);
  }
}
