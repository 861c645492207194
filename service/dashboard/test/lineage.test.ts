import { expect, test } from "vitest";
import { places } from "../src/ui/lineage";

const item = (id: string, depth: number, sources: string[] = []) => ({ id, name: id, kind: "job", type: "sft", depth, sources });

test("each layer is a column, and nothing lies on top of another", () => {
  const found = places([item("base", 0), item("rm", 0), item("sft", 1, ["base"]), item("dpo", 1, ["base"]), item("ppo", 2, ["sft", "rm"])]);
  const spots = [...found.values()].map(({ x, y }) => `${x},${y}`);
  expect(new Set(spots).size).toBe(5);
  expect(found.get("sft")!.x).toBe(found.get("dpo")!.x);
  expect(found.get("ppo")!.x).toBeGreaterThan(found.get("sft")!.x);
  expect(found.get("ppo")!.y).toBe(found.get("sft")!.y);
});
