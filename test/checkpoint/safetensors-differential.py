#!/usr/bin/env python3
"""Compares our safetensors reader with the Rust reference, by hand (needs python3-safetensors).

    LOWRANK_FUZZ_INPUTS=100000 LOWRANK_FUZZ_DUMP=dump.jsonl \\
      npx vitest run test/checkpoint/safetensors-fuzz.test.ts
    python3 test/checkpoint/safetensors-differential.py dump.jsonl

Every file of the fuzz test is given to both. A file that we accept must be accepted by the reference
with the same tensors. A file that only we refuse must fall into one of the known reasons below, each
of which is a rule that we hold and the reference does not.

Outcome of 100,000 files of seed 7 against safetensors 0.5.2: no disagreement; both accepted 11,575
with the same tensors, both refused 81,914, 6,344 used dtypes that 0.5.2 does not know, and 167 were
refused by us alone (87 for a name that stands twice, 80 for an empty tensor with huge dimensions).
"""

import base64
import collections
import json
import re
import struct
import sys

from safetensors import SafetensorError, deserialize

# Newer dtypes that an older reference does not know: not a disagreement.
NEW_DTYPES = {"C64", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2"}


def reference(data):
    try:
        return {name: (t["dtype"], t["shape"], bytes(t["data"])) for name, t in deserialize(data)}
    except (SafetensorError, OverflowError):
        return None


def reason(data):
    """Why we are stricter, judged from the file alone."""
    n = struct.unpack("<Q", data[:8])[0]
    text = data[8 : 8 + n].decode("utf-8")
    pairs = []

    def hook(items):
        pairs.append(items)
        return dict(items)

    header = json.loads(text, object_pairs_hook=hook)
    if text[:1] != "{":
        return "white space before the header"
    if any(len({k for k, _ in items}) != len(items) for items in pairs):
        return "a name twice"
    if header.get("__metadata__", {}) is None:
        return "null metadata"
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if set(entry) - {"dtype", "shape", "data_offsets"}:
            return "an unknown field"
        if any(d >= 2**53 for d in entry["shape"] + entry["data_offsets"]):
            return "an integer of 2^53 or more"
        product = 1
        for d in entry["shape"]:
            product *= max(d, 1)
        if product > 2**53 / 64:
            return "an empty tensor whose other dimensions are huge"
    if re.search(r"[0-9]\.0|[0-9][eE]", text):
        return "1.0 written for 1"
    return None


def main(path):
    both, neither, newer, stricter, wrong = 0, 0, 0, collections.Counter(), []
    for line in open(path):
        record = json.loads(line)
        data = base64.b64decode(record["file"])
        ours = record["tensors"]
        theirs = reference(data)
        if ours is not None:
            ours = {n: (d, s, base64.b64decode(b)) for n, d, s, b in ours}
            if any(d in NEW_DTYPES for d, _, _ in ours.values()):
                newer += 1
            elif ours == theirs:
                both += 1
            else:
                wrong.append(("we accept", record["file"]))
        elif theirs is None:
            neither += 1
        else:
            why = reason(data)
            if why is None:
                wrong.append(("only we refuse", record["file"]))
            else:
                stricter[why] += 1
    print(f"both accept {both}, both refuse {neither}, dtypes unknown to the reference {newer}")
    for why, count in stricter.most_common():
        print(f"stricter: {why}: {count}")
    for kind, file in wrong[:20]:
        print("DISAGREEMENT", kind, file)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
