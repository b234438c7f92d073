/** `--device`: a name that no machine has is a wrong value; one that this machine lacks is not supported here. */

import { type Device, type DeviceInfo, devices } from '../index.js';
import type { Arguments } from './arguments.js';

/**
 * The device of `--device`, where it is given.
 * @throws UsageError · LowrankError `ERR_DEVICE`
 */
export function readDevice(parsed: Arguments): Device | undefined {
  const name = parsed.text('device');
  return name === undefined ? undefined : find(parsed, name, devices(), 'one of');
}

/** The devices of a `--device` that takes a list. @throws as {@link readDevice} */
export function readDevices(parsed: Arguments): Device[] | undefined {
  const known = devices();
  const names = parsed.text('device')?.split(',');
  return names?.map((name) => find(parsed, name.trim(), known, 'a list of'));
}

function find(
  parsed: Arguments,
  name: string,
  known: readonly DeviceInfo[],
  kind: 'one of' | 'a list of',
): Device {
  const row = known.find(({ device }) => device === name);
  if (row?.available === true) return row.device;
  // Of graphics cards those that are there are known, the first always.
  if (row === undefined && !/^cuda:\d+$/.test(name)) {
    const names = known.map(({ device }) => device).join(', ');
    throw parsed.refuse('device', `${kind} ${names}`, name);
  }
  const there = known.filter(({ available }) => available).map(({ device }) => device);
  const reason = row === undefined ? 'there is no such GPU' : (row.reason ?? 'absent');
  throw parsed.refuseDevice('device', `one that is here, ${there.join(' or ')}`, name, reason);
}
