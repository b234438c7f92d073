/** The peers that come with the harness, in the order of the table. */

import type { Peer } from '../peer.js';
import { bitsandbytesPeer } from './bitsandbytes.js';
import { onednnPeer, openblasPeer } from './compiled.js';
import { ggmlPeer } from './ggml.js';
import { basePeer, lowrankInt8Peer, lowrankPeer, unfusedPeer } from './lowrank.js';
import { onnxruntimeF32Peer, onnxruntimeInt8Peer } from './onnxruntime.js';
import { tfjsPeer } from './tfjs.js';
import { torchPeer } from './torch.js';

/** The others are compared with the first. */
export const kPeers: readonly Peer[] = [
  lowrankPeer,
  lowrankInt8Peer,
  unfusedPeer,
  basePeer,
  torchPeer,
  bitsandbytesPeer,
  openblasPeer,
  onednnPeer,
  ggmlPeer,
  onnxruntimeF32Peer,
  onnxruntimeInt8Peer,
  tfjsPeer,
];

export function findPeer(name: string): Peer | undefined {
  return kPeers.find((peer) => peer.name === name);
}
