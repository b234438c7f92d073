/** What the addon's `explain` takes and gives: which kernels a call would run. */

/** A call by its sizes: x [M, K], w [N, K], an adapter of rank r where r is not 0. */
export interface CallShape {
  readonly M: number;
  readonly N: number;
  readonly K: number;
  readonly r: number;
  /** Of the activations, and of a dense weight. */
  readonly dtype: string;
  /** null: a dense weight. */
  readonly format: string | null;
  readonly blocksize: number;
  readonly rowwise: boolean;
  readonly compute: string;
}

/** Rows of a product on the CPU, and the route that takes them (docs/cpu-design.md). */
export interface RouteOfRows {
  readonly op: string;
  readonly firstRow: number;
  readonly rows: number;
  /** Whose kernels: a set may leave a product to another one. */
  readonly isa: string;
  readonly route: string;
  readonly file: string;
  readonly takesWeight: string;
  readonly takesRows: string;
  readonly reason: string;
}

/** One launch of a plan (docs/gpu-design.md). */
export interface PlannedLaunch {
  readonly kernel: string;
  readonly grid: readonly [x: number, y: number, z: number];
  readonly threads: number;
  readonly cluster: number;
  readonly sharedBytes: number;
  /** Rows and columns of the result that a block makes at once, of a product. */
  readonly tile?: readonly [rows: number, cols: number];
}

export interface PlannedOp {
  readonly op: string;
  readonly workspaceBytes: number;
  readonly launches: readonly PlannedLaunch[];
}

export interface CpuExplanation {
  readonly isa: string;
  readonly threads: number;
  readonly routes: readonly RouteOfRows[];
}

export interface CudaExplanation {
  readonly sm: number;
  readonly card: string;
  readonly multiprocessors: number;
  readonly plans: readonly PlannedOp[];
}
