/** `--device`: a name that no machine has is a wrong value; one that this machine lacks is not supported here. */

import { type Device, deviceInfo, devices, LowrankError } from '../../index.js';
import type { Arguments } from './arguments.js';

/**
 * The device of `--device`, where it is given.
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

/** Whether the device is here; of others nothing is asked. */
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
  // Of graphics cards those that are there are known, the first always.
  if (row === undefined && !/^cuda:\d+$/.test(name)) {
    const names = known.map(({ device }) => device).join(', ');
    throw parsed.refuse('device', `${kind} ${names}`, name);
  }
  const there = known.filter(({ available }) => available).map(({ device }) => device);
  const reason = row === undefined ? 'there is no such GPU' : (row.reason ?? 'absent');
  throw parsed.refuseDevice('device', `one that is here, ${there.join(' or ')}`, name, reason);
}
