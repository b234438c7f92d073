/** What test/checks/house.test.ts asks of the tree: how full folders are, what imports or includes in circles, what docs name. */

import { dirname, join, normalize, relative } from 'node:path';
import ts from 'typescript';

/** Folders that hold more files than `most`. */
export function crowded(files: readonly string[], most: number): string[] {
  const counts = new Map<string, number>();
  for (const file of files) counts.set(dirname(file), (counts.get(dirname(file)) ?? 0) + 1);
  return [...counts]
    .filter(([, count]) => count > most)
    .map(([folder, count]) => `${folder}: ${count} files (limit ${most})`);
}

/** The files that a source imports, types alone too: `./x.js` stands for `x.ts`. */
export function importsOf(file: string, text: string): string[] {
  return ts
    .preProcessFile(text)
    .importedFiles.map(({ fileName }) => fileName)
    .filter((name) => name.startsWith('.'))
    .map((name) => normalize(join(dirname(file), name)).replace(/\.js$/, '.ts'));
}

/** The files of this repository that C++ or CUDA source includes. */
export function includesOf(text: string): string[] {
  return [...text.matchAll(/^\s*#\s*include\s+"((?:native|cuda)\/[^"]+)"/gm)].map(
    ([, target = '']) => target,
  );
}

type Graph = ReadonlyMap<string, ReadonlySet<string>>;

/** One circle of each knot of the graph, as `a -> b -> a`. */
function circlesOf(graph: Graph): string[] {
  const found: string[] = [];
  const left = new Set<string>();
  const path: string[] = [];
  const walk = (node: string): void => {
    const at = path.indexOf(node);
    if (at >= 0) found.push([...path.slice(at), node].join(' -> '));
    if (at >= 0 || left.has(node)) return;
    path.push(node);
    for (const next of graph.get(node) ?? []) walk(next);
    path.pop();
    left.add(node);
  };
  for (const node of graph.keys()) walk(node);
  return found;
}

/** Files as what `nameOf` calls them; those without a name, and imports within one, are left out. */
function joined(graph: Graph, nameOf: (file: string) => string | undefined): Graph {
  const result = new Map<string, Set<string>>();
  for (const [file, targets] of graph) {
    const from = nameOf(file);
    if (from === undefined) continue;
    const known = result.get(from) ?? new Set();
    for (const target of targets) {
      const to = nameOf(target);
      if (to !== undefined && to !== from) known.add(to);
    }
    result.set(from, known);
  }
  return result;
}

/**
 * Circles of imports: between files, between folders by the files that lie directly in them, and between the folders
 * side by side in one folder, each with all that is below it. What is below a folder of `whole` is one folder.
 */
export function circles(
  imports: Readonly<Record<string, readonly string[]>>,
  whole: readonly string[] = [],
): string[] {
  const graph: Graph = new Map(
    Object.entries(imports).map(([file, targets]) => [file, new Set(targets)]),
  );
  const folderOf = (file: string) =>
    whole.find((folder) => file.startsWith(`${folder}/`)) ?? dirname(file);
  const folders = new Set(['.']);
  for (const file of graph.keys()) {
    for (let at = folderOf(file); at !== '.'; at = dirname(at)) folders.add(at);
  }
  const below = [...folders].flatMap((folder) =>
    circlesOf(
      joined(graph, (file) => {
        const [child, ...rest] = relative(folder, join(folderOf(file), 'file')).split('/');
        return child === undefined || child === '..' || rest.length === 0
          ? undefined
          : join(folder, child);
      }),
    ),
  );
  return [...new Set([...circlesOf(graph), ...circlesOf(joined(graph, folderOf)), ...below])];
}

/** Paths of this repository that a text names: in backquotes, or with a file's ending anywhere. */
export function pathsNamed(markdown: string): string[] {
  const quoted = /`((?:lib|native|cuda|test|docs|bench)\/[^`\s]*)`/g;
  const bare =
    /(?<![\w./-])((?:lib|native|cuda|test|docs|bench)\/[\w./*<>{},-]*\.(?:ts|mjs|cpp|h|cu|cuh|json|md|py|sh|svg))\b/g;
  const names = [quoted, bare].flatMap((pattern) =>
    [...markdown.matchAll(pattern)].map(([, name = '']) => name),
  );
  return [...new Set(names)];
}

/** `*` and `<card>` stand for any name, `{a,b}` for either. A folder is there when a file is. */
export function isThere(name: string, files: readonly string[]): boolean {
  const pattern = name
    .replace(/[.+()]/g, '\\$&')
    .replace(/\*\*|\*|<[\w-]+>/g, (any) => (any === '**' ? '.*' : '[^/]*'))
    .replace(/\{([^}]*)\}/g, (_, names: string) => `(${names.replaceAll(',', '|')})`);
  const expression = new RegExp(`^${pattern}${name.endsWith('/') ? '' : '($|/)'}`);
  return files.some((file) => expression.test(file));
}

/** Where the links of a page lead, but those to other places on the web or on the page. */
export function linksOf(page: string, markdown: string): string[] {
  return [...markdown.matchAll(/\]\(([^)#\s]+)[^)]*\)/g)]
    .map(([, target = '']) => target)
    .filter((target) => !/^[a-z]+:/.test(target))
    .map((target) => normalize(join(dirname(page), target)));
}
