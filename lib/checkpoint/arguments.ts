/** Checks the JavaScript types of a caller's arguments, and nothing else. */
import { wrongType } from '../core/errors.js';

/** Checks for a path as text. @throws ERR_TYPE */
export function checkPath(op: string, operand: string, value: unknown): asserts value is string {
  if (typeof value !== 'string') throw wrongType(op, operand, 'a path', value);
}

/** Checks for an object that is not an array. @throws ERR_TYPE */
export function checkObject(
  op: string,
  operand: string,
  value: unknown,
  expected = 'an object',
): asserts value is object {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw wrongType(op, operand, expected, value);
  }
}

/** @throws ERR_TYPE */
export function checkMap(
  op: string,
  operand: string,
  value: unknown,
  expected = 'a Map',
): asserts value is ReadonlyMap<unknown, unknown> {
  if (!(value instanceof Map)) throw wrongType(op, operand, expected, value);
}

/** @throws ERR_TYPE */
export function checkName(op: string, operand: string, value: unknown): asserts value is string {
  if (typeof value !== 'string') throw wrongType(op, operand, 'a string', value);
}
