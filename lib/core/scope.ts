import { AsyncLocalStorage } from 'node:async_hooks';
import { wrongType } from './errors.js';

/** An object that a scope can free. */
export interface Freeable {
  dispose(): void;
}

/** An array rather than a set: adding to a set of objects costs as much as the rest of a small call. */
type Frame = Freeable[];

const frames = new AsyncLocalStorage<Frame>();

/** Registers something new with the innermost scope. */
export function track(value: Freeable): void {
  frames.getStore()?.push(value);
}

/** Collects every tracked value inside `value`: itself, or in arrays and plain objects. */
function collect(value: unknown, found: Set<unknown>, depth = 0): void {
  if (value === null || typeof value !== 'object' || found.has(value) || depth > 8) return;
  // The entries of a large array would take longer to list than the work that made them.
  if (ArrayBuffer.isView(value)) return;
  found.add(value);
  if (Array.isArray(value)) {
    for (const item of value) collect(item, found, depth + 1);
    return;
  }
  if (value instanceof Map || value instanceof Set) {
    for (const item of value.values()) collect(item, found, depth + 1);
    return;
  }
  for (const item of Object.values(value)) collect(item, found, depth + 1);
}

/** @internal Runs `body` as if no scope were open: what it makes belongs to an object that outlives the scope. */
export function outsideScopes<T>(body: () => T): T {
  return frames.run(undefined as unknown as Frame, body);
}

/** @internal Frees every tensor, weight, adapter and saved state inside `value`, as {@link scope} finds them. */
export function freeAll(value: unknown): void {
  const found = new Set<unknown>();
  collect(value, found);
  for (const each of found) {
    if (each !== null && typeof (each as Partial<Freeable>).dispose === 'function') {
      (each as Freeable).dispose();
    }
  }
}

function close(frame: Frame, outer: Frame | undefined, result: unknown): void {
  const kept = new Set<unknown>();
  collect(result, kept);
  for (const value of frame) {
    if (kept.has(value)) outer?.push(value);
    else value.dispose();
  }
}

/**
 * Runs `body` and frees every tensor, weight, adapter and saved state that it makes and does not
 * return (directly, or inside arrays, maps and objects). What it returns belongs to the enclosing
 * scope. The body may be async. If it fails, everything is freed.
 * @throws ERR_TYPE
 * @example
 * const y = scope(() => loraForward(x, w, adapter).y);
 */
export function scope<T>(body: () => T): T {
  if (typeof body !== 'function') throw wrongType('scope', 'body', 'a function', body);
  const outer = frames.getStore();
  const frame: Frame = [];
  let result: T;
  try {
    result = frames.run(frame, body);
  } catch (error) {
    close(frame, undefined, undefined);
    throw error;
  }
  if (result instanceof Promise) {
    return result.then(
      (value: unknown) => {
        close(frame, outer, value);
        return value;
      },
      (error: unknown) => {
        close(frame, undefined, undefined);
        throw error;
      },
    ) as T;
  }
  close(frame, outer, result);
  return result;
}
