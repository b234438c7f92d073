/**
 * How a rank proves that it knows the token, before anything else is read from it:
 *
 *   listener   challenge  32 random bytes a
 *   joiner     hello      rank, size, port (2 bytes each), 32 random bytes b, HMAC(token, 'hello', a, the rest)
 *   listener   welcome    rank (2 bytes), HMAC(token, 'welcome', b, a, rank)
 */

import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto';
import { CollectiveError } from './collective.js';
import type { FrameHeader, FrameKind } from './frames.js';
import type { Link } from './link.js';

const kNonce = 32;
const kMac = 32;
const kFields = 6;

/** Who joins. */
export interface Place {
  readonly rank: number;
  readonly size: number;
  /** Where the joiner listens for higher ranks; 0 if it does not. */
  readonly port: number;
}

/** Accepts one kind of frame, of a length from `least` to `most`. */
export function only(kind: FrameKind, least: number, most = least) {
  return (header: FrameHeader): Uint8Array => {
    if (header.kind !== kind || header.length < least || header.length > most) {
      throw new CollectiveError(
        'refused',
        undefined,
        `collective: a frame must be ${kind} of ${least} to ${most} bytes, got ${header.kind} of ${header.length}`,
      );
    }
    return new Uint8Array(header.length);
  };
}

const mac = (token: string, ...parts: (string | Uint8Array)[]): Uint8Array => {
  const hmac = createHmac('sha256', token);
  for (const part of parts) hmac.update(part);
  return hmac.digest();
};

const two = (...values: number[]) =>
  Uint8Array.from(values.flatMap((value) => [value & 0xff, value >> 8]));
const refused = (text: string, rank?: number) =>
  new CollectiveError('refused', rank, `collective: ${text}`);

/**
 * Lets a joiner in.
 * @throws ERR_COLLECTIVE; the link is then of no use
 */
export async function letIn(
  link: Link,
  token: string,
  own: { readonly rank: number; readonly size: number },
): Promise<Place> {
  const a = randomBytes(kNonce);
  link.send({ kind: 'challenge' }, a);
  const hello = await link.receive(only('hello', kFields + kNonce + kMac));
  const said = hello.subarray(0, kFields + kNonce);
  const proof = hello.subarray(kFields + kNonce);
  if (!timingSafeEqual(proof, mac(token, 'hello', a, said))) {
    throw refused(
      'the token must be that of the other ranks, got another. Set LOWRANK_WORLD_TOKEN',
    );
  }
  const field = (at: number) => (said[at] as number) | ((said[at + 1] as number) << 8);
  const place = { rank: field(0), size: field(2), port: field(4) };
  if (place.size !== own.size) {
    throw refused(
      `the number of ranks must be ${own.size} as on rank ${own.rank}, got ${place.size}`,
    );
  }
  if (place.rank <= own.rank || place.rank >= own.size) {
    throw refused(`a rank must be ${own.rank + 1} to ${own.size - 1}, got ${place.rank}`);
  }
  link.send(
    { kind: 'welcome' },
    Buffer.concat([two(own.rank), mac(token, 'welcome', said.subarray(kFields), a, two(own.rank))]),
  );
  return place;
}

/**
 * Joins a listener.
 * @param expected rank of the listener
 * @throws ERR_COLLECTIVE
 */
export async function join(
  link: Link,
  token: string,
  place: Place,
  expected: number,
): Promise<void> {
  const a = await link.receive(only('challenge', kNonce));
  const b = randomBytes(kNonce);
  const said = Buffer.concat([two(place.rank, place.size, place.port), b]);
  link.send({ kind: 'hello' }, Buffer.concat([said, mac(token, 'hello', a, said)]));
  const welcome = await link.receive(only('welcome', 2 + kMac));
  const rank = (welcome[0] as number) | ((welcome[1] as number) << 8);
  const proof = welcome.subarray(2);
  if (!timingSafeEqual(proof, mac(token, 'welcome', b, a, two(expected)))) {
    throw refused(
      `the listener must be rank ${expected} with this token, got rank ${rank} or another token`,
    );
  }
}
