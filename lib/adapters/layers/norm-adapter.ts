import type { Value } from '../../autograd/gradient-tape.js';
import { layerNorm, rmsNorm } from '../../autograd/norm.js';
import { Tape } from '../../autograd/tape.js';
import { type RawTensor, rawToFloat32 } from '../../checkpoint/raw-tensor.js';
import { checkTensor, checkVector, lastDim } from '../../core/check-tensor.js';
import { type Device, resolveDevice } from '../../core/device.js';
import { checkDType, type DType } from '../../core/dtype.js';
import { fail, shown, wrongType } from '../../core/errors.js';
import { printableValue } from '../../core/printable.js';
import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import {
  checkFinite,
  checkSameDevice,
  orDefault,
  readNames,
  readOptions,
  showShape,
} from '../../core/validate.js';
import { checkTraining } from '../../ops/dropout.js';
import { AdapterSaved } from '../definition/adapter-saved.js';
import { kPrefix } from '../definition/peft-form.js';
import { rawOf } from '../peft/peft.js';
import { missing, type PeftFolder, PeftTensors } from '../peft/peft-tensors.js';

/** Which norm: {@link layerNorm} or {@link rmsNorm}. */
export type NormKind = 'layer' | 'rms';

/** Parts of a {@link NormAdapter}. */
export interface NormAdapterParts {
  /** [K] */
  weight: Tensor;
  /** [K] */
  bias?: Tensor;
  /** Default `layer`. */
  kind?: NormKind;
  /** Default 1e-5 for `layer`, 1e-6 for `rms`. */
  eps?: number;
}

/** The gradients of a norm. */
export interface NormGradients {
  dx?: Tensor;
  dWeight?: Tensor;
  dBias?: Tensor;
}

/** Names of {@link NormGradients}. */
export type NormGradient = keyof NormGradients;

const GRADIENTS: readonly NormGradient[] = ['dx', 'dWeight', 'dBias'];
const kLayer = 'ln_tuning_layers';

/**
 * LN tuning (Zhao et al., Tuning LayerNorm in Attention, 2023, arXiv:2312.11420): the model is frozen except for the
 * weights and biases of its norms. This adapter trains copies of them. To merge, replace the norm's own with the copies.
 * @example
 * const norm = new NormAdapter({ weight, bias });
 * const { y, saved } = norm.forward(x);
 * const { dx, dWeight, dBias } = norm.backward(dy, saved);
 */
export class NormAdapter implements Disposable {
  /** [K] */
  readonly weight: Tensor;
  /** [K], if given. */
  readonly bias?: Tensor;
  readonly kind: NormKind;
  readonly eps: number;

  /** @throws ERR_TYPE, ERR_SHAPE, ERR_VALUE, ERR_DEVICE, ERR_DISPOSED */
  constructor(parts: NormAdapterParts) {
    const op = 'NormAdapter';
    if (parts === null || typeof parts !== 'object')
      throw wrongType(op, 'parts', 'an object', parts);
    const {
      weight,
      bias,
      kind = 'layer',
      eps,
    } = readOptions(op, parts, { weight: true, bias: true, kind: true, eps: true });
    this.weight = checkTensor(op, 'weight', weight);
    const K = lastDim(this.weight);
    checkVector(op, 'weight', this.weight, K);
    if (bias !== undefined) {
      this.bias = checkTensor(op, 'bias', bias);
      checkVector(op, 'bias', this.bias, K);
      checkSameDevice(op, 'bias', this.bias, this.weight);
    }
    if (kind !== 'layer' && kind !== 'rms') {
      fail('ERR_VALUE', op, 'kind', 'layer or rms', shown(kind));
    }
    this.kind = kind;
    this.eps = checkFinite(op, 'eps', orDefault(eps, kind === 'layer' ? 1e-5 : 1e-6));
    if (!(this.eps > 0)) fail('ERR_VALUE', op, 'eps', 'above 0', shown(eps));
  }

  /**
   * @param x [..., K]
   * @returns y, with the shape and dtype of x, and the state for {@link NormAdapter.backward}
   * @throws ERR_TYPE, ERR_SHAPE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
   */
  forward(x: Tensor, options?: { training?: boolean }): { y: Tensor; saved: AdapterSaved } {
    const op = 'NormAdapter.forward';
    const K = lastDim(this.weight);
    checkTensor(op, 'x', x);
    if (lastDim(x) !== K)
      fail('ERR_SHAPE', op, 'x', `of shape [..., K = ${K}]`, showShape(x.shape));
    checkSameDevice(op, 'the adapter', this.weight, x);
    const training = checkTraining(op, readOptions(op, options, { training: true }).training);
    return scope(() => {
      const tape = new Tape({ recording: training });
      // A separate handle to x, which the caller may dispose.
      const held = x.reshape(x.shape);
      const leaves = new Map<string, Value>([
        ['dx', tape.variable(held)],
        ['dWeight', tape.variable(this.weight)],
        ...(this.bias === undefined ? [] : [['dBias', tape.variable(this.bias)] as const]),
      ]);
      const given = leaves.get('dx') as Value;
      const step = this.kind === 'layer' ? layerNorm : rmsNorm;
      const value = step(tape, given, {
        weight: leaves.get('dWeight'),
        bias: leaves.get('dBias'),
        eps: this.eps,
      });
      const y = tape.holds(value.tensor) ? value.tensor.reshape(value.shape) : value.tensor;
      const saved = new AdapterSaved(tape, value, leaves, [held]);
      if (!training) saved.dispose();
      return { y, saved };
    });
  }

  /**
   * @param dy the shape of y
   * @param options.needs default all
   * @param options.keep keep the saved state for another pass; default false: it is freed
   * @throws ERR_TYPE, ERR_SHAPE, ERR_DEVICE, ERR_VALUE, ERR_DISPOSED, ERR_OOM
   */
  backward(
    dy: Tensor,
    saved: AdapterSaved,
    options?: { needs?: readonly NormGradient[]; keep?: boolean },
  ): NormGradients {
    const op = 'NormAdapter.backward';
    if (!AdapterSaved.is(saved)) {
      throw wrongType(op, 'saved', 'the saved state of NormAdapter.forward', saved);
    }
    const { needs, keep } = readOptions(op, options, { needs: true, keep: true });
    const { leaves, tape } = saved;
    const known = GRADIENTS.filter((name) => leaves.has(name));
    const names = readNames(op, 'needs', orDefault(needs, known), known);
    const wanted = names.map((name) => leaves.get(name) as Value);
    const found = tape.gradients(op, saved.y, dy, wanted);
    const gradients: NormGradients = {};
    names.forEach((name, i) => {
      const gradient = found[i];
      if (gradient !== undefined) gradients[name] = gradient;
    });
    if (keep !== true) saved.dispose();
    return gradients;
  }

  /**
   * The trained norm of one module of a PEFT folder of type LN_TUNING. Kind and eps are those of the model:
   * PEFT stores them in no file.
   * @throws ERR_UNSUPPORTED for another type · ERR_FILE if there is no such module · ERR_SHAPE
   * @example
   * const norm = NormAdapter.fromPeft(readAdapterFolder('./adapter'), 'model.norm', { kind: 'rms' });
   */
  static fromPeft(
    folder: PeftFolder,
    module: string,
    options?: Pick<NormAdapterParts, 'kind' | 'eps'> & { device?: Device; dtype?: DType },
  ): NormAdapter {
    const op = 'NormAdapter.fromPeft';
    const { device, dtype, ...rest } = readOptions(op, options, {
      kind: true,
      eps: true,
      device: true,
      dtype: true,
    });
    const stored = PeftTensors.of(op, folder);
    const type = folder.config.peft_type;
    if (type !== 'LN_TUNING') {
      fail('ERR_UNSUPPORTED', op, 'peft_type', 'LN_TUNING', printableValue(type));
    }
    const place = {
      device: resolveDevice(op, device),
      dtype: checkDType(op, 'dtype', dtype ?? 'f32'),
    };
    const part = (name: string): Tensor | undefined => {
      const raw = stored.own(module, `${kLayer}.${name}`);
      return raw === undefined ? undefined : Tensor.from(rawToFloat32(raw), raw.shape, place);
    };
    return scope(() => {
      const weight = part('weight');
      if (weight === undefined) missing(op, module, `${kLayer}.weight`);
      const bias = part('bias');
      return new NormAdapter({ weight, ...(bias === undefined ? {} : { bias }), ...rest });
    });
  }

  /**
   * Converts norms by module to PEFT's layout; {@link encodeSafetensors} makes the file.
   * @throws ERR_TYPE · ERR_VALUE if there are none · ERR_DISPOSED
   */
  static async toPeft(norms: ReadonlyMap<string, NormAdapter>): Promise<PeftFolder> {
    const op = 'NormAdapter.toPeft';
    if (!(norms instanceof Map)) throw wrongType(op, 'norms', 'a Map', norms);
    for (const [module, norm] of norms as ReadonlyMap<string, unknown>) {
      if (norm instanceof NormAdapter) continue;
      throw wrongType(op, `norm of ${String(module)}`, 'a NormAdapter', norm);
    }
    if (norms.size === 0) fail('ERR_VALUE', op, 'norms', 'at least one', 'none');
    const tensors = new Map<string, RawTensor>();
    for (const [module, { weight, bias }] of norms) {
      const key = `${kPrefix}${module}.${kLayer}`;
      tensors.set(`${key}.weight`, await rawOf(weight));
      if (bias !== undefined) tensors.set(`${key}.bias`, await rawOf(bias));
    }
    const config = { peft_type: 'LN_TUNING', target_modules: [...norms.keys()] };
    return { config, tensors };
  }

  get disposed(): boolean {
    return this.weight.disposed;
  }

  /** Frees the tensors. A second call does nothing. */
  dispose(): void {
    this.weight.dispose();
    this.bias?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
