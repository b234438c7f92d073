/** Checks of what a caller gives, by its JavaScript type alone. */
import { wrongType } from '../core/errors.js';

/** A path as text. @throws ERR_TYPE */
export function checkPath(op: string, operand: string, value: unknown): asserts value is string {
  if (typeof value !== 'string') throw wrongType(op, operand, 'a path', value);
}

/** An object that is no array. @throws ERR_TYPE */
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
