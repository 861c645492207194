import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { parse, stringify } from "yaml";
import { fields, read, type Schema, show } from "../src/lib/schema";
import { at, differences, fromYaml, put, type Spec, toYaml } from "../src/lib/spec";

const leaf = fc.oneof(fc.string({ minLength: 1 }), fc.integer(), fc.double({ noNaN: true, noDefaultInfinity: true, min: -1e9, max: 1e9 }).map((value) => value + 0), fc.boolean());
const key = fc.stringMatching(/^[a-z][a-z_]{0,8}$/);
const spec = fc.dictionary(key, fc.oneof(leaf, fc.array(leaf, { minLength: 1, maxLength: 3 }), fc.dictionary(key, leaf, { minKeys: 1, maxKeys: 3 })), { maxKeys: 6 });

describe("YAML", () => {
  it("comes back as it went in", () => {
    fc.assert(fc.property(spec, (value) => { expect(fromYaml(toYaml({ type: "sft", ...value }))).toEqual({ type: "sft", ...value }); }));
  });
  it("has the type first and leaves empty things out", () => {
    expect(toYaml({ image: "cpu", lora: {}, name: "", type: "sft" })).toBe("type: sft\nimage: cpu\n");
  });
  it("refuses what is no mapping, and bombs of aliases", () => {
    expect(() => fromYaml("- a")).toThrow();
    expect(() => fromYaml("a: [")).toThrow();
    const bomb = ["a: &a [x,x,x,x,x,x,x,x,x]", ..."bcdefg".split("").map((name, index) => `${name}: &${name} [${Array(9).fill(`*${"abcdefg"[index]}`)}]`)].join("\n");
    expect(() => fromYaml(bomb)).toThrow();
  });
});

describe("paths", () => {
  it("puts a value where it is found again, and leaves the rest", () => {
    fc.assert(
      fc.property(spec, key, key, leaf, (value, first, second, inner) => {
        const changed = put(value, `${first}.${second}`, inner);
        expect(at(changed, `${first}.${second}`)).toEqual(inner);
        for (const other of Object.keys(value)) if (other !== first) expect(changed[other]).toEqual(value[other]);
      }),
    );
  });
  it("takes a section away with its last key", () => {
    expect(put({ train: { lr: 1 }, image: "x" }, "train.lr", undefined)).toEqual({ image: "x" });
  });
});

it("finds what differs between runs, and nothing else", () => {
  const a: Spec = { name: "a", train: { lr: 1, seed: 1 }, data: ["x"] };
  const b: Spec = { name: "b", train: { lr: 2, seed: 1 }, data: ["x"] };
  expect(differences([a, b])).toEqual([{ path: "train.lr", values: ["1", "2"] }]);
  expect(differences([a, a])).toEqual([]);
});

describe("forms", () => {
  const schema: Schema = {
    type: "object",
    required: ["model"],
    properties: {
      type: { const: "sft" },
      model: { type: "string", description: "A folder." },
      gpus: { anyOf: [{ type: "integer" }, { type: "null" }], default: 0 },
      grace: { anyOf: [{ type: "number" }, { type: "string" }], default: 120, "x-unit": "seconds" },
      ports: { type: "array", items: { anyOf: [{ type: "integer" }, { type: "string" }] } },
      env: { anyOf: [{ type: "object", additionalProperties: { type: "string" } }, { type: "null" }] },
      ssh: { type: "boolean", default: true },
      lr: { type: "string", enum: ["cosine", "linear"], "x-advanced": true },
      train: { $ref: "#/$defs/Train" },
    },
    $defs: { Train: { type: "object", properties: { lr: { type: "number", default: 2e-5 } } } },
  };
  const all = fields(schema);
  const field = (path: string) => [...all, ...all.flatMap((one) => one.fields)].find((one) => one.path === path)!;
  it("has a field for every key, required ones first, sections last, without the type", () => {
    expect(all.map((one) => one.path)).toEqual(["model", "gpus", "grace", "ports", "env", "ssh", "lr", "train"]);
    expect(all.map((one) => one.kind)).toEqual(["text", "number", "text", "lines", "pairs", "boolean", "choice", "section"]);
    expect(field("train.lr").fallback).toBe("0.00002");
    expect(field("grace").unit).toBe("seconds");
    expect(field("lr").advanced).toBe(true);
  });
  it.each([
    ["gpus", "4", 4],
    ["gpus", "", undefined],
    ["gpus", "four", "four"],
    ["ssh", "false", false],
    ["ports", "7000\n8095:22\n", ["7000", "8095:22"]],
    ["env", "A=1\nB=x=y", { A: "1", B: "x=y" }],
    ["train.lr", "1e-5", 1e-5],
  ])("reads %s: %j as %j and shows it again", (path, text, value) => {
    const got = read(field(path), text, (inner) => parse(inner) as unknown);
    expect(got).toEqual(value);
    if (value !== undefined) {
      const shown = show(field(path), put({}, path, got), (inner) => stringify(inner));
      expect(read(field(path), shown, (inner) => parse(inner) as unknown)).toEqual(value);
    }
  });
});
