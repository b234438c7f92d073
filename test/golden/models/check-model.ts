/** Holds what a runner computes to the rules of a recorded model, and to nothing less than all of them. */
import type { ModelBatch, ModelCase, ModelRule } from './cases.js';
import type { ModelRunner, RunningModel, Values } from './runner.js';

/** A float64 run differs from the recorded one by the order of sums alone. */
const kTight = { values: 1e-12, steps: 1e-10 };

/** The rules of a precision, each of which has to be applied. */
export class ModelRules {
  readonly #golden: ModelCase;
  readonly #open: Map<string, ModelRule>;
  readonly #tight: boolean;

  constructor(golden: ModelCase, precision: ModelRunner['precision']) {
    this.#golden = golden;
    this.#tight = precision === 'f64';
    const dtype = precision === 'bf16' ? 'bf16' : undefined;
    this.#open = new Map(
      golden.rules.filter((rule) => rule.dtype === dtype).map((rule) => [rule.tensor, rule]),
    );
  }

  /**
   * Applies the rule of a tensor.
   * @param others further runs, equal in mathematics and not in rounding: an rms rule then holds for the error of all runs
   * @throws Error that names the element
   */
  check(tensor: string, mine: Values, others: readonly Values[] = []): void {
    const rule = this.#open.get(tensor);
    if (rule === undefined) throw new Error(`${this.#golden.id}: no open rule for ${tensor}`);
    this.#open.delete(tensor);
    if (rule.rule === 'values') {
      this.#compare(tensor, mine, this.#golden.numbers(tensor), 0, rule);
      return;
    }
    const name = rule.reference ?? `f64.${tensor.replace(/^out\./, '')}`;
    const reference = this.#golden.numbers(name);
    if (!this.#tight) {
      if (rule.rule === 'rms') this.#rms(tensor, [mine, ...others], reference, rule);
      else this.#compare(tensor, mine, reference, rule.atol as number, rule);
      return;
    }
    const largest = reference.reduce((max, value) => Math.max(max, Math.abs(value)), 1);
    const bound = tensor === 'out.train_losses' ? kTight.steps : kTight.values;
    this.#compare(tensor, mine, reference, bound * largest, rule);
  }

  finish(): void {
    if (this.#open.size === 0) return;
    throw new Error(
      `${this.#golden.id}: rules never applied: ${[...this.#open.keys()].join(', ')}`,
    );
  }

  #compare(
    tensor: string,
    mine: Values,
    reference: Float64Array,
    atol: number,
    rule: ModelRule,
  ): void {
    this.#sameLength(tensor, mine, reference);
    reference.forEach((expected, i) => {
      const error = Math.abs((mine[i] as number) - expected);
      if (error <= atol) return;
      throw this.#failure(
        `${tensor}[${i}] is ${mine[i]}, expected ${expected}, error ${error} > ${atol}`,
        rule,
      );
    });
  }

  #rms(tensor: string, runs: readonly Values[], reference: Float64Array, rule: ModelRule): void {
    let sum = 0;
    for (const run of runs) {
      this.#sameLength(tensor, run, reference);
      sum = reference.reduce((total, value, i) => total + ((run[i] as number) - value) ** 2, sum);
    }
    const error = Math.sqrt(sum / (runs.length * reference.length));
    if (error <= (rule.atol as number)) return;
    throw this.#failure(`${tensor} has an rms error of ${error} > ${rule.atol}`, rule);
  }

  #sameLength(tensor: string, mine: Values, reference: Float64Array): void {
    if (mine.length === reference.length) return;
    const text = `${tensor} has ${mine.length} values, expected ${reference.length}`;
    throw new Error(`${this.#golden.id}: ${text}`);
  }

  #failure(text: string, rule: ModelRule): Error {
    return new Error(`${this.#golden.id}: ${text} (${this.#golden.why(rule)})`);
  }
}

/** A gradient whose rounding noise is checked over several runs. */
export interface NoisyGradient {
  readonly tensor: string;
  /** Of {@link RunningModel.scaledStream}, one a further run. */
  readonly embeddingScales: readonly number[];
}

/**
 * Runs a whole case.
 * @param draws scales of the stream: the gradients of the batch are those of the scale with the least error of the embedding's
 * @throws Error at the first rule that is broken, and for a rule that was never applied
 */
export async function checkModel(
  golden: ModelCase,
  model: RunningModel,
  precision: ModelRunner['precision'],
  noisy?: NoisyGradient,
  draws?: readonly number[],
): Promise<void> {
  const rules = new ModelRules(golden, precision);
  const { batch, packed } = golden;
  rules.check('out.base_logits', await model.logits(batch, false));
  await checkBatch(rules, model, batch, '');
  await checkBatch(rules, model, packed, 'packed.');

  const gradients = await bestGradients(golden, model, batch, draws);
  rules.check('grad.embedding', gradients.embedding);
  const others: ReadonlyMap<string, Values>[] = [];
  for (const scale of noisy?.embeddingScales ?? []) {
    others.push((await gradientsOf(model, batch, scale)).adapters);
  }
  for (const [name, values] of gradients.adapters) {
    const more = `grad.${name}` === noisy?.tensor ? others : [];
    rules.check(
      `grad.${name}`,
      values,
      more.map((run) => run.get(name) as Values),
    );
  }
  rules.check('grad.packed.embedding', (await model.gradients(packed)).embedding);

  const [B] = golden.tensor('in.generate.ids').shape as [number, number];
  const prompts = golden.integers('in.generate.ids');
  const { ids, logits } = await model.generate(prompts, B, golden.params.new_tokens);
  // A bf16 run has no rules for them: it may choose other tokens.
  if (precision !== 'bf16') {
    rules.check('out.generate.ids', ids);
    rules.check('out.generate.logits', logits);
  }

  rules.check('out.train_losses', await model.train(batch, golden.params.train));
  rules.finish();
}

/** @param scale of the residual stream, where it is not the model's own */
async function gradientsOf(model: RunningModel, batch: ModelBatch, scale?: number) {
  if (scale === undefined) return model.gradients(batch);
  if (model.scaledStream === undefined) throw new Error('this runner cannot scale the stream');
  return model.scaledStream(scale, () => model.gradients(batch));
}

/** Of all draws, those whose gradient of the embedding is nearest to the recorded one. */
async function bestGradients(
  golden: ModelCase,
  model: RunningModel,
  batch: ModelBatch,
  draws?: readonly number[],
) {
  if (draws === undefined) return model.gradients(batch);
  const reference = golden.numbers('f64.grad.embedding');
  const runs = [];
  for (const scale of draws) {
    const run = await gradientsOf(model, batch, scale);
    const error = reference.reduce((sum, v, i) => sum + ((run.embedding[i] as number) - v) ** 2, 0);
    runs.push({ run, error });
  }
  return runs.reduce((best, each) => (each.error < best.error ? each : best)).run;
}

async function checkBatch(
  rules: ModelRules,
  model: RunningModel,
  batch: ModelBatch,
  prefix: string,
): Promise<void> {
  rules.check(`out.${prefix}logits`, await model.logits(batch, true));
  const { loss, tokenLosses } = await model.losses(batch);
  rules.check(`out.${prefix}loss`, [loss]);
  rules.check(`out.${prefix}token_losses`, tokenLosses);
}
