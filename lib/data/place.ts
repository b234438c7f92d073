/** Where an example stands, and errors that say so. */

import { LowrankError } from '../core/errors.js';
import { printable } from '../core/printable.js';

/** A line of a file; of an example of several lines, the first. */
export interface Place {
  readonly file: string;
  readonly line: number;
}

/** `"notes.jsonl" line 3` */
export const placeText = ({ file, line }: Place): string => `${printable(file)} line ${line}`;

/**
 * Rejects an example.
 * @param what `messages[1].role`, or empty for the line as a whole
 * @throws LowrankError `ERR_FILE`
 */
export function refuseExample(
  op: string,
  place: Place,
  what: string,
  expected: string,
  got: string,
): never {
  const subject = what === '' ? placeText(place) : `${placeText(place)}: ${what}`;
  throw new LowrankError('ERR_FILE', `${op}: ${subject} must be ${expected}, got ${got}`, { op });
}
