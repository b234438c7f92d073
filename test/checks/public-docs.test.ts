// docs/api.md promises that every public function and class has an example in its TSDoc, and that what is linked is there.
import path from 'node:path';
import ts from 'typescript';
import { describe, expect, it } from 'vitest';

const root = path.join(import.meta.dirname, '..', '..');
const entry = path.join(root, 'lib', 'index.ts');
const { config } = ts.readConfigFile(path.join(root, 'tsconfig.json'), ts.sys.readFile);
const { options } = ts.parseJsonConfigFileContent(config, ts.sys, root);
const program = ts.createProgram([entry], options);
const checker = program.getTypeChecker();
/** What a module exports: names, and what they stand for. */
const exportsOf = (file: string) => {
  const module = checker.getSymbolAtLocation(program.getSourceFile(file) as ts.SourceFile);
  return checker.getExportsOfModule(module as ts.Symbol).map((symbol) => ({
    name: symbol.name,
    target: symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol,
  }));
};
const exported = exportsOf(entry);
const methods = exportsOf(path.join(root, 'lib', 'adapters', 'methods', 'all.ts'));

/** What only the library makes: states that are handed back, opened files. */
const madeInside = (target: ts.Symbol): boolean =>
  (target.declarations ?? []).some(
    (declaration) =>
      ts.isClassDeclaration(declaration) &&
      declaration.members.some(
        (member) =>
          ts.isConstructorDeclaration(member) &&
          ts.getJSDocTags(member).some(({ tagName }) => tagName.text === 'internal'),
      ),
  );

const tagsOf = (symbol: ts.Symbol): string[] =>
  symbol.getJsDocTags(checker).map(({ name }) => name);

describe('the public API', () => {
  it('has a text for everything, and an example for every function and class', () => {
    const values = exported.filter(
      ({ target }) =>
        target.flags & ts.SymbolFlags.Value && !(target.flags & ts.SymbolFlags.ValueModule),
    );
    expect(values.length).toBeGreaterThan(100);
    const textless = values
      .filter(({ target }) => target.getDocumentationComment(checker).length === 0)
      .map(({ name }) => name);
    const bare = values
      .filter(({ target }) => target.flags & (ts.SymbolFlags.Function | ts.SymbolFlags.Class))
      .filter(({ target }) => !madeInside(target) && !tagsOf(target).includes('example'))
      .map(({ name }) => name);
    expect({ textless, bare }).toEqual({ textless: [], bare: [] });
  });

  it('links to what is exported alone', () => {
    const known = new Set([...exported, ...methods].map(({ name }) => name));
    const wrong = [...exported, ...methods].flatMap(({ name, target }) =>
      (target.declarations ?? []).flatMap((declared) => {
        // Of a constant the text stands before its statement.
        const declaration = ts.isVariableDeclaration(declared) ? declared.parent.parent : declared;
        const file = declaration.getSourceFile();
        const text = file.text.slice(declaration.getFullStart(), declaration.getEnd());
        const docs = [...text.matchAll(/\/\*\*[\s\S]*?\*\//g)].filter(
          ([doc]) => !doc.includes('@internal'),
        );
        return docs
          .flatMap(([doc]) => [...doc.matchAll(/\{@link (\w+)/g)].map(([, link]) => link as string))
          .filter((link) => !known.has(link))
          .map((link) => `${name} links to ${link}`);
      }),
    );
    expect(wrong).toEqual([]);
  });
});
