import { checkMap, checkObject } from '../../checkpoint/arguments.js';
import { fail, LowrankTypeError, refusal, wrongType } from '../../core/errors.js';
import { LoraAdapter } from '../../ops/lora/lora-adapter.js';
import type { Adapter } from './adapter.js';

/**
 * Checks a caller's adapters of methods, by module.
 * @param expected what `adapters` must be, in words
 * @throws ERR_TYPE, ERR_DISPOSED
 */
export function checkAdapters(
  op: string,
  adapters: unknown,
  expected = 'a Map of adapters by module',
): ReadonlyMap<string, Adapter> {
  checkMap(op, 'adapters', adapters, expected);
  for (const [module, adapter] of adapters) {
    if (typeof module !== 'string') throw wrongType(op, 'a module', 'a string', module);
    checkMethodAdapter(op, `adapter of ${module}`, adapter);
  }
  return adapters as ReadonlyMap<string, Adapter>;
}

/**
 * Checks for an adapter of a method; for a LoraAdapter the message says how to convert it. @throws
 * ERR_TYPE, ERR_DISPOSED
 */
export function checkMethodAdapter(op: string, operand: string, adapter: unknown): void {
  const made = 'an adapter of a method, like those of adapters.lora.create';
  if (adapter instanceof LoraAdapter) {
    const how = `${made} (adapters.lora.from makes one from loraA and loraB; writePeftAdapter writes bare factors)`;
    throw new LowrankTypeError(op, refusal(op, operand, how, 'a LoraAdapter'));
  }
  checkObject(op, operand, adapter, made);
  const { definition, parameters, buffers } = adapter as Partial<Adapter>;
  if (typeof definition !== 'object' || typeof parameters !== 'object') {
    throw wrongType(op, operand, made, adapter);
  }
  const gone = Object.entries({ ...parameters, ...buffers }).find(([, each]) => each?.disposed);
  if (gone !== undefined) {
    fail('ERR_DISPOSED', op, operand, 'a live adapter', `one whose ${gone[0]} is disposed`);
  }
}
