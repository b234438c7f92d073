import { Adapter } from '../adapters/definition/adapter.js';
import { checkAdapters } from '../adapters/definition/adapter-map.js';
import type { PeftFolder } from '../adapters/peft/peft-tensors.js';
import { fail, wrongType } from '../core/errors.js';
import { scope } from '../core/scope.js';
import { ownFields } from '../core/validate.js';
import { type AdapterMap, adaptersOf, updatesOf } from './adapter-updates.js';
import { type AnyMerge, isMerge } from './definition/definition.js';
import { adaptersOfFolder, fieldsOf, folderOfAdapters } from './folders.js';
import { mergeNamed } from './merge-methods.js';
import { mergeUpdates, seededRandom, settingsOf, weightsOf } from './merge-updates.js';

const kOp = 'combineAdapters';

/** Options of {@link combineAdapters}: the rule, and its settings. */
export interface CombineAdaptersOptions {
  /** A rule's name, `ties`, or what {@link defineMerge} returned. */
  readonly by: string | AnyMerge;
  /** Settings of the rule; default its own. */
  readonly [setting: string]: unknown;
}

/** Told how many layers of a merge are done. */
export type OnLayer = (done: number, total: number) => void;

/** The rule and its settings for so many adapters. @throws ERR_TYPE · ERR_VALUE */
function planOf(count: number, weights: unknown, options: CombineAdaptersOptions) {
  const { by, ...given } = ownFields<CombineAdaptersOptions>(kOp, options);
  if (typeof by !== 'string' && !isMerge(by)) {
    throw wrongType(kOp, 'by', 'the name of a rule, or what defineMerge returns', by);
  }
  const chosen = typeof by === 'string' ? mergeNamed(kOp, 'by', by) : by;
  const checked = settingsOf(chosen, given);
  const instead = count === 1 ? chosen.alone : undefined;
  const merge = instead ?? chosen;
  const settings = instead === undefined ? checked : settingsOf(instead, {});
  return { merge, settings, weights: weightsOf(merge, count, weights) };
}

async function combineMaps(
  adapters: readonly AdapterMap[],
  plan: ReturnType<typeof planOf>,
  onLayer?: OnLayer,
): Promise<Map<string, Adapter>> {
  const like = new Map([...adapters].reverse().flatMap((own) => [...own]));
  const [first] = like.values();
  if (first === undefined) fail('ERR_VALUE', kOp, 'adapters', 'with layers', 'none');
  const updates = await mergeUpdates(
    {
      ...plan,
      adapters: await updatesOf(adapters),
      device: first.device,
      randomOf: seededRandom(plan.settings.seed),
    },
    onLayer,
  );
  return adaptersOf(updates, like);
}

/** The module's name of an adapter that stands alone. */
const kAlone = 'the layer';

/**
 * Merges LoRA adapters of one base model to one: `await combineAdapters([a, b], [0.7, 0.3], { by: 'ties', density: 0.2 })`. The
 * rules, their formulas and settings are in docs/merging.md. Adapters are those of a layer, Maps of them by module, or folders;
 * the result is of the same kind. Ranks, `loraAlpha` and rsLoRA of each adapter count in its scaling; the result of most rules
 * has the scaling 1. A layer that only some adapters have is merged from these, except by averages.
 * @param weights one for each adapter; default 1 each. Averages divide them by their sum
 * @param options the rule and its settings
 * @throws ERR_TYPE · ERR_VALUE for other settings, weights of another length, or adapters of other bases, ranks or kinds
 * of layers than the rule takes · ERR_SHAPE for layers of other sizes · ERR_UNSUPPORTED for adapters of another method, and
 * folders with other tensors · ERR_NON_FINITE · ERR_FILE, ERR_OOM
 * @example
 * const [a, b] = ['./chat', './code'].map(readAdapterFolder);
 * const merged = await combineAdapters([a, b], [1, 0.5], { by: 'dare-ties', density: 0.5, seed: 1 });
 * await writeAdapterFolder('./both', merged);
 */
export function combineAdapters(
  adapters: readonly Adapter[],
  weights: readonly number[] | undefined,
  options: CombineAdaptersOptions,
): Promise<Adapter>;
export function combineAdapters(
  adapters: readonly ReadonlyMap<string, Adapter>[],
  weights: readonly number[] | undefined,
  options: CombineAdaptersOptions,
): Promise<Map<string, Adapter>>;
export function combineAdapters(
  adapters: readonly PeftFolder[],
  weights: readonly number[] | undefined,
  options: CombineAdaptersOptions,
): Promise<PeftFolder>;
export async function combineAdapters(
  adapters: readonly (Adapter | AdapterMap | PeftFolder)[],
  weights: readonly number[] | undefined,
  options: CombineAdaptersOptions,
): Promise<Adapter | Map<string, Adapter> | PeftFolder> {
  if (!Array.isArray(adapters)) throw wrongType(kOp, 'adapters', 'an array', adapters);
  if (adapters.length === 0) fail('ERR_VALUE', kOp, 'adapters', 'at least one', 'none');
  const plan = planOf(adapters.length, weights, options);
  if (adapters.every((adapter) => adapter instanceof Adapter)) {
    const made = await combineMaps(
      adapters.map((adapter) => new Map([[kAlone, adapter]])),
      plan,
    );
    return made.get(kAlone) as Adapter;
  }
  if (adapters.every((adapter) => adapter instanceof Map)) {
    return combineMaps(
      adapters.map((own) => checkAdapters(kOp, own)),
      plan,
    );
  }
  if (adapters.every(isFolder)) return combineFolders(adapters, plan);
  const expected = 'an array of adapters, of Maps of adapters by module, or of folders';
  const odd = adapters.find((adapter) => typeof adapter !== 'object' || adapter === null);
  if (odd !== undefined || adapters.includes(null)) throw wrongType(kOp, 'adapters', expected, odd);
  return fail('ERR_VALUE', kOp, 'adapters', expected, 'a mixture');
}

const isFolder = (value: unknown): value is PeftFolder =>
  typeof value === 'object' && value !== null && 'config' in value && 'tensors' in value;

function combineFolders(
  folders: readonly PeftFolder[],
  plan: ReturnType<typeof planOf>,
  onLayer?: OnLayer,
): Promise<PeftFolder> {
  return scope(async () => {
    const fields = fieldsOf(folders);
    const adapters = folders.map(adaptersOfFolder);
    return folderOfAdapters(await combineMaps(adapters, plan, onLayer), fields);
  });
}

/** {@link combineAdapters} of folders for a command, which is told of each layer. */
export async function combineFoldersWith(
  onLayer: OnLayer,
  folders: readonly PeftFolder[],
  weights: readonly number[] | undefined,
  options: CombineAdaptersOptions,
): Promise<PeftFolder> {
  return combineFolders(folders, planOf(folders.length, weights, options), onLayer);
}
