/** `--device`: a name that does not exist is an invalid value; a device that this machine lacks is unsupported. */

import { type Device, deviceInfo, devices, LowrankError } from '../../index.js';
import type { Arguments } from './arguments.js';

/**
 * The device of `--device`, if given.
 * @throws UsageError · LowrankError `ERR_DEVICE`
 */
export function readDevice(parsed: Arguments): Device | undefined {
  const name = parsed.text('device');
  return name === undefined ? undefined : find(parsed, name, 'one of');
}

/** The devices of a `--device` that takes a list. @throws as {@link readDevice} */
export function readDevices(parsed: Arguments): Device[] | undefined {
  const names = parsed.text('device')?.split(',');
  return names?.map((name) => find(parsed, name.trim(), 'a list of'));
}

/** Is the device available? Does not query other devices. */
function isHere(name: string): name is Device {
  try {
    return deviceInfo(name as Device).available;
  } catch (error) {
    if (error instanceof LowrankError && error.code === 'ERR_DEVICE') return false;
    throw error;
  }
}

function find(parsed: Arguments, name: string, kind: 'one of' | 'a list of'): Device {
  if (isHere(name)) return name;
  const known = devices();
  const row = known.find(({ device }) => device === name);
  // The existing graphics cards are known, and the first always has a row.
  if (row === undefined && !/^cuda:\d+$/.test(name)) {
    const names = known.map(({ device }) => device).join(', ');
    throw parsed.refuse('device', `${kind} ${names}`, name);
  }
  const there = known.filter(({ available }) => available).map(({ device }) => device);
  const reason = row === undefined ? 'there is no such GPU' : (row.reason ?? 'absent');
  throw parsed.refuseDevice('device', `one that is here, ${there.join(' or ')}`, name, reason);
}
