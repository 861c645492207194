// The fields of a form, from the JSON schema of a job's type. Pure functions.
import { at, type Spec } from "./spec";

export interface Schema {
  type?: string | string[];
  title?: string;
  description?: string;
  default?: unknown;
  enum?: unknown[];
  const?: unknown;
  minimum?: number;
  maximum?: number;
  properties?: Record<string, Schema>;
  required?: string[];
  items?: Schema;
  anyOf?: Schema[];
  additionalProperties?: boolean | Schema;
  $ref?: string;
  $defs?: Record<string, Schema>;
  /** Ours: what a value is measured in. */
  "x-unit"?: string;
  /** Ours: most people leave it as it is. */
  "x-advanced"?: boolean;
}

export type Kind = "text" | "number" | "boolean" | "choice" | "lines" | "pairs" | "yaml" | "section";

export interface FieldSpec {
  path: string;
  name: string;
  kind: Kind;
  required: boolean;
  advanced: boolean;
  help: string;
  unit: string;
  /** What is used when the field is left empty, as it is written in YAML. */
  fallback: string;
  choices: string[];
  fields: FieldSpec[];
}

/** The fields of a type's schema, required ones first, sections last. */
export function fields(schema: Schema, root: Schema = schema, prefix = "", depth = 0): FieldSpec[] {
  const found = Object.entries(schema.properties ?? {})
    .filter(([key]) => prefix !== "" || key !== "type")
    .map(([key, raw]): FieldSpec => {
      const inner = resolve(raw, root);
      const path = prefix ? `${prefix}.${key}` : key;
      const kind = kindOf(inner, depth);
      return {
        path,
        name: key,
        kind,
        required: schema.required?.includes(key) ?? false,
        advanced: Boolean(inner["x-advanced"]),
        help: inner.description ?? "",
        unit: inner["x-unit"] ?? "",
        fallback: written(inner.default),
        choices: (inner.enum ?? []).map(String),
        fields: kind === "section" ? fields(inner, root, path, depth + 1) : [],
      };
    });
  const rank = (field: FieldSpec) => (field.kind === "section" ? 2 : 0) + (field.required ? 0 : 1);
  return found.map((field, index) => ({ field, index })).sort((a, b) => rank(a.field) - rank(b.field) || a.index - b.index).map(({ field }) => field);
}

function resolve(schema: Schema, root: Schema): Schema {
  if (schema.$ref) {
    const name = schema.$ref.split("/").at(-1)!;
    return { ...resolve(root.$defs?.[name] ?? {}, root), ...(schema.description ? { description: schema.description } : {}), ...("default" in schema ? { default: schema.default } : {}) };
  }
  const options = schema.anyOf?.filter((option) => option.type !== "null");
  if (options?.length === 1) return { ...resolve(options[0]!, root), ...without(schema) };
  if (options && options.length > 1 && !schema.type) {
    const kinds = options.map((option) => resolve(option, root));
    const best = kinds.find((one) => one.properties) ?? kinds.find((one) => one.type === "array") ?? kinds.find((one) => one.type === "string") ?? kinds[0]!;
    const texty = kinds.every((one) => ["string", "number", "integer", "boolean"].includes(String(one.type)));
    return { ...(texty ? { type: "string" } : kinds.length > 1 && best.type === "array" ? { type: "mixed" } : best), ...without(schema) };
  }
  return schema;
}

function without(schema: Schema): Schema {
  const { anyOf: _, ...rest } = schema;
  return rest;
}

function kindOf(schema: Schema, depth: number): Kind {
  if (schema.enum) return "choice";
  const type = Array.isArray(schema.type) ? schema.type.find((one) => one !== "null") : schema.type;
  if (schema.properties) return depth < 3 ? "section" : "yaml";
  if (type === "boolean") return "boolean";
  if (type === "integer" || type === "number") return "number";
  if (type === "string") return "text";
  if (type === "array") return ["string", "integer", "number", undefined].includes(schema.items?.type as string | undefined) && !schema.items?.properties && !schema.items?.$ref ? "lines" : "yaml";
  if (type === "object" && schema.additionalProperties) return "pairs";
  return "yaml";
}

function written(value: unknown): string {
  if (value === undefined || value === null || value === "") return "";
  return typeof value === "object" ? (Object.keys(value).length ? JSON.stringify(value) : "") : String(value);
}

/** How a value of the specification is shown in its field. */
export function show(field: FieldSpec, spec: Spec, toYaml: (value: unknown) => string): string {
  const value = at(spec, field.path);
  if (value === undefined || value === null) return "";
  if (field.kind === "lines" && Array.isArray(value)) return value.map(String).join("\n");
  if (field.kind === "pairs" && typeof value === "object") return Object.entries(value).map(([key, one]) => `${key}=${String(one)}`).join("\n");
  if (typeof value === "object") return toYaml(value).trimEnd();
  return String(value);
}

/** What a field's text means; undefined leaves the default. Throws where YAML is not right. */
export function read(field: FieldSpec, text: string, fromYaml: (text: string) => unknown): unknown {
  if (text.trim() === "") return undefined;
  switch (field.kind) {
    case "number": {
      const value = Number(text.replaceAll("_", ""));
      return Number.isNaN(value) ? text : value;
    }
    case "boolean":
      return text === "true";
    case "lines":
      return text.split("\n").map((line) => line.trim()).filter(Boolean);
    case "pairs":
      return Object.fromEntries(
        text.split("\n").filter((line) => line.includes("=")).map((line) => [line.slice(0, line.indexOf("=")).trim(), line.slice(line.indexOf("=") + 1)]),
      );
    case "yaml":
      return fromYaml(text);
    default:
      return text;
  }
}
