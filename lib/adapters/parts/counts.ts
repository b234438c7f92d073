/** Settings that count something a layer has at least one of. */

/**
 * For {@link AdapterDefinition.check}: the first of these settings that is below 1. (That it is an integer follows from the
 * shapes, which are checked for all methods.)
 */
export function belowOne<Name extends string>(
  config: Readonly<Record<Name, number>>,
  ...names: readonly Name[]
): readonly [name: string, expected: string, actual: string] | undefined {
  const found = names.find((name) => config[name] < 1);
  return found === undefined ? undefined : [found, 'at least 1', String(config[found])];
}
