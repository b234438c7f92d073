/** The library as it is installed, and the examples against it, by the commands of their README. */
import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { buildFolder, buildTargets, root, run, toolEnvironment } from '../emulator/build-folder.js';
import { TIME_SCALE } from '../reliability/program.js';
import { cRuns, has, headers, temporaryFolder } from './library.js';

const examples = path.join(root, 'examples', 'c-api');
const readme = fs.readFileSync(path.join(examples, 'README.md'), 'utf8');
const losses = /```\n([\s\S]*?)```/.exec(readme)?.[1];
const commands = [...readme.matchAll(/^\| `(lora\.\w+)` \| `(.*)` \|$/gm)].map(
  ([, file, command]) => [file as string, command as string] as const,
);
/** `python3` may be a script that chooses one, and a shell does not start with a sanitizer's runtime. */
async function executable(program: string): Promise<string> {
  if (program !== 'python3') return program;
  const print = 'import sys; print(sys.executable)';
  return (await run(program, ['-c', print], { env: toolEnvironment() })).stdout.trim();
}

/** What runs each file, and how it tells its version. */
const tools: Record<string, readonly [string, string]> = {
  'lora.c': ['pkg-config', '--version'],
  'lora.cpp': ['cmake', '--version'],
  'lora.py': ['python3', '--version'],
  'lora.rs': ['rustc', '--version'],
  'lora.go': ['go', 'version'],
};
const needsPkgConfig = new Set(['lora.rs', 'lora.go']);

describe.runIf(cRuns)('the installed library for C', () => {
  const prefix = temporaryFolder();
  const timeout = 300_000 * TIME_SCALE;

  beforeAll(async () => {
    await buildTargets('lowrank_c');
    await run('cmake', ['--install', buildFolder() as string, '--prefix', prefix], {
      env: toolEnvironment(),
    });
  }, 1_200_000);

  it('is complete', () => {
    const installed = fs.readdirSync(prefix, { recursive: true }) as string[];
    const expected = [
      'include/lowrank.h',
      'include/lowrank/core.h',
      'include/lowrank/dlpack.h',
      'lib/cmake/lowrank/lowrankConfig.cmake',
      'lib/cmake/lowrank/lowrankConfigVersion.cmake',
      'lib/cmake/lowrank/lowrankTargets.cmake',
      'lib/liblowrank.so',
      'lib/liblowrank.so.1',
      'lib/pkgconfig/lowrank.pc',
    ];
    expect(expected.filter((file) => !installed.includes(file))).toEqual([]);
  });

  it('runs every example of the README', () => {
    expect(commands.map(([file]) => file)).toEqual(Object.keys(tools));
  });

  it.each(commands)('%s', { timeout }, async (file, command) => {
    const [tool, version] = tools[file] as readonly [string, string];
    const missing = [tool, ...(needsPkgConfig.has(file) ? ['pkg-config'] : [])].filter(
      (each) => !has(each, each === tool ? version : '--version'),
    );
    if (missing.length > 0) {
      console.warn(`not run: ${file} needs ${missing.join(' and ')}`);
      return;
    }
    const folder = temporaryFolder();
    for (const each of [file, 'CMakeLists.txt']) {
      fs.copyFileSync(path.join(examples, each), path.join(folder, each));
    }
    const lib = path.join(prefix, 'lib');
    const { LOWRANK_LIBRARY: _, ...own } = process.env;
    const places = {
      PKG_CONFIG_PATH: path.join(lib, 'pkgconfig'),
      LD_LIBRARY_PATH: lib,
      CMAKE_PREFIX_PATH: prefix,
    };
    // The last command runs the example; those before it build it.
    const parts = command.split(' && ');
    const [program, ...args] = (parts.pop() as string).split(' ');
    const building = { ...toolEnvironment(), LOWRANK_LIBRARY: undefined, ...places };
    const made = await run('sh', ['-c', parts.join(' && ')], { cwd: folder, env: building })
      .then(async () =>
        run(await executable(program as string), args, { cwd: folder, env: { ...own, ...places } }),
      )
      .catch((error) => error);
    const printed = `${made.stdout}`.split('\n').filter((line) => line.startsWith('step '));
    expect(printed.length > 0 ? `${printed.join('\n')}\n` : made.stderr).toBe(losses);
  });

  it('is configured without Node.js', { timeout }, async () => {
    const folder = temporaryFolder();
    const tools = temporaryFolder();
    for (const tool of ['cmake', 'c++', 'g++', 'ld', 'as', 'make', 'sh', 'strip', 'ar', 'ranlib']) {
      const { stdout } = await run('which', [tool], { env: toolEnvironment() }).catch(() => ({
        stdout: '',
      }));
      if (stdout !== '') fs.symlinkSync(stdout.trim(), path.join(tools, tool));
    }
    const options = ['-DLOWRANK_ADDON=OFF', '-DLOWRANK_CUDA=OFF', '-G', 'Unix Makefiles'];
    const { stdout } = await run('cmake', ['-S', root, '-B', folder, ...options], {
      env: { PATH: tools },
    });
    expect(stdout).toContain('Build files have been written');
    const help = await run('cmake', ['--build', folder, '--target', 'help'], {
      env: toolEnvironment(),
    });
    expect(help.stdout).toMatch(/\blowrank_c\b/);
    expect(help.stdout).not.toMatch(/\blowrank\b(?!_)/);
  });

  it('is documented: the page names every function, and its example compiles', {
    timeout,
  }, async () => {
    const page = fs.readFileSync(path.join(root, 'docs', 'c-api.md'), 'utf8');
    const declared = [...headers().matchAll(/LOWRANK_API[^;(]*?\blowrank_(\w+)\s*\(/g)];
    const ops = declared
      .map(([, name]) => name as string)
      .filter(
        (name) =>
          !/^(abi|version|code_name|device_|set_|get_|memory|weight_(retain|release|describe))/.test(
            name,
          ),
      )
      .filter((name) => !page.includes(name.replace(/_backward$/, '')));
    expect(ops).toEqual([]);
    const example = /```c\n([\s\S]*?)```/.exec(page)?.[1] ?? '';
    expect(example.trimEnd().split('\n').length).toBeLessThan(15);
    const folder = temporaryFolder();
    fs.writeFileSync(path.join(folder, 'example.c'), `#include <stdio.h>\n${example}`);
    await run('gcc', ['-std=c11', '-Wall', '-Werror', '-c', 'example.c', `-I${prefix}/include`], {
      cwd: folder,
      env: toolEnvironment(),
    });
  });
});
