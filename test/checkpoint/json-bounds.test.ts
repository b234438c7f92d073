/** JSON bombs: what a file would cost to parse is counted first, and refused in the time of a scan. */

import fs from 'node:fs';
import path from 'node:path';
import { describe, expect, it, vi } from 'vitest';
import { readAdapterFolder } from '../../lib/adapters/peft/folder.js';
import { parseQuantState } from '../../lib/checkpoint/bitsandbytes/quant-state.js';
import {
  type JsonBounds,
  jsonBounds,
  requireBounded,
} from '../../lib/checkpoint/files/json-bounds.js';
import { parseJsonObject } from '../../lib/checkpoint/files/json-file.js';
import { readPeftAdapter } from '../../lib/checkpoint/peft/peft.js';
import { openHfModel } from '../../lib/model/hf-model.js';
import { openTokenizer } from '../../lib/text/tokenizer.js';
import { noise, writeTinyCheckpoint } from '../finetune/tiny-checkpoint.js';
import { tempFolder } from './raw-file.js';

/** Of the processor, in ms: the machine may have other work. */
function cpuTime(call: () => void): number {
  const before = process.cpuUsage();
  call();
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1000;
}

const utf8 = (text: string) => new TextEncoder().encode(text);

/** What a file holds, by the parser. */
function countsOf(json: string): { depth: number; keys: number; values: number } {
  const counts = { depth: 0, keys: 0, values: 0 };
  const visit = (value: unknown, depth: number): void => {
    if (value === null || typeof value !== 'object') return;
    counts.depth = Math.max(counts.depth, depth);
    const members = Object.values(value);
    // As the scan counts them: one for the opening, one for each comma.
    counts.values += Math.max(1, members.length);
    if (!Array.isArray(value)) counts.keys += members.length;
    for (const member of members) visit(member, depth + 1);
  };
  visit(JSON.parse(json), 1);
  return counts;
}

/** What the scan refuses one less of. */
function scanned(json: string): { depth: number; keys: number; values: number } {
  const most = { maxBytes: 1e9, maxDepth: 1e9, maxKeys: 1e9, maxValues: 1e9 };
  const found = (bounds: Partial<JsonBounds>): number => {
    let text = '';
    const refuse = (what: string): never => {
      text = what;
      throw new Error(what);
    };
    expect(() => requireBounded(utf8(json), { ...most, ...bounds }, refuse)).toThrow();
    return Number(/got (\d+)/.exec(text)?.[1]);
  };
  return {
    depth: found({ maxDepth: 0 }),
    keys: found({ maxKeys: 0 }),
    values: found({ maxValues: 0 }),
  };
}

describe('the scan', () => {
  it('counts what the parser finds, whatever stands in strings', () => {
    const next = noise(1);
    const draw = (count: number) => Math.floor(((next() + 1) / 2) * count);
    const texts = ['', '[{,:', '"', '\\', '\\"', '}]\\\\', 'ü"日', 'a\nb', '😀'];
    const text = () => `${texts[draw(texts.length)]}${texts[draw(texts.length)]}`;
    const value = (depth: number): unknown => {
      const kind = depth > 5 ? draw(3) : draw(7);
      if (kind === 0) return text();
      if (kind === 1) return next();
      if (kind === 2) return draw(2) === 0 ? null : true;
      const members = Array.from({ length: draw(4) }, () => value(depth + 1));
      if (kind < 5) return members;
      return Object.fromEntries(members.map((member, i) => [`${text()}${i}`, member]));
    };
    for (let i = 0; i < 100; i++) {
      // At least one key and one nested value, so that a bound of 0 refuses each count.
      const json = JSON.stringify({ a: [value(0)] }, null, draw(3));
      expect(scanned(json), json).toEqual(countsOf(json));
    }
  });

  it('takes a string that does not end, and a million quotes and backslashes, in the time of a scan', () => {
    const never = () => {
      throw new Error('refused');
    };
    for (const text of ['"', '"\\', '"\\"', `"${'\\'.repeat(1e6)}`, `"${'\\"'.repeat(1e6)}`]) {
      const scan = () => requireBounded(utf8(text), jsonBounds.config, never);
      expect(cpuTime(scan)).toBeLessThan(500);
    }
  });
});

const deep = (levels: number) => `{"a":${'['.repeat(levels)}${']'.repeat(levels)}}`;
const keys = (count: number) =>
  `{"a":{${Array.from({ length: count }, (_, i) => `"k${i}":"s"`).join(',')}}}`;
const values = (count: number) => `{"a":[${'0,'.repeat(count - 1)}0]}`;

describe('files of each kind', () => {
  const model = (file: string, content: string) => {
    const folder = path.join(tempFolder(), 'model');
    writeTinyCheckpoint(folder, { shards: 2 });
    fs.writeFileSync(path.join(folder, file), content);
    return folder;
  };
  const adapter = (content: string) => {
    const folder = tempFolder();
    fs.writeFileSync(path.join(folder, 'adapter_config.json'), content);
    fs.writeFileSync(path.join(folder, 'adapter_model.safetensors'), '');
    return folder;
  };
  const index = 'model.safetensors.index.json';
  const cases: [string, () => () => unknown, RegExp][] = [
    [
      'an index of 8 MB, deep',
      () => {
        const folder = model(index, deep(4e6));
        return () => openHfModel(folder);
      },
      /index\.json" must nest at most 8 deep, got 4000001$/,
    ],
    [
      'an index of 60 MB',
      () => {
        const folder = model(index, '');
        fs.truncateSync(path.join(folder, index), 60e6);
        return () => openHfModel(folder);
      },
      /must be at most 33554432 bytes, got 60000000$/,
    ],
    [
      'an index of 6 MB of keys',
      () => {
        const folder = model(index, keys(4.5e5));
        return () => openHfModel(folder);
      },
      /must hold at most 400000 keys, got 450001$/,
    ],
    [
      'a config of 1.8 MB, deep',
      () => {
        const folder = model('config.json', deep(9e5));
        return () => openHfModel(folder);
      },
      /config\.json" must nest at most 32 deep, got 900001$/,
    ],
    [
      'a config of 2 MB of numbers',
      () => {
        const folder = model('config.json', values(1e6));
        return () => openHfModel(folder);
      },
      /must hold at most 500000 values, got 1000001$/,
    ],
    [
      'an adapter_config.json, deep',
      () => {
        const folder = adapter(deep(1e6));
        return () => readPeftAdapter(folder);
      },
      /adapter_config\.json" must nest at most 32 deep, got 1000001$/,
    ],
    [
      'an adapter_config.json of keys, for any method',
      () => {
        const folder = adapter(keys(2e5));
        return () => readAdapterFolder(folder);
      },
      /must hold at most 50000 keys, got 200001$/,
    ],
    [
      'a quant_state',
      () => () => parseQuantState('test', utf8(deep(3e4))),
      /quant_state must nest at most 8 deep, got 30001$/,
    ],
  ];

  it.each(cases)('%s', (_, make, message) => {
    const call = make();
    const parse = vi.spyOn(JSON, 'parse');
    try {
      expect(cpuTime(() => expect(call).toThrow(message))).toBeLessThan(1000);
      // Nothing of it: of the model's folder at most config.json.
      for (const [text] of parse.mock.calls) expect(text.length).toBeLessThan(10_000);
    } finally {
      parse.mockRestore();
    }
  });

  it('a tokenizer, deep and of too many tokens', async () => {
    for (const [content, message] of [
      [deep(1e6), /tokenizer\.json" must nest at most 32 deep, got 1000001$/],
      [keys(1.1e6), /must hold at most 1000000 keys, got 1100001$/],
    ] as const) {
      const opened = openHfModel(model('tokenizer.json', content));
      await expect(openTokenizer('test', opened)).rejects.toThrow(message);
    }
  });

  it('real sizes fit: an index of 150,000 tensors, a config of 10,000 modules with ranks', () => {
    const name = (i: number) =>
      `model.layers.${i % 61}.mlp.experts.${i}.down_proj.weight_scale_inv`;
    const map = Object.fromEntries(Array.from({ length: 150_000 }, (_, i) => [name(i), 'a-00001']));
    const fits = (value: object, bounds: JsonBounds) =>
      parseJsonObject('test', 'file', utf8(JSON.stringify(value, null, 2)), bounds);
    fits({ metadata: { total_size: 1 }, weight_map: map }, jsonBounds.index);
    const names = Array.from({ length: 10_000 }, (_, i) => name(i));
    const rank_pattern = Object.fromEntries(names.map((each) => [each, 8]));
    fits({ target_modules: names, rank_pattern, alpha_pattern: rank_pattern }, jsonBounds.config);
    const vocab = Object.fromEntries(Array.from({ length: 262_144 }, (_, i) => [`token${i}`, i]));
    const merges = Array.from({ length: 515_000 }, (_, i) => [`to${i}`, `ken${i}`]);
    fits({ model: { vocab, merges } }, jsonBounds.tokenizer);
  });
});
