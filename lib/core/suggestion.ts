/** ` (did you mean --rank?)`, or an empty string if no name is close. */
export function suggestion(typed: string, names: readonly string[], prefix = ''): string {
  const bound = Math.ceil(typed.length / 3);
  const near = names
    .map((name) => ({ name, distance: editDistance(typed.slice(0, 40), name) }))
    .filter(({ distance }) => distance <= bound)
    .sort((a, b) => a.distance - b.distance)[0];
  return near === undefined ? '' : ` (did you mean ${prefix}${near.name}?)`;
}

/** Levenshtein distance. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = (row[j - 1] as number) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(replaced, (row[j] as number) + 1, (next[j - 1] as number) + 1));
    }
    row = next;
  }
  return row[b.length] as number;
}
