import type { ErrorCode } from '../../core/errors.js';

/** Exit codes of the command, by class of failure. */
export const exitCodes = {
  ok: 0,
  internal: 1,
  usage: 2,
  input: 3,
  unsupported: 4,
  checkpoint: 5,
  diskFull: 6,
  compute: 7,
  noBinding: 8,
  collective: 9,
  interrupted: 130,
  terminated: 143,
} as const;

/** The section about them in `--help`. */
export const exitCodeHelp = `Exit codes:
    0  done
    1  a bug in lowrank: please report it
    2  a wrong option or value
    3  a file or folder that is missing, malformed, unreadable or refused
    4  a model, format or device that is not supported here
    5  a checkpoint of another run
    6  no space left, or a file size limit
    7  out of memory, or numbers that are not finite; emulate: something was found
    8  the native addon is missing, or could not be built
    9  finetune: another process of the run was lost, or is not of this run
  130  interrupted (Ctrl-C); 143 terminated
`;

const kByErrorCode: Readonly<Record<ErrorCode, number>> = {
  ERR_TYPE: exitCodes.usage,
  ERR_VALUE: exitCodes.usage,
  ERR_SHAPE: exitCodes.input,
  ERR_DTYPE: exitCodes.input,
  ERR_FILE: exitCodes.input,
  ERR_FILE_NOT_FOUND: exitCodes.input,
  ERR_FILE_CHANGED: exitCodes.input,
  ERR_PATH: exitCodes.input,
  ERR_PICKLE_REFUSED: exitCodes.input,
  ERR_DEVICE: exitCodes.unsupported,
  ERR_FORMAT: exitCodes.unsupported,
  ERR_UNSUPPORTED: exitCodes.unsupported,
  ERR_CHECKPOINT: exitCodes.checkpoint,
  ERR_DISK_FULL: exitCodes.diskFull,
  ERR_OOM: exitCodes.compute,
  ERR_MEMORY_BUDGET: exitCodes.compute,
  ERR_COMPUTE: exitCodes.compute,
  ERR_NON_FINITE: exitCodes.compute,
  ERR_NO_BINDING: exitCodes.noBinding,
  ERR_COLLECTIVE: exitCodes.collective,
  ERR_CANCELLED: exitCodes.interrupted,
  ERR_DISPOSED: exitCodes.internal,
  ERR_ALIAS: exitCodes.internal,
};

/** The exit code for an error of the library. Anything else is a bug. */
export function exitCodeFor(code: string): number {
  return Object.hasOwn(kByErrorCode, code) ? kByErrorCode[code as ErrorCode] : exitCodes.internal;
}
