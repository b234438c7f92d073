/** What the library says of a published method: how `lowrank finetune --method` runs it, or what else makes it usable. */

/** Where the survey treats a method; `later` is what was published after it. */
export type SurveyChapter =
  | 'background'
  | 'improving'
  | 'cross-task'
  | 'efficiency'
  | 'privacy'
  | 'applications'
  | 'later';

/** What `lowrank finetune --method` sets. An option of the command line wins. */
export interface SurveyRun {
  /** `--adapter`. */
  readonly adapter: string;
  /** `--init`. */
  readonly init?: string;
  /** `--optimizer`; default adamw. */
  readonly optimizer?: string;
  /** `--rule`. */
  readonly rules?: readonly string[];
  /** `--set`, with the prefix of the owner: `adapter.topK`, `optimizer.ratio`, `relora.every`. */
  readonly settings?: Readonly<Record<string, string | number | boolean>>;
  /** Other options without their dashes: `format`, `targets`. */
  readonly options?: Readonly<Record<string, string | true>>;
  /** What the user has to add, as an example: `--set stage=DIR`. */
  readonly example?: string;
  /** Options of which one has to be given. */
  readonly requires?: readonly string[];
}

/** A published method. It has `run` or `use`, or both, or says why it has neither. */
export interface SurveyRow {
  /** Its name for `--method`. */
  readonly method: string;
  readonly title: string;
  /** Of publication. */
  readonly year: string;
  /** Identifiers of its papers. */
  readonly arxiv?: readonly string[];
  /** What it is built from: P1 to P14 of docs/adapters.md. */
  readonly primitives: string;
  readonly run?: SurveyRun;
  /** A command or a function that makes it usable, in Markdown. */
  readonly use?: string;
  /** More about `run`, in Markdown. */
  readonly note?: string;
  /** Why the library does not have it: it changes something else than adapters. */
  readonly outside?: string;
  /** What is missing for it. */
  readonly waits?: string;
}

/** Methods of one section. */
export interface SurveyGroup {
  readonly chapter: SurveyChapter;
  readonly title: string;
  readonly rows: readonly SurveyRow[];
}
