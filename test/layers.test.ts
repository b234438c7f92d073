/**
 * The layer rules of docs/architecture.md, read off the `#include` and `import` lines: who may know
 * whom. A broken rule names the file and the line.
 */
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join, relative, resolve } from 'node:path';
import { describe, expect, it } from 'vitest';

const root = resolve(import.meta.dirname, '..');

/** Source files below a folder, relative to the repository. */
function filesBelow(folder: string, endings: RegExp): string[] {
  let entries: string[] = [];
  try {
    entries = readdirSync(join(root, folder), { recursive: true }) as string[];
  } catch {
    return [];
  }
  return entries
    .map((entry) => join(folder, entry))
    .filter((file) => endings.test(file) && !file.includes(`${'build'}/`));
}

interface Rule {
  layer: string;
  /** Which includes or imports are refused, given the including file. */
  refuses(target: string, file: string): boolean;
  endings: RegExp;
}

const CPP = /\.(cpp|h|cu|cuh)$/;
const isNodeApi = (target: string) => /^(napi|node_api|js_native_api)/.test(target);
const isCuda = (target: string) => /^(cuda|nvrtc|cublas)/.test(target);
/** A header of the toolkit, not of this repository. */
const isToolkit = (target: string) => /^(cuda|nvrtc|cublas|vector_types)[\w.]*$/.test(target);
const project = (target: string) => target.startsWith('native/') || target.startsWith('cuda/');

const RULES: Rule[] = [
  {
    layer: 'native/core',
    endings: CPP,
    refuses: (t) =>
      isNodeApi(t) || isCuda(t) || (project(t) && !/^native\/(core|host_device)\//.test(t)),
  },
  {
    layer: 'native/cpu',
    endings: CPP,
    refuses: (t) =>
      isNodeApi(t) || isCuda(t) || (project(t) && !/^native\/(core|cpu|host_device)\//.test(t)),
  },
  {
    layer: 'native/cuda',
    endings: CPP,
    refuses: (t) =>
      isNodeApi(t) || isToolkit(t) || (project(t) && !/^native\/(core|cuda|host_device)\//.test(t)),
  },
  {
    // Device code. The emulator also knows the driver's types and the plans.
    layer: 'cuda',
    endings: CPP,
    refuses: (t, file) =>
      isNodeApi(t) ||
      (isToolkit(t) && file !== 'cuda/gpu.cuh') ||
      (t.startsWith('native/') &&
        !t.startsWith('native/host_device/') &&
        !file.includes('/emulator/')) ||
      /^native\/(cpu|addon)\//.test(t),
  },
  {
    layer: 'native/host_device',
    endings: CPP,
    refuses: (t) =>
      isNodeApi(t) || isToolkit(t) || (project(t) && !t.startsWith('native/host_device/')),
  },
  {
    layer: 'native/addon',
    endings: CPP,
    refuses: (t) => isCuda(t) || (project(t) && !/^native\/(core|addon)\//.test(t)),
  },
  {
    layer: 'native/c_api',
    endings: CPP,
    refuses: (t) => isNodeApi(t) || isCuda(t) || (project(t) && !/^native\/(core|c_api)\//.test(t)),
  },
  {
    layer: 'lib',
    endings: /\.ts$/,
    // Nothing outside lib, and the addon's own loader is known to core and to what wraps handles.
    refuses: (t, file) =>
      t.startsWith('.') &&
      relative(join(root, 'lib'), resolve(root, file, '..', t)).startsWith('..'),
  },
];

/** Files that may make raw calls: the wrappers of native handles and the device list. */
const RAW_CALLERS = /^lib\/(core|ops|quant)\//;

const INCLUDE = /^\s*#\s*include\s+[<"]([^>"]+)[>"]/;
const IMPORT =
  /^\s*(?:import|export)\b.*?from\s+'([^']+)'|^\s*}\s*from\s+'([^']+)'|import\('([^']+)'\)/;

function targetsOf(file: string): Array<{ line: number; target: string }> {
  const pattern = file.endsWith('.ts') ? IMPORT : INCLUDE;
  return readFileSync(join(root, file), 'utf8')
    .split('\n')
    .flatMap((text, i) => {
      const match = pattern.exec(text);
      const target = match?.slice(1).find((group) => group !== undefined);
      return target === undefined ? [] : [{ line: i + 1, target }];
    });
}

function violations(rule: Rule, files: string[]): string[] {
  return files.flatMap((file) =>
    targetsOf(file)
      .filter(({ target }) => rule.refuses(target, file))
      .map(({ line, target }) => `${file}:${line} must not reach ${target}`),
  );
}

describe('layers', () => {
  it.each(RULES)('$layer keeps to its own', (rule) => {
    const files = filesBelow(rule.layer, rule.endings);
    expect(files.length).toBeGreaterThan(3);
    expect(violations(rule, files)).toEqual([]);
  });

  it('the rules refuse what they are for', () => {
    const rule = (layer: string) => RULES.find((row) => row.layer === layer) as Rule;
    const [core, cpu, addon, lib] = ['native/core', 'native/cpu', 'native/addon', 'lib'].map(
      rule,
    ) as [Rule, Rule, Rule, Rule];
    expect(core.refuses('napi.h', '')).toBe(true);
    expect(core.refuses('native/cpu/queue.h', '')).toBe(true);
    expect(cpu.refuses('native/addon/handles.h', '')).toBe(true);
    const host = rule('native/cuda');
    expect(host.refuses('native/cpu/queue.h', '')).toBe(true);
    expect(host.refuses('cuda.h', '')).toBe(true);
    expect(host.refuses('cuda/gpu.cuh', '')).toBe(true);
    expect(host.refuses('native/host_device/params/quantize.h', '')).toBe(false);
    expect(core.refuses('native/host_device/philox.h', '')).toBe(false);
    const device = rule('cuda');
    expect(device.refuses('cuda_fp16.h', 'cuda/common/decode.cuh')).toBe(true);
    expect(device.refuses('cuda_fp16.h', 'cuda/gpu.cuh')).toBe(false);
    expect(device.refuses('native/cuda/plans/plan.h', 'cuda/common/decode.cuh')).toBe(true);
    expect(device.refuses('native/host_device/philox.h', 'cuda/common/decode.cuh')).toBe(false);
    expect(device.refuses('native/cuda/driver/driver.h', 'cuda/emulator/driver/memory.cpp')).toBe(
      false,
    );
    expect(device.refuses('native/core/ops/ops.h', 'cuda/common/decode.cuh')).toBe(true);
    const both = rule('native/host_device');
    expect(both.refuses('cuda/gpu.cuh', '')).toBe(true);
    expect(both.refuses('native/core/status.h', '')).toBe(true);
    expect(addon.refuses('native/cpu/queue.h', '')).toBe(true);
    const c = rule('native/c_api');
    expect(c.refuses('native/addon/operands.h', '')).toBe(true);
    expect(c.refuses('native/cpu/thread_pool.h', '')).toBe(true);
    expect(c.refuses('napi.h', '')).toBe(true);
    expect(c.refuses('native/core/status.h', '')).toBe(false);
    expect(lib.refuses('../../test/oracle.js', 'lib/core/tensor.ts')).toBe(true);
    expect(lib.refuses('./errors.js', 'lib/core/tensor.ts')).toBe(false);
  });

  it('only core/binding.ts loads the addon, and only wrappers of handles call it', () => {
    const files = filesBelow('lib', /\.ts$/);
    const loaders = files.filter((file) =>
      /\.node['"`]/.test(readFileSync(join(root, file), 'utf8').replace(/\/\*[\s\S]*?\*\//g, '')),
    );
    expect(loaders.filter((file) => file !== 'lib/cli/build/build.ts')).toEqual([
      'lib/core/binding.ts',
    ]);
    const callers = files.filter((file) =>
      targetsOf(file).some(({ target }) => target.endsWith('core/binding.js')),
    );
    expect(
      callers.filter(
        (file) => !RAW_CALLERS.test(file) && !/cli\/(info|emulate\/emulate-library)\.ts/.test(file),
      ),
    ).toEqual([]);
  });

  it('native code below the addon cannot end the process', () => {
    const banned = /\b(exit|abort|_Exit|quick_exit|terminate)\s*\(|\bassert\s*\(|\bf?printf\s*\(/;
    const found = filesBelow('native', CPP).flatMap((file) =>
      readFileSync(join(root, file), 'utf8')
        .split('\n')
        .flatMap((text, i) =>
          banned.test(text.replace(/\/\/.*/, '').replace(/static_assert/g, ''))
            ? [`${file}:${i + 1} ${text.trim()}`]
            : [],
        ),
    );
    expect(found).toEqual([]);
  });

  it('every file of the native and of the cuda tree is built, or is a header', () => {
    const listed = readFileSync(join(root, 'native', 'sources.json'), 'utf8');
    const files = [...filesBelow('native', /\.cpp$/), ...filesBelow('cuda', /\.(cu|cpp)$/)];
    expect(files.filter((file) => !listed.includes(`"${file}"`))).toEqual([]);
  });

  it('files stay small', () => {
    const tracked = execFileSync(
      'git',
      ['ls-files', '--cached', '--others', '--exclude-standard'],
      {
        cwd: root,
        encoding: 'utf8',
      },
    )
      .split('\n')
      .filter((file) => /\.(ts|mjs|cjs|cpp|h|cu|cuh|py)$/.test(file));
    const big = tracked.flatMap((file) => {
      const limit = /kernel|^cuda\//.test(file) ? 800 : 500;
      let lines = 0;
      try {
        lines = readFileSync(join(root, file), 'utf8').split('\n').length - 1;
      } catch {
        return []; // deleted, not yet committed
      }
      return lines > limit ? [`${file}: ${lines} lines (limit ${limit})`] : [];
    });
    expect(big).toEqual([]);
  });
});
