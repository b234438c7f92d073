export interface Row {
  /** Of the kernel's source. */
  readonly file: string;
  readonly kind: string;
  /** The text that is taken out. */
  readonly what: string;
  readonly outcome: string;
}
export function rowsOf(list: string): Row[];
export function summaryOf(list: string): string;
export function withSummary(page: string, list: string): string;
