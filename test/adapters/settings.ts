/** What each method is tested with: sizes that it allows, settings small enough to differentiate. */
import { type Adapter, type AdapterPlace, adapterMethods } from '../../lib/index.js';

export interface MethodSettings {
  readonly N: number;
  readonly K: number;
  readonly settings: Readonly<Record<string, unknown>>;
  readonly create: (place: AdapterPlace & Readonly<Record<string, unknown>>) => Adapter;
  /** Further inputs that a call needs: name to shape, for M rows. */
  readonly inputs?: Readonly<Record<string, (M: number) => readonly number[]>>;
  /** Of the differences; default 1/32. */
  readonly step?: number;
  /** Why a fresh adapter is not the base model, where it is not. */
  readonly startsElsewhere?: string;
}

type Row = Partial<Omit<MethodSettings, 'create'>>;

const alpha = { settings: { r: 4, loraAlpha: 6 } };

const ROWS: Readonly<Record<string, Row>> = {
  lora: alpha,
  kasa: alpha,
  adalora: alpha,
  vera: { settings: { r: 6, dInitial: 0.2 } },
  ia3: {},
  'ia3-input': {},
};

export function settingsOf(method: string): MethodSettings {
  const found = adapterMethods.find((candidate) => candidate.method === method);
  const row = ROWS[method];
  if (found === undefined || row === undefined) throw new Error(`no settings for ${method}`);
  return {
    N: 24,
    K: 32,
    settings: {},
    create: (place) => found.create(place as AdapterPlace) as unknown as Adapter,
    ...row,
  };
}
