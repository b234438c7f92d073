export interface EmulatedDevice {
  readonly name: string;
  readonly sm: string;
  readonly multiprocessors: string;
}
export const DEVICES: readonly EmulatedDevice[];
export const LATER_DEVICES: readonly EmulatedDevice[];

export class CaseRunner {
  constructor(folder: string, binding: string);
  prepare(): Promise<void>;
  run(options: {
    library: string;
    device: EmulatedDevice | undefined;
    schedule: { order: string; copies: string; seed?: number };
    check: boolean;
    filter: string;
    more?: readonly string[];
    env?: Readonly<Record<string, string>>;
  }): Promise<{ status: number | string; lines: string[][]; err: string }>;
}
