/** Settings that count something of which a layer has at least one. */

/**
 * For {@link AdapterDefinition.check}: the first of these settings that is below 1. (The check of shapes, for all methods,
 * makes sure that it is an integer.)
 */
export function belowOne<Name extends string>(
  config: Readonly<Record<Name, number>>,
  ...names: readonly Name[]
): readonly [name: string, expected: string, actual: string] | undefined {
  const found = names.find((name) => config[name] < 1);
  return found === undefined ? undefined : [found, 'at least 1', String(config[found])];
}
