// A job's specification between form, YAML and URL. Pure functions.
import { parse, stringify } from "yaml";

export type Spec = Record<string, unknown>;

/** The specification in YAML, `type` first, without what is empty. */
export function toYaml(spec: Spec): string {
  const { type, name, ...rest } = prune(spec) as Spec;
  return stringify({ ...(type ? { type } : {}), ...(name ? { name } : {}), ...rest }, { lineWidth: 100 });
}

/** The specification in a text. Throws with the line where it isn't YAML, or isn't a mapping. */
export function fromYaml(text: string): Spec {
  const value: unknown = parse(text, { maxAliasCount: 20 });
  if (value === null || typeof value !== "object" || Array.isArray(value)) throw new Error("mapping");
  return value as Spec;
}

function prune(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(prune);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(
    Object.entries(value)
      .map(([key, inner]) => [key, prune(inner)] as const)
      .filter(([, inner]) => inner !== undefined && inner !== "" && !(isMapping(inner) && Object.keys(inner).length === 0)),
  );
}

function isMapping(value: unknown): value is Spec {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** The value at a dotted path, or undefined. */
export function at(spec: Spec, path: string): unknown {
  return path.split(".").reduce<unknown>((value, key) => (isMapping(value) ? value[key] : undefined), spec);
}

/** A copy with the value at a dotted path replaced; undefined takes it away. */
export function put(spec: Spec, path: string, value: unknown): Spec {
  const [key, ...rest] = path.split(".") as [string, ...string[]];
  if (rest.length === 0) {
    const { [key]: _, ...others } = spec;
    return value === undefined ? others : { ...spec, [key]: value };
  }
  const inner = isMapping(spec[key]) ? (spec[key] as Spec) : {};
  const changed = put(inner, rest.join("."), value);
  return put(spec, key, Object.keys(changed).length ? changed : undefined);
}

/** Every value of a specification by its dotted path; what differs between runs is found by these. */
export function flatten(spec: Spec, prefix = ""): Record<string, string> {
  const found: Record<string, string> = {};
  for (const [key, value] of Object.entries(spec)) {
    const path = prefix ? `${prefix}.${key}` : key;
    if (isMapping(value)) Object.assign(found, flatten(value, path));
    else found[path] = Array.isArray(value) ? JSON.stringify(value) : String(value);
  }
  return found;
}

/** The paths at which runs differ, with each run's value; `name` always differs and is left out. */
export function differences(specs: readonly Spec[]): { path: string; values: string[] }[] {
  const flat = specs.map((spec) => flatten(spec));
  const paths = [...new Set(flat.flatMap((one) => Object.keys(one)))].sort();
  return paths
    .map((path) => ({ path, values: flat.map((one) => one[path] ?? "–") }))
    .filter(({ path, values }) => path !== "name" && new Set(values).size > 1);
}
